"""Runs a compiled loop on several threads.

The threads are those of torch's own OpenMP library, where it is in the process: the loops and
torch's operations then never compete. Elsewhere they are Python's, which give up the
interpreter's lock while compiled code runs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.ops import I32, I64, POINTER

ROWS, SHARES = 0, 1
_forked = False
_team_was_used = False


def _after_fork() -> None:
    """In a forked child a team's threads do not exist, neither ours nor those of torch's loops."""
    global _forked
    _forked = True
    if _team_was_used:
        torch.set_num_threads(1)  # torch would wait for them for ever


os.register_at_fork(after_in_child=_after_fork)


def count() -> int:
    """Threads that a loop may use: torch's number, 1 in a forked process."""
    return 1 if _forked else torch.get_num_threads()


@lru_cache(maxsize=1)
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, if it is GNU's."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split()[-1] for line in lines if "libgomp" in line.rpartition("/")[2]}
    # torch's own first: another package may have loaded a second one.
    for path in sorted(paths, key=lambda path: ("/torch/" not in path, path)):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
            return library
    return None


def _runtime_module() -> str:
    """Barrier, and the functions that a thread of a team, or a thread alone, begins with."""
    module = ir.Module("cellwright_runtime")
    _emit_barrier(module)
    _emit_together(module, _emit_member(module))
    _emit_alone(module)
    return str(module)


def _emit_barrier(module: ir.Module) -> None:
    """Wait until all shares have arrived: a counter and the number of the round."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64]), "cellwright_barrier")
    place, shares = function.args
    entry, last, wait, spin, rest, end = (
        function.append_basic_block(n) for n in ("entry", "last", "wait", "spin", "rest", "end")
    )
    b = ir.IRBuilder(entry)
    counter = b.inttoptr(place, POINTER)
    round_ = b.gep(counter, [ir.Constant(I64, 8)], source_etype=I64)  # on another cache line
    one = ir.Constant(I64, 1)
    before = b.load_atomic(round_, "acquire", 8, typ=I64)
    arrived = b.add(b.atomic_rmw("add", counter, one, "acq_rel"), one)
    b.cbranch(b.icmp_signed("==", arrived, shares), last, wait)
    b.position_at_end(last)
    b.atomic_rmw("xchg", counter, ir.Constant(I64, 0), "release")
    b.atomic_rmw("add", round_, one, "release")
    b.branch(end)
    b.position_at_end(wait)
    b.branch(spin)
    b.position_at_end(spin)
    tries = b.phi(I64)
    tries.add_incoming(ir.Constant(I64, 0), wait)
    now = b.load_atomic(round_, "acquire", 8, typ=I64)
    b.cbranch(b.icmp_signed("!=", now, before), end, rest)
    b.position_at_end(rest)
    following = b.add(tries, one)
    pause = _pause(module)
    yields = ir.Function(module, ir.FunctionType(I32, []), "sched_yield")
    tired = b.icmp_signed("==", b.and_(following, ir.Constant(I64, 4095)), ir.Constant(I64, 0))
    with b.if_else(tired) as (gives_way, goes_on):
        with gives_way:
            b.call(yields, [])  # another process may need this processor
        with goes_on:
            if pause is not None:
                b.call(pause, [])
    tries.add_incoming(following, b.block)
    b.branch(spin)
    b.position_at_end(end)
    b.ret_void()


def _pause(module: ir.Module) -> ir.Function | None:
    """The instruction by which a waiting processor leaves room to others, where there is one."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    return ir.Function(module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause")


class Callee:
    """An address to call: llvmlite otherwise wants a pointer that carries its function's type."""

    def __init__(self, address: Any, function_type: ir.FunctionType):
        self.function_type = function_type
        self.type = POINTER
        self.get_reference = address.get_reference


_RUN_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])


def _begin(module: ir.Module, name: str) -> tuple[ir.IRBuilder, Callee, list[Any]]:
    """A function of a job = [address of run, its arguments, rows, how to share, threads].

    Returns:
        where its code goes, the job's ``run``, and the job's other fields.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
    b = ir.IRBuilder(function.append_basic_block("entry"))
    run, arguments, rows, how = (
        b.load(b.gep(function.args[0], [ir.Constant(I64, k)], source_etype=I64), typ=I64, align=8)
        for k in range(4)
    )
    callee = Callee(b.inttoptr(run, POINTER), _RUN_TYPE)
    return b, callee, [b.inttoptr(arguments, POINTER), rows, how]


def _emit_alone(module: ir.Module) -> None:
    """``cellwright_alone(job)``: run all of a job."""
    b, run, (arguments, rows, _) = _begin(module, "cellwright_alone")
    zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)
    b.call(run, [arguments, zero, rows, zero, one])
    b.ret_void()


def _emit_together(module: ir.Module, member: ir.Function) -> None:
    """``cellwright_together(job)``: run a job on the threads of OpenMP."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), "cellwright_together")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    (job,) = function.args
    team = b.load(b.gep(job, [ir.Constant(I64, 4)], source_etype=I64), typ=I64, align=8)
    kind = ir.FunctionType(ir.VoidType(), [member.type, POINTER, I32, I32])
    parallel = ir.Function(module, kind, "GOMP_parallel")
    b.call(parallel, [member, job, b.trunc(team, I32), ir.Constant(I32, 0)])
    b.ret_void()


def _emit_member(module: ir.Module) -> ir.Function:
    """``cellwright_member(job)``: take this thread's part of a job and run it."""
    b, run, (arguments, rows, how) = _begin(module, "cellwright_member")
    asks = ir.FunctionType(I32, [])
    number = b.sext(b.call(ir.Function(module, asks, "omp_get_thread_num"), []), I64)
    team = b.sext(b.call(ir.Function(module, asks, "omp_get_num_threads"), []), I64)
    by_rows = b.icmp_signed("==", how, ir.Constant(I64, ROWS))
    zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)
    first = b.sdiv(b.mul(number, rows), team)
    end = b.sdiv(b.mul(b.add(number, one), rows), team)
    b.call(run, [
        arguments,
        b.select(by_rows, first, zero), b.select(by_rows, end, rows),
        b.select(by_rows, zero, number), b.select(by_rows, one, team),
    ])  # fmt: skip
    b.ret_void()
    return b.function


@dataclass(frozen=True)
class _Runtime:
    """The compiled runtime, and where its functions begin."""

    code: jit.Code
    together: int
    alone: int


@lru_cache(maxsize=4)
def _runtime(limit: str) -> _Runtime:
    library = _openmp()
    if library is not None:
        jit.bind_symbols(
            {
                name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
                for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_parallel")
            }
        )
    code = jit.compile_ir(_runtime_module(), limit)
    jit.bind_symbols({"cellwright_barrier": code.address("cellwright_barrier")})
    return _Runtime(code, code.address("cellwright_together"), code.address("cellwright_alone"))


def provide() -> None:
    """Compile the barrier, so that loops can be linked with it."""
    _runtime(jit.features_limit())


_WORKERS = os.cpu_count() or 1
_pool_is_taken = threading.Lock()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="cellwright")


_JOB = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_RUN = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)


def launch(address: int, arguments: int, rows: int, how: int, threads: int) -> None:
    """Run a loop and wait for it.

    Args:
        address: of the compiled ``run``.
        arguments: address of its arguments.
        rows: of the batch.
        how: ``ROWS`` gives each thread some rows, ``SHARES`` some units of all rows.
        threads: how many.
    """
    if threads <= 1:
        _RUN(address)(arguments, 0, rows, 0, 1)
        return
    global _team_was_used
    _team_was_used = True
    library = _openmp()
    if library is not None:
        job = (ctypes.c_int64 * 5)(address, arguments, rows, how, threads)
        _JOB(_runtime(jit.features_limit()).together)(ctypes.addressof(job))
        return
    # Shares wait for each other, so a team gets the whole pool or none of it.
    if not _pool_is_taken.acquire(blocking=False):
        _RUN(address)(arguments, 0, rows, 0, 1)
        return
    try:
        _run_on_pool(_RUN(address), arguments, rows, how, min(threads, _WORKERS + 1))
    finally:
        _pool_is_taken.release()


@dataclass(frozen=True)
class Launch:
    """A loop to be run with the same arguments again and again.

    Attributes:
        address: of the compiled ``run``.
        arguments: address of its arguments, which stay where they are.
        rows: of the batch.
        how: what is shared out: ``ROWS`` or ``SHARES``.
        most: threads at most.
        brief: the loop is short: a single thread keeps Python's lock.
    """

    address: int
    arguments: int
    rows: int
    how: int
    most: int
    brief: bool = False


class Prepared:
    """A launch with as little around it as can be.

    Attributes:
        run: launches it.
    """

    def __init__(self, launch: Launch):
        self._most = most = launch.most
        self._runtime = _runtime(jit.features_limit())
        self._job = (ctypes.c_int64 * 5)(
            launch.address, launch.arguments, launch.rows, launch.how, 1
        )
        self._place = ctypes.addressof(self._job)
        self.run: Callable[[], object]
        if most > 1:
            self._alone, self._together = _JOB(self._runtime.alone), _JOB(self._runtime.together)
            self.run = self._run_shared
        else:
            kind = ctypes.PYFUNCTYPE(None, ctypes.c_void_p) if launch.brief else _JOB
            self.run = partial(kind(self._runtime.alone), self._place)

    def _run_shared(self) -> None:
        team, library = min(count(), self._most), _openmp()
        if team == 1:
            self._alone(self._place)
        elif library is None:
            address, arguments, rows, how, _ = self._job
            launch(address, arguments, rows, how, team)
        else:
            global _team_was_used
            _team_was_used = True
            self._job[4] = team
            self._together(self._place)


def _run_on_pool(run: Any, arguments: int, rows: int, how: int, threads: int) -> None:
    if how == ROWS:
        parts = [(rows * k // threads, rows * (k + 1) // threads, 0, 1) for k in range(threads)]
    else:
        parts = [(0, rows, k, threads) for k in range(threads)]
    waiting = [_pool().submit(run, arguments, *part) for part in parts[1:]]
    run(arguments, *parts[0])
    for each in waiting:
        each.result()
