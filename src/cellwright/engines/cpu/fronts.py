"""Runs the layers of a stack on some threads, each piece when what it reads has been written.

Every layer has a number: how many of its jobs are done. The generated driver, in pseudo-code
(``run(table, -, -, share, shares)``):

    for each entry of this share (of the first share: of all, if there are not as many as planned):
        wait until the number of the layer below, and that of its own, are as high as it needs
        program(arguments, 0, rows, 0, 1)
        number of its own layer = jobs that are done now
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from llvmlite import ir

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.ops import I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.program import ENTRY
from cellwright.engines.cpu.schedule import WAITS, Table, Work, schedule
from cellwright.engines.cpu.starting import Callee
from cellwright.engines.cpu.waiting import LINE, WAIT

HEAD = ("shares", "numbers", "entries")
"""Then come the places among the entries where each share's begin, then where all of them follow
in one row, and the end."""

FIELDS = ("program", "arguments", "rows", *WAITS)
"""Of an entry."""

KINDS = 256
"""Stacks of other extents that each thread of Python remembers; for one more all make room."""


ROUGHLY = 4
"""Costs are told apart in so many parts of a piece."""


@dataclass(frozen=True, eq=False)
class Task:
    """A program that runs once, or in every piece, each time with other arguments.

    Attributes:
        program: its address.
        rows: of each time.
        source, offset: its arguments, a row each time: what is given at the places ``source``,
            and so much more.
        work: multiplications, all times together.
    """

    program: int
    rows: Sequence[int]
    source: Table
    offset: Table
    work: int


@lru_cache(maxsize=1024)
def once(program: int, rows: int, count: int, work: int) -> Task:
    """A program that runs once, with so many arguments as they are given."""
    source = np.arange(count)[None, :]
    return Task(program, [rows], source, np.zeros_like(source), work)


Tasks = tuple[Task, ...]

Parts = tuple[Tasks, Tasks, Tasks]
"""What of a layer runs before all pieces, in every piece, and behind them."""


class Fronts:
    """The programs of a stack, to be run again and again.

    Args:
        layers: in the order in which one waits for the other.
        team: how many threads.
    """

    def __init__(self, layers: Sequence[Parts], team: int):
        sources, offsets, tasks = [], [], []
        given = place = 0
        for part in (part for parts in layers for part in parts if part):
            begins = []
            for task in part:
                begins.append(place)
                sources.append(task.source.ravel() + given)
                offsets.append(task.offset.ravel())
                given += task.source.shape[1]
                place += task.source.size
            made = np.empty((len(part[0].rows), len(part), 3), dtype=np.int64)
            for number, (task, begin) in enumerate(zip(part, begins, strict=True)):
                made[:, number, 0], made[:, number, 2] = task.program, task.rows
                made[:, number, 1] = begin + np.arange(len(made)) * task.source.shape[1]
            tasks.append(made.reshape(-1, 3))
        self._source, self._offset = np.concatenate(sources), np.concatenate(offsets)
        self._arguments = np.empty(place, dtype=np.int64)
        order = schedule(_works(layers), team)
        self._entries = np.concatenate([np.concatenate(tasks)[order.tasks], order.waits], axis=1)
        self._entries[:, 1] *= self._arguments.itemsize
        self._entries[:, 1] += self._arguments.ctypes.data
        # Whole lines of memory: nothing else is written beside a number.
        self._numbers = np.zeros((len(layers) + 1) * LINE, dtype=np.int64)
        first = self._numbers.ctypes.data + -self._numbers.ctypes.data % (8 * LINE)
        head = [team, first, self._entries.ctypes.data, *order.begins]
        self._table = np.array(head, dtype=np.int64)
        place = self._table.ctypes.data
        self._start = threads.Prepared(threads.Launch(driver(), place, 1, threads.SHARES, team))

    def run(self, given: Table) -> None:
        """Run everything.

        Args:
            given: the arguments of every program, one after the other.
        """
        np.take(given, self._source, out=self._arguments, mode="clip")
        self._arguments += self._offset
        self._numbers.fill(0)
        self._start.run()


def _works(layers: Sequence[Parts]) -> tuple[Work, ...]:
    """What there is to do, its costs in parts of the dearest piece.

    In rough numbers: sequences that are nearly as long then have the same schedule.
    """
    costs = []
    for before, inside, after in layers:
        first, every, last = (sum(task.work for task in part) for part in (before, inside, after))
        costs.append((first, every // len(inside[0].rows), last))
    unit = max(1, max(every for _, every, _ in costs) // ROUGHLY)
    return tuple(
        Work(len(before), len(inside[0].rows), len(inside), len(after),
             (first // unit, every // unit, last // unit))
        for (before, inside, after), (first, every, last) in zip(layers, costs, strict=True)
    )  # fmt: skip


class _Known(threading.local):
    """What each thread of Python has run."""

    def __init__(self) -> None:
        self.fronts: dict[object, Fronts] = {}


_known = _Known()


def fronts(layers: tuple[Parts, ...], team: int) -> Fronts:
    """The programs of a stack, as this thread of Python has run them before, or new."""
    found = _known.fronts.get((layers, team))
    if found is None:
        if len(_known.fronts) >= KINDS:
            _known.fronts.clear()
        found = _known.fronts[layers, team] = Fronts(layers, team)
    return found


@lru_cache(maxsize=4)
def _driver(limit: str) -> tuple[jit.Code, int]:
    threads.provide()
    code = jit.compile_ir(_driver_module(), limit)
    return code, code.address(ENTRY)


def driver() -> int:
    """Address of the loop over entries."""
    return _driver(jit.features_limit())[1]


def _driver_module() -> str:
    module = ir.Module("cellwright_fronts")
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])
    function = ir.Function(module, kind, ENTRY)
    wait = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), WAIT)
    table, _, _, share, shares = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    e = Emitter(module, b, Lanes(False))

    def place(base: Value, number: Value) -> Value:
        return b.gep(base, [number], source_etype=I64)

    def number(base: Value, at: Value) -> Value:
        return e.load(place(base, at), I64, 8)

    expected, numbers, entries = (number(table, e.i64(k)) for k in range(len(HEAD)))
    numbers, entries = b.inttoptr(numbers, POINTER), b.inttoptr(entries, POINTER)
    # With another number of threads than was planned for, the first runs everything.
    planned = b.icmp_signed("==", shares, expected)
    mine = b.add(e.i64(len(HEAD)), b.select(planned, share, expected))
    first, end = number(table, mine), number(table, b.add(mine, e.i64(1)))
    nothing = b.and_(b.not_(planned), b.icmp_signed(">", share, e.i64(0)))
    with e.loop(first, b.select(nothing, first, end)) as which:
        entry = place(entries, b.mul(which, e.i64(len(FIELDS))))
        program, arguments, rows, below, needs_below, own, needs_own, done = (
            number(entry, e.i64(k)) for k in range(len(FIELDS))
        )
        own = place(numbers, b.mul(own, e.i64(LINE)))
        b.call(wait, [place(numbers, b.mul(below, e.i64(LINE))), needs_below])
        b.call(wait, [own, needs_own])
        callee = Callee(b.inttoptr(program, POINTER), kind)
        b.call(callee, [b.inttoptr(arguments, POINTER), e.i64(0), rows, e.i64(0), e.i64(1)])
        b.atomic_rmw("xchg", own, done, "release")
    b.ret_void()
    return str(module)
