"""A population: the programs of a call, run for every member.

A script is a list of programs with the arguments that they have for the first member, and how far
each argument moves from member to member, or from thread to thread. The generated driver, in
pseudo-code (``run(script, -, members, share, shares)``):

    for member in this thread's share of the members:
        for each program:
            arguments = first + member * by_member + thread * by_thread
            program(arguments, 0, rows, 0, 1)

So a member's bits are those that it has alone, and its packed weights and hoisted values are in
the memory, and the cache, of the thread that works on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.ops import I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.program import ENTRY
from cellwright.engines.cpu.starting import Callee

HEAD = ("programs", "space", "space_by_thread")
FIELDS = ("program", "rows", "count", "first")
"""Of each program: its address, rows, number of arguments, where those of the first member lie.

Behind the first member's arguments are the distances by member, then those by thread.
"""

ALONE_BELOW = 200_000
"""Multiplications in a script below which one thread carries it out."""

Arguments = ctypes.Array[ctypes.c_int64]


class Stride(NamedTuple):
    """How an address moves.

    Attributes:
        by_member, by_thread: bytes from one to the next.
        inside: the tensor of a call that it points into; None for memory of the script's own.
    """

    by_member: int
    by_thread: int
    inside: Tensor | None = None


@dataclass(frozen=True)
class Placed:
    """A script as the driver reads it; it may be carried out again and again.

    Attributes:
        values: what the driver reads.
        launch: of the driver.
        inside: places in ``values`` with addresses inside of a call's tensors, and the tensors.
        held: the working memory.
    """

    values: ctypes.Array[ctypes.c_int64]
    launch: threads.Launch
    inside: Sequence[tuple[int, Tensor]]
    held: Sequence[object]


class Script:
    """Programs for each of some members, one after the other.

    Args:
        members: how many.

    Attributes:
        place: what tells its working memory from that of other scripts.
    """

    place = ""

    def __init__(self, members: int):
        self.members = members
        self.team = max(1, min(threads.count(), members))
        self.work = 0  # multiplications
        self.held: list[object] = []  # what the arguments point into
        self._programs: list[tuple[int, int, list[int]]] = []
        self._inside: list[tuple[int, Tensor]] = []
        self._longest = 0

    @property
    def count(self) -> int:
        """How many programs it has."""
        return len(self._programs)

    def take(self, name: str, elements: int, dtype: torch.dtype) -> Tensor:
        """Working memory of each thread, ``pad(elements)`` apart; see :meth:`Memory.take`."""
        taken = memory.take(name, pad(elements) * self.team, dtype)
        self.held.append(taken)
        return taken

    def take_apart(self, name: str, elements: int, dtype: torch.dtype) -> int:
        """The address of working memory that only the next program uses.

        The threads are at different programs, so each program has memory of its own.
        """
        return self.take(f"{name} of program {self.count}", elements, dtype).data_ptr()

    def add(
        self, program: int, rows: int, arguments: Arguments, count: int,
        strides: Mapping[int, Stride], work: int,
    ) -> None:  # fmt: skip
        """Run a program too.

        Args:
            program: its address.
            rows: of one member.
            arguments: of the first member on the first thread; they are copied.
            count: how many.
            strides: how far each argument moves; those that are not there do not.
            work: multiplications of one member.
        """
        numbers = [*arguments[:count], *[0] * (2 * count)]
        behind = sum(len(each) for *_, each in self._programs)
        for place, stride in strides.items():
            numbers[count + place] = stride.by_member
            numbers[2 * count + place] = stride.by_thread
            if stride.inside is not None:
                self._inside.append((behind + place, stride.inside))
        self._programs.append((program, rows, numbers))
        self._longest = max(self._longest, count)
        self.work += work * self.members

    def run(self) -> None:
        """Carry everything out, and forget it."""
        placed = self.placed()  # stays until it has been read
        launch = placed.launch
        threads.launch(launch.address, launch.arguments, launch.rows, launch.how, launch.most)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._programs, self._inside, self._longest, self.work, self.held = [], [], 0, 0, []

    def placed(self) -> Placed:
        """Everything as the driver reads it."""
        begin = len(HEAD) + len(FIELDS) * len(self._programs)
        total = begin + sum(len(numbers) for _, _, numbers in self._programs)
        space = (self._longest + 15) // 8 * 8  # on cache lines of their own
        values = (ctypes.c_int64 * (total + space * self.team))()
        base = ctypes.addressof(values)
        head = [len(self._programs), base + 8 * total, 8 * space]
        behind: list[int] = []
        for program, rows, numbers in self._programs:
            head += [program, rows, len(numbers) // 3, base + 8 * (begin + len(behind))]
            behind += numbers
        values[:total] = [*head, *behind]
        team = self.team if self.work >= ALONE_BELOW else 1
        driver = _driver(jit.features_limit())
        launch = threads.Launch(driver.members, base, self.members, threads.SHARES, team)
        inside = [(begin + place, tensor) for place, tensor in self._inside]
        return Placed(values, launch, inside, self.held)


class OneCall(Script):
    """Programs of one call that runs beside others, with working memory of its own.

    Args:
        whose: the memory is.
    """

    def __init__(self, whose: str):
        super().__init__(1)
        self.place = f" of {whose}"

    def take(self, name: str, elements: int, dtype: torch.dtype) -> Tensor:
        taken = memory.take(name + self.place, elements, dtype)
        self.held.append(taken)
        return taken


def within(tensor: Tensor) -> Tensor:
    """``tensor`` such that the numbers of each member lie one after the other."""
    if tensor.stride(0) == 0 and tensor.shape[0] > 0:
        first = tensor[0]
        return tensor if first.is_contiguous() else first.contiguous().expand(tensor.shape)
    return tensor if tensor[:1].is_contiguous() else tensor.contiguous()


def by_member(tensor: Tensor) -> Stride:
    """How far the address of such a tensor's first number moves."""
    return Stride(tensor.stride(0) * tensor.element_size(), 0, tensor)


def pad(elements: int) -> int:
    """Elements of a thread's part of some memory: whole cache lines."""
    return (elements + 31) // 32 * 32


@dataclass(frozen=True)
class _Driver:
    """The compiled drivers, and where they begin."""

    code: jit.Code
    members: int
    lanes: int


@lru_cache(maxsize=4)
def _driver(limit: str) -> _Driver:
    module = ir.Module("cellwright_members")
    _emit_members(module)
    _emit_lanes(module)
    code = jit.compile_ir(str(module), limit)
    return _Driver(code, code.address(ENTRY), code.address("run_lanes"))


_RUN = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])


def _begin(module: ir.Module, name: str) -> tuple[ir.Function, Emitter]:
    function = ir.Function(module, _RUN, name)
    return function, Emitter(
        module, ir.IRBuilder(function.append_basic_block("entry")), Lanes(False)
    )


def _number(e: Emitter, base: Value, place: Value) -> Value:
    return e.load(e.b.gep(base, [place], source_etype=I64), I64, 8)


def _emit_members(module: ir.Module) -> None:
    """``run(script, -, members, share, shares)``: a script for this share of the members."""
    function, e = _begin(module, ENTRY)
    script, _, members, share, shares = function.args
    b = e.b
    programs, space, apart = (_number(e, script, e.i64(place)) for place in range(len(HEAD)))
    arguments = b.inttoptr(b.add(space, b.mul(share, apart)), POINTER)
    first = b.sdiv(b.mul(share, members), shares)
    end = b.sdiv(b.mul(b.add(share, e.i64(1)), members), shares)
    with e.loop(first, end) as member, e.loop(e.i64(0), programs) as which:
        start = b.add(e.i64(len(HEAD)), b.mul(which, e.i64(len(FIELDS))))
        program, rows, count, at = (
            _number(e, script, b.add(start, e.i64(place))) for place in range(len(FIELDS))
        )
        given = b.inttoptr(at, POINTER)
        with e.loop(e.i64(0), count) as place:
            moved = b.mul(member, _number(e, given, b.add(place, count)))
            apart_ = b.mul(share, _number(e, given, b.add(place, b.mul(count, e.i64(2)))))
            value = b.add(_number(e, given, place), b.add(moved, apart_))
            b.store(value, b.gep(arguments, [place], source_etype=I64), align=8)
        callee = Callee(b.inttoptr(program, POINTER), _RUN)
        b.call(callee, [arguments, e.i64(0), rows, e.i64(0), e.i64(1)])
    b.ret_void()


def _emit_lanes(module: ir.Module) -> None:
    """``run_lanes(lanes, first, end, -, -)``: the programs of these lanes."""
    function, e = _begin(module, "run_lanes")
    lanes, first, end, _, _ = function.args
    b = e.b
    with e.loop(first, end) as which:
        lane = b.inttoptr(_number(e, lanes, which), POINTER)
        with e.loop(e.i64(0), _number(e, lane, e.i64(0))) as number:
            start = b.add(e.i64(1), b.mul(number, e.i64(3)))
            program, at, rows = (_number(e, lane, b.add(start, e.i64(k))) for k in range(3))
            callee = Callee(b.inttoptr(program, POINTER), _RUN)
            b.call(callee, [b.inttoptr(at, POINTER), e.i64(0), rows, e.i64(0), e.i64(1)])
    b.ret_void()


def lanes_driver() -> int:
    """Address of the loop over lanes: ``rows`` are their number.

    Its arguments are the addresses of the lanes, and at each: how many programs there are, then
    the address of each, of its arguments, and its rows.
    """
    return _driver(jit.features_limit()).lanes
