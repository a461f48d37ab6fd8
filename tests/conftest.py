"""What every test shares: threads, poisoned memory, the data folder, hypothesis' profile."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# No window opens, also where a screen is there.
os.environ.setdefault("MPLBACKEND", "Agg")
# On a GPU, cuBLAS refuses to run deterministically (see below) without a fixed workspace.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Workers share the cores by processes; threads on top would only make them wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# A first example may compile a kernel: no deadline tells that from a hang.
settings.register_profile("cellwright", deadline=None, print_blob=True)
settings.load_profile("cellwright")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Poison fresh memory: torch.empty gives NaN, or the largest integer, never lucky zeros.

    torch fills uninitialised memory in its deterministic mode. The few operators that have no
    deterministic form raise there; a test that needs one is marked
    ``@pytest.mark.unpoisoned("which operator, and why")``.
    """
    marker = item.get_closest_marker("unpoisoned")
    if marker is not None and not (marker.args and isinstance(marker.args[0], str)):
        pytest.fail("@pytest.mark.unpoisoned needs its reason as a string", pytrace=False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_deterministic_debug_mode("error" if marker is None else "default")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of the data sets, one folder a set; skip where there is none."""
    named = os.environ.get("CELLWRIGHT_DATA")
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            pytest.fail(f"CELLWRIGHT_DATA is {named!r}, and that is not a folder", pytrace=False)
        return folder
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no data: CELLWRIGHT_DATA is not set and ../shared/data does not exist")
    return folder
