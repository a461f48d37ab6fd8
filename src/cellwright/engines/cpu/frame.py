"""What the code of a program stands in: arguments, the step, addresses of arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from cellwright.engines.cpu.arrays import Array, Index
from cellwright.engines.cpu.ops import I8, I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.program import ENTRY, NUMBERS, Program

TILE_ROWS = 48
"""Rows whose products are computed before their equations."""


class Frame:
    """A function ``run(arguments, first_row, end_row, share, shares)`` under construction.

    Args:
        program: what it runs.
        lanes: the number format.

    Attributes:
        e: the emitter.
        row_from, row_to, share, shares: the function's arguments.
        t: the step in the sequence's own count.
        stage: of the program, that is being emitted.
    """

    stage = 0

    def __init__(self, program: Program, lanes: Lanes):
        self.program = program
        self.lanes = lanes
        for name in NUMBERS:
            program.slot(name)
        self.module = ir.Module("cellwright")
        arguments = [POINTER, I64, I64, I64, I64]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), ENTRY)
        base, self.row_from, self.row_to, self.share, self.shares = function.args
        self._arguments = base
        self.e = Emitter(self.module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
        self._loaded: dict[str, Value] = {}
        self._bases: dict[Array, Value] = {}
        self._passed: Value | None = None
        self._prefetched: dict[Array, int] = {}

    def load_arguments(self) -> None:
        """Load every argument, at the function's start, when all slots are known."""
        for array in self.program.arrays():
            self.program.slot(array.slot)
            if array.initial:
                self.program.slot(array.initial)
        for name, place in self.program.slots.items():
            address = self.e.b.gep(self._arguments, [self.e.i64(place)], source_etype=I64)
            self._loaded[name] = self.e.load(address, I64, 8)

    def argument(self, name: str) -> Value:
        """An argument as a whole number."""
        return self._loaded[name]

    def address(self, name: str) -> Value:
        """An argument as an address."""
        return self.e.b.inttoptr(self.argument(name), POINTER)

    def enter_step(self, i: Value) -> None:
        """Begin turn ``i`` of the time loop: which step it is, and where its arrays begin."""
        e, b = self.e, self.e.b
        last = b.sub(self.argument("steps"), e.i64(1))
        position = b.sub(last, i) if self.program.backward else i
        backwards = b.icmp_signed("!=", self.argument("reverse"), e.i64(0))
        self.t = b.select(backwards, b.sub(last, position), position)
        self._before = b.select(backwards, b.add(self.t, e.i64(1)), b.sub(self.t, e.i64(1)))
        following = b.sub(last, b.add(i, e.i64(1))) if self.program.backward else b.add(i, e.i64(1))
        self._following = b.select(backwards, b.sub(last, following), following)
        self._first = b.icmp_signed("==", position, e.i64(0))
        self._parity = b.and_(i, e.i64(1))
        self._bases = {}
        for array in self.program.arrays():
            self.base(array)

    def base(self, array: Array) -> Value:
        """Address of an array's first row at this step."""
        if array not in self._bases:
            b = self.e.b
            start = self.address(array.slot)
            rows = b.mul(self.argument("rows"), self.e.i64(array.stride))
            element = I8 if array.boolean else self.lanes.element

            def moved(base: Value, step: Value) -> Value:
                return b.gep(base, [b.mul(step, rows)], source_etype=element)

            if array.index is Index.TIME:
                start = moved(start, b.and_(self.t, self._ring(array)))
            elif array.index is Index.BEFORE:
                initial = self.address(array.initial)
                inside = moved(start, b.and_(self._before, self._ring(array)))
                start = b.select(self._first, initial, inside)
            elif array.index is Index.OWN:
                start = moved(start, self.share)
            elif array.index is not Index.NONE:
                parity = self._parity
                if array.index is Index.ODD:
                    parity = b.xor(parity, self.e.i64(1))
                start = moved(start, parity)
            self._bases[array] = start
        return self._bases[array]

    def prefetch(self, array: Array, place: Value, *, write: bool = False) -> None:
        """Bring near, for the following step, what lies at ``place`` of an array at this step.

        What is read or written step after step is new to the processor's caches every time. The
        first stage that comes to an array does it for those that follow. Where rows are those of
        all steps, it is what lies there of the rows that follow, behind products.
        """
        if array.boolean:
            return
        b = self.e.b
        if not self.program.looped and any(self.program.groups):
            if array.slot not in self.program.temporaries:
                ahead = self.e.at(place, self.e.i64(TILE_ROWS * array.stride))
                self.e.prefetch(ahead, write=write)
            return
        if array.index is not Index.TIME:
            return
        if self._prefetched.setdefault(array, self.stage) != self.stage:
            return
        ring = self._ring(array)
        steps = b.sub(b.and_(self._following, ring), b.and_(self.t, ring))
        rows = b.mul(self.argument("rows"), self.e.i64(array.stride))
        self.e.prefetch(
            b.gep(place, [b.mul(steps, rows)], source_etype=self.lanes.element), write=write
        )

    def _ring(self, array: Array) -> Value:
        """All ones, or 1 for states of which only two steps are kept."""
        if array.slot.startswith("state."):
            return self.argument("ring")
        return self.e.i64(-1)

    @contextmanager
    def some_rows(self, count: int) -> Iterator[None]:
        """Inside, the rows are so many of them, and then the following."""
        e, b = self.e, self.e.b
        first, end = self.row_from, self.row_to
        with e.loop(first, end, count) as row:
            self.row_from, self._passed = row, b.sub(row, first)
            self.row_to = b.add(row, self.at_most(b.sub(end, row), count))
            yield
        self.row_from, self.row_to, self._passed = first, end, None

    @contextmanager
    def few_rows(self, count: int) -> Iterator[None]:
        """The same inside of a step: each of the rows keeps its place everywhere."""
        first, end = self.row_from, self.row_to
        with self.e.loop(first, end, count) as row:
            left = self.e.b.sub(end, row)
            self.row_from, self.row_to = row, self.e.b.add(row, self.at_most(left, count))
            yield
        self.row_from, self.row_to = first, end

    def offset(self, array: Array, row: Value) -> Value:
        """Elements from an array's first row to the first unit of another."""
        b = self.e.b
        if self._passed is not None and array.slot in self.program.temporaries:
            row = b.sub(row, self._passed)  # in the place of the rows before
        return b.add(b.mul(row, self.e.i64(array.stride)), self.e.i64(array.offset))

    def shared(self, count: int) -> tuple[Value, Value]:
        """First and end of this share of that many things."""
        e, b = self.e, self.e.b
        first = b.sdiv(b.mul(self.share, e.i64(count)), self.shares)
        following = b.add(self.share, e.i64(1))
        return first, b.sdiv(b.mul(following, e.i64(count)), self.shares)

    def mask(self, units: int, step: int, unit: Value) -> Value | None:
        """The lanes that are units, where blocks of ``step`` units do not come out even."""
        if units % step == 0:
            return None
        return self.e.lanes_below(self.e.b.sub(self.e.i64(units), unit))

    def at_most(self, count: Value, limit: int) -> Value:
        """The lesser of a count and a limit."""
        b = self.e.b
        return b.select(b.icmp_signed("<", count, self.e.i64(limit)), count, self.e.i64(limit))
