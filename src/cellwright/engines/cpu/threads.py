"""Runs a compiled loop on several threads.

The threads are those of torch's own OpenMP library, where it is in the process: the loops and
torch's operations then never compete. Elsewhere they are Python's, which give up the
interpreter's lock while compiled code runs.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from cellwright.engines.cpu import jit, starting
from cellwright.engines.cpu.starting import JOB
from cellwright.engines.cpu.waiting import BARRIER, WAIT

ROWS, SHARES = starting.ROWS, starting.SHARES

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


@dataclass(frozen=True)
class _Runtime:
    """The compiled runtime, and where its functions begin."""

    code: jit.Code
    together: int
    alone: int
    is_changed: int
    copy: int
    clear: int
    script: int


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
    code = jit.compile_ir(starting.runtime_module(), limit)
    jit.bind_symbols({name: code.address(name) for name in (BARRIER, WAIT)})
    names = ("together", "alone", "is_changed", "copy", "clear", "script")
    return _Runtime(code, *[code.address(f"cellwright_{name}") for name in names])


def provide() -> None:
    """Compile how threads wait, so that loops can be linked with it."""
    _runtime(jit.features_limit())


_WORKERS = os.cpu_count() or 1
_pool_is_taken = threading.Lock()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="cellwright")


_JOB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_BRIEF_JOB = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
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
        job = (ctypes.c_int64 * len(JOB))(address, arguments, rows, how, threads, 0)
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
        watched: address of what may not have changed, see :mod:`.starting`; 0 for nothing.
    """

    address: int
    arguments: int
    rows: int
    how: int
    most: int
    brief: bool = False
    watched: int = 0


class Prepared:
    """A launch with as little around it as can be.

    Attributes:
        run: launches it and returns 0; or 1, and nothing runs, where what it watches has changed.
    """

    def __init__(self, launch: Launch):
        self._most = most = launch.most
        self._runtime = _runtime(jit.features_limit())
        self._job = (ctypes.c_int64 * len(JOB))(
            launch.address, launch.arguments, launch.rows, launch.how, 1, launch.watched
        )
        self._place = ctypes.addressof(self._job)
        self.run: Callable[[], int]
        if most > 1:
            self._alone, self._together = _JOB(self._runtime.alone), _JOB(self._runtime.together)
            self.run = self._run_shared
        else:
            kind = _BRIEF_JOB if launch.brief else _JOB
            self.run = partial(kind(self._runtime.alone), self._place)

    def _run_shared(self) -> int:
        team, library = min(count(), self._most), _openmp()
        if team == 1:
            return self._alone(self._place)
        if library is None:
            address, arguments, rows, how, _, watched = self._job
            if watched and _JOB(self._runtime.is_changed)(watched):
                return 1
            launch(address, arguments, rows, how, team)
            return 0
        global _team_was_used
        _team_was_used = True
        self._job[JOB.index("team")] = team
        return self._together(self._place)


@dataclass(frozen=True)
class Task:
    """Something that a script does.

    Attributes:
        arguments: of a loop, with what follows them; or numbers, as ``kind`` wants them.
        kind: "run" for a loop, else "copy" or "clear", see :mod:`.starting`.
        address, rows, how, team: of a loop, as for :func:`launch`.
        brief: as of a :class:`Launch`.
    """

    arguments: ctypes.Array[ctypes.c_int64]
    kind: str = "run"
    address: int = 0
    rows: int = 0
    how: int = ROWS
    team: int = 1
    brief: bool = True


class Script:
    """Tasks one after the other, in a single call.

    Args:
        tasks: their arguments are filled anew at every run where addresses move.
        moves: of the tasks' arguments: the address of one, the number of its base, the distance.
        bases: how many there are.

    Attributes:
        bases: addresses, to be set before each run.
        run: does everything.
    """

    def __init__(self, tasks: Sequence[Task], moves: Sequence[tuple[int, int, int]], bases: int):
        runtime = _runtime(jit.features_limit())
        self.bases = (ctypes.c_int64 * bases)()
        self._held: list[object] = [*tasks]
        numbers = [ctypes.addressof(self.bases), len(moves), len(tasks)]
        numbers += [number for move in moves for number in move]
        for each in tasks:
            place = ctypes.addressof(each.arguments)
            if each.kind == "run":
                job = (each.address, place, each.rows, each.how, each.team, 0)
                held = (ctypes.c_int64 * len(JOB))(*job)
                self._held.append(held)
                start = runtime.together if each.team > 1 else runtime.alone
                numbers += [start, ctypes.addressof(held)]
            else:
                numbers += [getattr(runtime, each.kind), place]
        self._numbers = (ctypes.c_int64 * len(numbers))(*numbers)
        if any(each.team > 1 for each in tasks):
            global _team_was_used
            _team_was_used = True
        brief = all(each.brief and each.team == 1 for each in tasks)
        kind = _BRIEF_JOB if brief else _JOB
        self.run: Callable[[], int] = partial(kind(runtime.script), ctypes.addressof(self._numbers))


def share_scripts() -> bool:
    """Whether a script may have loops on several threads: those of OpenMP."""
    return _openmp() is not None


def _run_on_pool(run: Any, arguments: int, rows: int, how: int, threads: int) -> None:
    if how == ROWS:
        parts = [(rows * k // threads, rows * (k + 1) // threads, 0, 1) for k in range(threads)]
    else:
        parts = [(0, rows, k, threads) for k in range(threads)]
    waiting = [_pool().submit(run, arguments, *part) for part in parts[1:]]
    run(arguments, *parts[0])
    for each in waiting:
        each.result()
