"""No number is read from outside of an array, not even one that nobody looks at."""

import os
import subprocess
import sys

import pytest
import torch
from engines.cpu.cpu_cases import ENGINE, Edges, assert_equal, by_engine
from engines.cpu.test_cpu_bits import CALLS, call_of

from cellwright.engines.cpu import memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="memory is protected by mprotect")

WITHIN = """
import sys, torch
from engines.cpu.cpu_cases import Edges, by_cpu
from engines.cpu.test_cpu_bits import call_of
torch.set_num_threads(1)
for name in sys.argv[1:]:
    print(name, flush=True)
    results, gradients, _ = by_cpu(call_of(name), kind=Edges)
    assert all(each.isfinite().all() for each in (*results.values(), *gradients.values()))
"""

BEYOND = """
import ctypes, torch
from engines.cpu.cpu_cases import Edges
values = Edges().empty(5, 3, dtype=torch.float32)
print(ctypes.c_float.from_address(values.data_ptr() + 14 * 4).value, flush=True)
print(ctypes.c_float.from_address(values.data_ptr() + 15 * 4).value, flush=True)
"""


def run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=False,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_nothing_behind_an_array_is_read():
    """Every array ends where memory does; a read of one number more would end the process."""
    done = run(WITHIN, *CALLS)
    reached = done.stdout.splitlines()[-1]
    assert done.returncode == 0, f"{done.returncode} at {reached}: {done.stderr[-2000:]}"
    assert done.stdout.splitlines() == list(CALLS)


def test_a_read_behind_an_array_ends_the_process():
    """The comparison itself."""
    done = run(BEYOND)
    assert done.stdout == "nan\n"
    assert done.returncode < 0


def test_edges_hold_numbers_like_any_memory():
    edges = Edges()
    x = torch.randn(7, 3, dtype=torch.float64)
    copy = edges.copy(x)
    assert torch.equal(copy, x)
    assert edges.zeros(0, 4).shape == (0, 4)
    edges.check()


@pytest.mark.parametrize("name", CALLS)
def test_working_memory_too_large_to_be_kept(name, monkeypatch):
    """It stays until the end of the call, and no longer."""
    call = call_of(name)
    results, gradients, cotangents = by_engine(ENGINE, call)
    monkeypatch.setattr(memory, "KEEP_BELOW", 0)
    memory.memory._held.clear()
    found = by_engine(ENGINE, call, cotangents)
    assert_equal(found[0], results, "large")
    assert_equal(found[1], gradients, "large")
    assert not memory.memory._held
    assert not memory.memory._large
