"""These tests are about the reference engine and what stands around it.

The CPU engine is compared with it in tests/engines/cpu, the GPU engine in tests/engines/gpu.
"""

import pytest

import cellwright as cw


@pytest.fixture(autouse=True)
def reference_engine(request):
    """Run on the reference engine, except in the folders of others and where none is wanted."""
    if {"cpu", "gpu"} & set(request.path.parts) or request.path.name == "test_choice.py":
        yield
        return
    with cw.engine("reference"):
        yield
