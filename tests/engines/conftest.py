"""These tests are about the reference engine and what stands around it.

The CPU engine is compared with it in tests/engines/cpu.
"""

import pytest

import cellwright as cw


@pytest.fixture(autouse=True)
def reference_engine(request):
    """Run on the reference engine, except below tests/engines/cpu and where no engine is wanted."""
    if "cpu" in request.path.parts or request.path.name == "test_choice.py":
        yield
        return
    with cw.engine("reference"):
        yield
