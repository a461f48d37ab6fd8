"""What every test of the GPU engine shares: Triton's interpreter, a cache folder, one thread."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Where there is no Triton, its tests are skipped; it comes with torch on Linux."""
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError:
        missing = pytest.mark.skip(reason="triton is not installed: it is there for Linux only")
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(missing)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Emitted kernels go to a folder of this run, not to the user's; workers share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        if "CELLWRIGHT_CACHE" not in os.environ:
            patch.setenv("CELLWRIGHT_CACHE", str(base / "cellwright_cache"))
        patch.setenv("TRITON_CACHE_DIR", str(base / "triton_cache"))
        yield


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """The engine may run on a CPU; one thread, for the sums around the loops."""
    monkeypatch.setenv("CELLWRIGHT_INTERPRET", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
