"""What every test of the CPU engine shares: a cache folder of its own, one thread, poison."""

import os

import pytest
import torch
from engines.cpu.cpu_cases import poison

from cellwright.engines.cpu import repeated


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Compiled kernels go to a folder of this run, not to the user's; workers share it."""
    if "CELLWRIGHT_CACHE" in os.environ:
        yield
        return
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLWRIGHT_CACHE", str(base / "cellwright_cache"))
        yield


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """One thread, all of the processor's instructions, and NaN in memory that is used again."""
    monkeypatch.delenv("CELLWRIGHT_CPU_FEATURES", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    poison()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _ordinary_calls(request, monkeypatch):
    """Nothing is ready from an earlier call: tests change how calls are carried out."""
    repeated._ready.runs.clear()
    repeated._ready.last.clear()
    ready = "test_cpu_repeated", "test_cpu_training"
    if request.module.__name__.rpartition(".")[2] not in ready:
        monkeypatch.setattr(repeated, "_find", lambda *kind: None)
