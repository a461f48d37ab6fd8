"""Compiled programs, their arguments, and memory that is used again from call to call."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, product, sharing, threads
from cellwright.engines.cpu.arrays import Kind
from cellwright.engines.cpu.members import Arguments, Script, Stride, pad
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.ordered import LARGE_PACK, OrderedWeights, Weight
from cellwright.engines.cpu.program import ENTRY, NUMBERS, Program, weights_slot
from cellwright.engines.cpu.rivals import Rivals


@dataclass(frozen=True)
class Bound:
    """A program with arguments and working memory of its own.

    Attributes:
        compiled: the program.
        enter: says where arrays and weights are from now on.
        arguments: where the addresses of arrays stand, ``slots`` tells at which place.
        launches: to put the weights in order, if it has any, and to run it.
        held: the memory.
    """

    compiled: Compiled
    enter: Callable[[Addresses, Sequence[Tensor]], None]
    arguments: ctypes.Array[ctypes.c_int64]
    slots: Mapping[str, int]
    launches: Sequence[threads.Launch]
    held: Sequence[Tensor]


Addresses = dict[str, int]
"""Addresses of arrays by the names of a program's slots."""

_extents = struct.Struct("4q").pack_into  # steps, rows, reverse, ring


class Compiled:
    """A program as machine code, and its arguments as far as they stay from call to call."""

    def __init__(self, program: Program, text: str, double: bool, weights: Mapping[str, Weight]):
        self.program, self.double, self.parameters = program, double, weights
        self.dtype = torch.float64 if double else torch.float32
        self.width = 8 if double else 4
        self.code = jit.compile_ir(text)
        self.address = self.code.address(ENTRY)
        self.weights = OrderedWeights(program, weights, double)
        self.packed = self.weights.elements
        names = [
            weights_slot(stage, number)
            for stage, members in enumerate(program.groups)
            for number in range(len(members))
        ]
        self.work = self.weights.work
        self._begins = {
            program.slots[name]: begin * self.width
            for name, begin in zip(names, self.weights.begins, strict=True)
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
        self._widest = max((program.sizes[node.size] for node in program.stores), default=1)
        of_units = [node for node, each in program.sources.items() if each.kind is Kind.ROWS]
        self._read = sum(program.sizes[node.size] for node in of_units)
        self._local = threading.local()
        self._rivals: dict[tuple[int, ...], Rivals] = {}

    def run(
        self, at: Addresses, packed: int, steps: int, rows: int, *, reverse: bool = False,
        ring: bool = False,
    ) -> None:  # fmt: skip
        """Run it over all steps.

        Args:
            at: addresses of its arrays.
            packed: what :meth:`OrderedWeights.pack` has returned.
            steps, rows: extents of the loop.
            reverse: steps are taken from the last to the first.
            ring: only two steps of each state are kept.
        """
        kind = rows, threads.count(), steps.bit_length()
        other = sharing.other_way(self.work, steps, rows)
        rivals = None if other is None else self._rivals.setdefault(kind, Rivals())
        number, begin = rivals.choose() if rivals else 0, perf_counter()
        how, team = other if other and number else self._way(steps, rows)
        self._take_temporaries(at, rows, team if how == threads.SHARES else 1)
        arguments = self._arguments(at, packed, steps, rows, reverse, ring)
        threads.launch(self.address, arguments, rows, how, team)
        if rivals is not None:
            rivals.note(number, (perf_counter() - begin) / steps)

    def task(
        self, at: Addresses, packed: int, steps: int, rows: int, *, reverse: bool = False,
        ring: bool = False,
    ) -> threads.Task:  # fmt: skip
        """The same as a task of a script, with arguments of its own."""
        how, team = self._way(steps, rows)
        self._take_temporaries(at, rows, team if how == threads.SHARES else 1)
        own: dict[str, Any] = {}
        self._arguments(at, packed, steps, rows, reverse, ring, own)
        brief = rows * self.work * steps < sharing.ALONE_BELOW
        return threads.Task(own["arguments"], "run", self.address, rows, how, team, brief)

    def task_of_sums(self, at: Addresses, steps: int, rows: int, *, reverse: bool) -> threads.Task:
        """As :meth:`run_sums`, as a task of a script."""
        own: dict[str, Any] = {}
        self._arguments(at, 0, steps, rows, reverse, False, own)
        team = self._team_of_sums(steps, rows)
        how = threads.SHARES
        return threads.Task(own["arguments"], "run", self.address, rows, how, team, team == 1)

    def _way(self, steps: int, rows: int) -> tuple[int, int]:
        """As :func:`way`, also of a program without products."""
        if self.work:
            return sharing.way(self.work, steps, rows)
        team = threads.count()
        few = rows < 2 * team or rows * steps * self._widest < sharing.POINTWISE_ALONE_BELOW
        return threads.ROWS, 1 if few else team

    def add_to(
        self, script: Script, at: Addresses, strides: dict[str, Stride], packed: int,
        steps: int, rows: int, *, reverse: bool = False, ring: bool = False,
    ) -> None:  # fmt: skip
        """Let a script run it for every member; the tensors have an axis of members in front.

        Args:
            script: to add it to.
            strides: how the arrays' addresses move.
            packed: what :meth:`OrderedWeights.pack_in` has returned.
            at, steps, rows, reverse, ring: as in :meth:`run`.
        """
        arguments = self.arguments_in(
            script, at, strides, packed, steps, rows, reverse=reverse, ring=ring
        )
        slots, moves = self.program.slots, {}
        if script.members > 1:
            moves = {slots[name]: strides[name] for name in self._pointed if name in strides}
            moves |= dict.fromkeys(self._begins, self.weights.apart)
        work = rows * self.work * steps
        script.add(self.address, rows, arguments, len(slots), moves, work)

    def arguments_in(
        self, script: Script, at: Addresses, strides: dict[str, Stride], packed: int,
        steps: int, rows: int, *, reverse: bool = False, ring: bool = False,
    ) -> Arguments:  # fmt: skip
        """Its arguments in a script, whose working memory it takes; to be copied.

        Args:
            script, at, strides, packed, steps, rows, reverse, ring: as in :meth:`add_to`.
        """
        for _, name, stride in (*self._temporaries, *self._words):
            at[name] = script.take_apart(name, rows * stride, self.dtype)
            strides[name] = Stride(0, pad(rows * stride) * self.width)
        self._arguments(at, packed, steps, rows, reverse, ring)
        found: Arguments = self._local.arguments
        return found

    def run_rows(self, at: Addresses, steps: int, rows: int, *, reverse: bool = False) -> None:
        """Run a program without products; the rows are shared out."""
        self._take_temporaries(at, rows, 1)
        arguments = self._arguments(at, 0, steps, rows, reverse, False)
        team = threads.count() if rows * self._widest >= sharing.POINTWISE_ALONE_BELOW else 1
        threads.launch(self.address, arguments, rows, threads.ROWS, team)

    def run_sums(self, at: Addresses, steps: int, rows: int, *, reverse: bool) -> None:
        """Run a program of sums, whose units are shared out without barriers.

        They are added to what lies in the arrays of the sums.
        """
        arguments = self._arguments(at, 0, steps, rows, reverse, False)
        team = self._team_of_sums(steps, rows)
        threads.launch(self.address, arguments, rows, threads.SHARES, team)

    def _team_of_sums(self, steps: int, rows: int) -> int:
        return threads.count() if rows * steps * self._read >= sharing.SUMS_ALONE_BELOW else 1

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
            base = self.weights.pack(weights, "weights")
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
        return not self.weights.in_blocks

    def bind(
        self, weights: Sequence[Tensor], steps: int, rows: int, *, reverse: bool = False,
        ring: bool = False, way: tuple[int, int] | None = None,
    ) -> Bound:  # fmt: skip
        """The same as packing and :meth:`run`, with memory of its own for these extents.

        Args:
            weights: of a call, contiguous; others may follow.
            steps, rows, reverse, ring: as in :meth:`run`.
            way: what is shared out among how many threads, if not as in :meth:`run`.
        """
        how, team = way or self._way(steps, rows)
        values, place, held = self._room(rows, team if how == threads.SHARES else 1)
        _extents(values, self._extents_at, steps, rows, reverse, 1 if ring else -1)
        brief = rows * self.work * steps < sharing.ALONE_BELOW
        launches = [threads.Launch(self.address, place, rows, how, team, brief)]
        place_weights: Callable[[Sequence[Tensor]], None] | None = None
        if self.packed:
            place_weights, packer, copies = self.weights.bind(held[0], weights)
            most = threads.count() if self.packed > LARGE_PACK and way is None else 1
            launches.insert(0, threads.Launch(packer, copies, 1, threads.SHARES, most, brief))
        fill, at_pointers, names = self._pointers, self._pointers_at, self._pointed
        fixed = {name: values[self.program.slots[name]] for name in self._own_slots()}

        def enter(at: Addresses, weights: Sequence[Tensor]) -> None:
            if place_weights is not None:
                place_weights(weights)
            at |= fixed
            fill(values, at_pointers, *[at[name] for name in names])

        return Bound(self, enter, values, self.program.slots, launches, held)

    def _own_slots(self) -> list[str]:
        return [name for _, name, _ in (*self._temporaries, *self._words)]

    def _arguments(
        self, at: Addresses, packed: int, steps: int, rows: int, reverse: bool, ring: bool,
        own: dict[str, Any] | None = None,
    ) -> int:  # fmt: skip
        """The address of the filled arguments; every thread of Python has its own.

        Args:
            at, packed, steps, rows, reverse, ring: as for :meth:`run`.
            own: where other arguments than the thread's are, or will be.
        """
        local = self._local.__dict__ if own is None else own
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
