"""Every test of the layers runs on each engine that can run on this machine."""

import pytest

import cellwright as cw


@pytest.fixture(autouse=True, params=["reference", "preferred"])
def on_each_engine(request):
    """The reference engine, or whichever engine comes first for a layer (cpu, on a processor)."""
    if request.param == "preferred":
        yield
        return
    with cw.engine("reference"):
        yield
