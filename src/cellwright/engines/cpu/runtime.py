"""Compiled programs, their arguments, and memory that is used again from call to call."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, outer, packing, product, threads
from cellwright.engines.cpu.members import Script, Stride, by_member, pad
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.program import ENTRY, NUMBERS, Program, weights_slot

SHARE_FROM = 120_000
"""Multiplications in a step from which the units of a small batch are shared out."""

LARGE_WEIGHTS, MANY_ROWS = 300_000, 48
"""Weights that do not fit a processor's own cache are better shared out than read by every
thread, unless each thread has many rows to use them for."""

ALONE_BELOW = 4_000_000
"""Multiplications in a whole run below which one thread does it."""

POINTWISE_ALONE_BELOW = 16_384
"""Elements of a pass without products below which one thread does it."""


@dataclass(frozen=True)
class Weight:
    """Where a parameter lies among the weights of a call: rows from ``start`` of one tensor."""

    tensor: int
    start: int
    columns: int


@dataclass(frozen=True)
class Bound:
    """A program with arguments and working memory of its own.

    Attributes:
        enter: says where arrays and weights are from now on.
        launches: to put the weights in order and to run it.
        held: the memory.
    """

    enter: Callable[[Addresses, Sequence[Tensor]], None]
    launches: Sequence[threads.Launch]
    held: Sequence[Tensor]


Addresses = dict[str, int]
"""Addresses of arrays by the names of a program's slots."""

_extents = struct.Struct("4q").pack_into  # steps, rows, reverse, ring


def way(work: int, steps: int, rows: int) -> tuple[int, int]:
    """What of a loop is shared out among how many threads: ``threads.ROWS`` or ``threads.SHARES``.

    Args:
        work: multiplications of a row in a step.
        steps, rows: extents of the loop.
    """
    team = threads.count()
    if rows * work * steps < ALONE_BELOW:
        return threads.ROWS, 1
    if rows >= 2 * team and (rows >= MANY_ROWS * team or work < LARGE_WEIGHTS):
        return threads.ROWS, team
    return threads.SHARES, team if rows * work >= SHARE_FROM else 1


class Compiled:
    """A program as machine code, and its arguments as far as they stay from call to call."""

    def __init__(self, program: Program, text: str, double: bool, weights: Mapping[str, Weight]):
        self.program, self.double, self.parameters = program, double, weights
        self.dtype = torch.float64 if double else torch.float32
        self.width = 8 if double else 4
        self.code = jit.compile_ir(text)
        self.address = self.code.address(ENTRY)
        groups = [g for members in program.groups for g in members]
        self.copies, begins, self.packed = packing.plan_copies(
            groups, program.sizes, 8 if double else 16, program.bf16
        )
        names = [
            weights_slot(stage, number)
            for stage, members in enumerate(program.groups)
            for number in range(len(members))
        ]
        self.work = sum(copy.units * copy.depth for copy in self.copies)
        self._begins = {
            program.slots[name]: begin * self.width
            for name, begin in zip(names, begins, strict=True)
        }
        self._temporaries = [
            (program.slots[name], name, stride) for name, stride in program.temporaries.items()
        ]
        self._words = [
            (program.slots[array.slot], array.slot, array.stride)
            for places in program.words
            for array in places.values()
        ]
        # Behind the weights stand the numbers, and behind those the arrays.
        first = program.slots[NUMBERS[0]]
        self._pointed = list(program.slots)[first + len(NUMBERS) :]
        self._pointers = struct.Struct(f"{len(self._pointed)}q").pack_into
        self._extents_at, self._pointers_at = 8 * first, 8 * (first + len(NUMBERS))
        self._weights = [weights[copy.parameter] for copy in self.copies]
        self._in_blocks = any(copy.matrix.blocks > 1 for copy in self.copies)
        self._packer = helper("pack", double, program.bf16) if self.packed else 0
        self._widest = max((program.sizes[node.size] for node in program.stores), default=1)
        self._local = threading.local()

    def run(
        self, at: Addresses, packed: int, steps: int, rows: int, *, reverse: bool = False,
        ring: bool = False,
    ) -> None:  # fmt: skip
        """Run it over all steps.

        Args:
            at: addresses of its arrays.
            packed: what :meth:`pack` has returned.
            steps, rows: extents of the loop.
            reverse: steps are taken from the last to the first.
            ring: only two steps of each state are kept.
        """
        how, team = self._way(steps, rows)
        self._take_temporaries(at, rows, team if how == threads.SHARES else 1)
        arguments = self._arguments(at, packed, steps, rows, reverse, ring)
        threads.launch(self.address, arguments, rows, how, team)

    def _way(self, steps: int, rows: int) -> tuple[int, int]:
        """As :func:`way`, also of a program without products."""
        if self.work:
            return way(self.work, steps, rows)
        team = threads.count()
        few = rows < 2 * team or rows * steps * self._widest < POINTWISE_ALONE_BELOW
        return threads.ROWS, 1 if few else team

    def pack_in(self, script: Script, weights: Sequence[Tensor], memory_name: str) -> int:
        """Let a script put every member's weights in order; else as :meth:`pack`."""
        if not self.packed:
            return 0
        packed = script.take(memory_name, self.packed, self.dtype).data_ptr()
        # Those of a lane are found as that lane has left them.
        local = self._local.__dict__.setdefault(memory_name + script.place, {})
        held = self._find_copies(local, packed, weights)
        moves = self._moves(weights, held, self._apart) if script.members > 1 else {}
        script.add(self._packer, 1, local["copies"], len(local["copies"]), moves, 0)
        script.held += held
        return packed

    def add_to(
        self, script: Script, at: Addresses, strides: dict[str, Stride], packed: int,
        steps: int, rows: int, *, reverse: bool = False, ring: bool = False,
    ) -> None:  # fmt: skip
        """Let a script run it for every member; the tensors have an axis of members in front.

        Args:
            script: to add it to.
            strides: how the arrays' addresses move.
            packed: what :meth:`pack_in` has returned.
            at, steps, rows, reverse, ring: as in :meth:`run`.
        """
        for _, name, stride in (*self._temporaries, *self._words):
            at[name] = script.take_apart(name, rows * stride, self.dtype)
            strides[name] = 0, pad(rows * stride) * self.width
        self._arguments(at, packed, steps, rows, reverse, ring)
        slots, moves = self.program.slots, {}
        if script.members > 1:
            moves = {slots[name]: strides[name] for name in self._pointed if name in strides}
            moves |= dict.fromkeys(self._begins, self._apart)
        arguments, work = self._local.arguments, rows * self.work * steps
        script.add(self.address, rows, arguments, len(slots), moves, work)

    @property
    def _apart(self) -> Stride:
        """How packed weights move."""
        return 0, pad(self.packed) * self.width

    def _moves(
        self, weights: Sequence[Tensor], dense: Sequence[Tensor], apart: Stride
    ) -> dict[int, Stride]:
        """How the addresses in the packing's arguments move."""
        made, fields = iter(dense), len(packing.ARGUMENTS)
        moves: dict[int, Stride] = {}
        for number, (copy, weight) in enumerate(zip(self.copies, self._weights, strict=True)):
            source = weights[weight.tensor] if copy.matrix.blocks == 1 else next(made)
            moves[1 + fields * number] = by_member(source)
            moves[1 + fields * number + packing.ARGUMENTS.index("target")] = apart
        return moves

    def run_rows(self, at: Addresses, steps: int, rows: int, *, reverse: bool = False) -> None:
        """Run a program without products; the rows are shared out."""
        self._take_temporaries(at, rows, 1)
        arguments = self._arguments(at, 0, steps, rows, reverse, False)
        team = threads.count() if rows * self._widest >= POINTWISE_ALONE_BELOW else 1
        threads.launch(self.address, arguments, rows, threads.ROWS, team)

    def run_sums(self, at: Addresses, steps: int, rows: int, *, reverse: bool) -> None:
        """Run a program of sums, whose units are shared out without barriers.

        They are added to what lies in the arrays of the sums.
        """
        arguments = self._arguments(at, 0, steps, rows, reverse, False)
        team = threads.count() if rows * steps > 2_000 else 1
        threads.launch(self.address, arguments, rows, threads.SHARES, team)

    def prepare(
        self, weights: Sequence[Tensor], rows: int, shares: int
    ) -> tuple[ctypes.Array[ctypes.c_int64], int, list[Tensor]]:
        """Arguments for single steps with these weights: all but the arrays of a step.

        Args:
            weights: contiguous.
            rows: of the batch.
            shares: into which the units will be shared out at most.

        Returns:
            the arguments, their address, and the memory that they point into.
        """
        slots = self.program.slots
        values, place_of_values, held = self._room(rows, shares)
        if self.packed:
            base = self.pack(weights, "weights")
            ctypes.memmove(held[0].data_ptr(), base, self.packed * self.width)
        _extents(values, self._extents_at, 1, rows, False, 1)
        for name, weight in self.parameters.items():
            if f"parameter.{name}" in slots:
                skipped = weight.start * weight.columns * self.width
                address = weights[weight.tensor].data_ptr() + skipped
                values[slots[f"parameter.{name}"]] = address
        return values, place_of_values, held

    def _room(
        self, rows: int, shares: int
    ) -> tuple[ctypes.Array[ctypes.c_int64], int, list[Tensor]]:
        """Arguments with memory of their own, their address, and the memory.

        It is for packed weights, which come first, and for values that later stages read.
        """
        count = len(self.program.slots)
        # Behind the arguments, the barrier's two numbers on cache lines of their own.
        values = (ctypes.c_int64 * (count + 32))()
        place_of_values = ctypes.addressof(values)
        values[self.program.slots["barrier"]] = place_of_values + 8 * (count + 8)
        held = [torch.empty(max(self.packed, 1), dtype=self.dtype)]
        for place, begin in self._begins.items():
            values[place] = held[0].data_ptr() + begin
        sizes = [(place, rows * stride) for place, _, stride in self._temporaries]
        sizes += [(place, shares * rows * stride) for place, _, stride in self._words]
        for place, elements in sizes:
            held.append(torch.empty(elements, dtype=self.dtype))
            values[place] = held[-1].data_ptr()
        return values, place_of_values, held

    @property
    def can_bind(self) -> bool:
        """Whether :meth:`bind` is possible: no matrix has to be made dense at every call."""
        return not self._in_blocks

    def bind(
        self, weights: Sequence[Tensor], steps: int, rows: int, *, reverse: bool = False,
        ring: bool = False, alone: bool = False,
    ) -> Bound:  # fmt: skip
        """The same as :meth:`pack` and :meth:`run`, with memory of its own for these extents.

        Args:
            weights: of a call, contiguous; others may follow.
            steps, rows, reverse, ring: as in :meth:`run`.
            alone: one thread does it.
        """
        how, team = (threads.ROWS, 1) if alone else self._way(steps, rows)
        values, place, held = self._room(rows, team if how == threads.SHARES else 1)
        _extents(values, self._extents_at, steps, rows, reverse, 1 if ring else -1)
        brief = rows * self.work * steps < ALONE_BELOW
        launches = [threads.Launch(self.address, place, rows, how, team, brief)]
        base = held[0].data_ptr()
        local: dict[str, Any] = {}
        read = sorted({each.tensor for each in self._weights})
        placed: list[int] = []

        def place_weights(weights: Sequence[Tensor]) -> None:
            places = [weights[tensor].data_ptr() for tensor in read]
            if placed != places:
                placed[:] = places
                self._place_copies(local, [base, *map(Tensor.data_ptr, weights)], weights, held)

        if self.packed:
            place_weights(weights)
            most = threads.count() if self.packed > 100_000 and not alone else 1
            packing = threads.Launch(
                self._packer, local["copies_at"], 1, threads.SHARES, most, brief
            )
            launches.insert(0, packing)
        fill, at_pointers, names = self._pointers, self._pointers_at, self._pointed
        fixed = {name: values[self.program.slots[name]] for name in self._own_slots()}

        def enter(at: Addresses, weights: Sequence[Tensor]) -> None:
            if read:
                place_weights(weights)
            at |= fixed
            fill(values, at_pointers, *[at[name] for name in names])

        return Bound(enter, launches, held)

    def _own_slots(self) -> list[str]:
        return [name for _, name, _ in (*self._temporaries, *self._words)]

    def _arguments(
        self, at: Addresses, packed: int, steps: int, rows: int, reverse: bool, ring: bool
    ) -> int:
        """The address of the filled arguments; every thread of Python has its own."""
        local = self._local.__dict__
        values = local.get("arguments")
        if values is None:
            # Behind the arguments, the barrier's two numbers on cache lines of their own.
            count = len(self.program.slots)
            values = local["arguments"] = (ctypes.c_int64 * (count + 32))()
            local["address"] = ctypes.addressof(values)
            values[self.program.slots["barrier"]] = local["address"] + 8 * (count + 8)
        for place, begin in self._begins.items():
            values[place] = packed + begin
        _extents(values, self._extents_at, steps, rows, reverse, 1 if ring else -1)
        self._pointers(values, self._pointers_at, *[at[name] for name in self._pointed])
        address: int = local["address"]
        return address

    def _take_temporaries(self, at: Addresses, rows: int, shares: int) -> None:
        if self._temporaries:
            # A line of memory apart: at the same place of a page, they drive each other out of the
            # processor's caches.
            line = product.LINE // self.width
            elements = [rows * stride + line for _, _, stride in self._temporaries]
            place = memory.take("temporaries", sum(elements), self.dtype).data_ptr()
            for (_, name, _), taken in zip(self._temporaries, elements, strict=True):
                at[name] = place
                place += taken * self.width
        for _, name, stride in self._words:
            at[name] = memory.take(name, shares * rows * stride, self.dtype).data_ptr()

    def pack(self, weights: Sequence[Tensor], memory_name: str) -> int:
        """Put a call's weights, which are contiguous, in order.

        Args:
            weights: of the call.
            memory_name: of the working memory to put them in.

        Returns:
            the address of the first; 0 if the program has none.
        """
        if not self.packed:
            return 0
        base = memory.take(memory_name, self.packed, self.dtype).data_ptr()
        local = self._local.__dict__
        held = self._find_copies(local, base, weights)
        team = threads.count() if self.packed > 100_000 else 1
        threads.launch(self._packer, local["copies_at"], 1, threads.SHARES, team)
        del held  # until here it has been read
        return base

    def _find_copies(
        self, local: dict[str, Any], base: int, weights: Sequence[Tensor]
    ) -> list[Tensor]:
        """Say where the weights go, unless it has been said; returns matrices made dense."""
        places = [base, *[each.data_ptr() for each in weights]]
        held: list[Tensor] = []
        if local.get("places") != places or self._in_blocks:
            self._place_copies(local, places, weights, held)
        return held

    def _place_copies(
        self,
        local: dict[str, Any],
        places: list[int],
        weights: Sequence[Tensor],
        held: list[Tensor],
    ) -> None:
        """Say where the weights are and where they go; dense matrices are added to ``held``."""
        base, *bases = places
        fields = len(packing.ARGUMENTS)
        values = local.get("copies")
        if values is None:
            values = local["copies"] = (ctypes.c_int64 * (1 + fields * len(self.copies)))()
            local["copies_at"] = ctypes.addressof(values)
            values[0] = len(self.copies)
            for number, (copy, weight) in enumerate(zip(self.copies, self._weights, strict=True)):
                columns = weight.columns * copy.matrix.blocks
                strides = (1, columns) if copy.transposed else (columns, 1)
                values[1 + fields * number : 1 + fields * (number + 1)] = [
                    0, *strides, copy.units, copy.depth, 0, copy.step, copy.block_stride,
                    copy.panel_row, copy.blocks,
                ]  # fmt: skip
        for number, (copy, weight) in enumerate(zip(self.copies, self._weights, strict=True)):
            place = 1 + fields * number
            skipped = copy.first * values[place + 1]
            if copy.matrix.blocks == 1:
                skipped += weight.start * weight.columns
                values[place] = bases[weight.tensor] + skipped * self.width
            else:
                held.append(packing.dense(weights[weight.tensor], weight.start, copy))
                values[place] = held[-1].data_ptr() + skipped * self.width
            values[place + 5] = base + copy.begin * self.width
        local["places"] = places


@lru_cache(maxsize=16)
def _helper(name: str, double: bool, bf16: bool, limit: str) -> tuple[jit.Code, int]:
    product.provide(double, bf16)
    emit = packing.emit_pack if name == "pack" else outer.emit_outer
    text = emit(double, bf16)
    code = jit.compile_ir(text, limit)
    return code, code.address(ENTRY)


def helper(name: str, double: bool, bf16: bool) -> int:
    """Address of a loop that is the same for all cells: "pack" or "outer"."""
    return _helper(name, double, bf16, jit.features_limit())[1]
