"""Calls whose programs are written into a script first: populations, and calls side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cellwright.engines.cpu.jobs import Job
from cellwright.engines.cpu.members import Script, Stride, by_member, pad, within
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.runtime import Addresses, Compiled
from cellwright.engines.cpu.slots import Packed, Slots
from cellwright.engines.protocol import Call
from cellwright.ir import Node

if TYPE_CHECKING:
    from cellwright.engines.cpu.matrices import Product


class Scripted(Slots):
    """As :class:`Slots`; programs that are started wait for the script to run.

    Args:
        call: one recurrence.
        script: where its programs are written.

    Attributes:
        strides: how addresses move from member to member, or from thread to thread.
    """

    team = 1  # a call's rows are all of one thread

    def __init__(self, call: Call, script: Script):
        self.script = script
        self.strides: dict[str, Stride] = {}
        super().__init__(call)

    def take(self, name: str, elements: int, dtype: torch.dtype | None = None) -> Tensor:
        """Working memory of each thread, ``pad(elements)`` apart."""
        return self.script.take(name, elements, dtype or self.dtype)

    def start(
        self, program: Packed, at: Addresses, steps: int, rows: int, *, ring: bool = False
    ) -> None:
        """Let the script run a program, for the arguments see :meth:`Slots.start`."""
        if program.address is None:
            ordered = program.compiled.weights
            program.address = ordered.pack_in(self.script, program.weights, program.place)
        program.compiled.add_to(
            self.script, at, self.strides, program.address, steps, rows,
            reverse=self.reverse, ring=ring,
        )  # fmt: skip

    def start_sums(self, compiled: Compiled, steps: int, rows: int) -> None:
        compiled.add_to(self.script, self.at, self.strides, 0, steps, rows, reverse=self.reverse)

    def start_product(self, product: Product) -> None:
        product.add_to(self.script)


class Members(Scripted):
    """A population: addresses are those of the first member, on the first thread."""

    def __init__(self, call: Call, script: Script):
        self.lead = (script.members,)
        super().__init__(call, script)

    # Memory ----------------------------------------------------------------------------------

    def _place_parameters(self) -> None:
        for slot, tensor, skipped in self.kernels.places:
            self.point(slot, self.weights[tensor], skipped)

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor, copied if the numbers of a member do not lie one after the other."""
        return within(tensor)

    def point(self, slot: str, tensor: Tensor, skipped: int = 0) -> None:
        super().point(slot, tensor, skipped)
        self.strides[slot] = by_member(tensor)

    def point_at_step(self, slot: str, source: str, step: int) -> None:
        super().point_at_step(slot, source, step)
        self.strides[slot] = self.strides[source]

    def put(self, slot: str, tensor: Tensor) -> Tensor:
        tensor = self._held[slot] = within(tensor)
        self.point(slot, tensor)
        return tensor

    def put_steps(self, slot: str, tensor: Tensor) -> Tensor:
        """Let a slot be what a tensor (T, B, ...) of each member holds for the steps of a span."""
        tensor = self._by_step[slot] = within(tensor)
        self.point(slot, tensor)
        return tensor

    def fresh_together(self, nodes: Mapping[str, Node]) -> dict[str, Tensor]:
        """Let slots be new memory, all of it in one piece.

        A dozen large pieces would go back to the system when they are freed, and to fill a page
        that it hands out again takes longer than the steps do.
        """
        numbers = {slot: node for slot, node in nodes.items() if not node.vector.boolean}
        shapes = [(*self.lead, self.steps, self.rows, self.sizes[n.size]) for n in numbers.values()]
        sizes = [pad(math.prod(shape)) for shape in shapes]
        parts = empty((sum(sizes),), self.dtype).split(sizes)
        found = {
            slot: self.put_steps(slot, part[: math.prod(shape)].view(shape))
            for slot, part, shape in zip(numbers, parts, shapes, strict=True)
        }
        return {slot: found[slot] if slot in found else self.fresh(slot, nodes[slot])
                for slot in nodes}  # fmt: skip

    def work(self, slot: str, elements: int, dtype: torch.dtype | None = None) -> Tensor:
        tensor = super().work(slot, elements, dtype)
        self.strides[slot] = Stride(0, pad(elements) * tensor.element_size())
        return tensor

    def pair(self, slot: str, units: int) -> Tensor:
        return self.put(slot, torch.empty((*self.lead, 2, self.rows, units), dtype=self.dtype))

    # Programs ----------------------------------------------------------------------------------

    def start(
        self, program: Packed, at: Addresses, steps: int, rows: int, *, ring: bool = False
    ) -> None:
        """As :meth:`Scripted.start`; weights stay only while a thread works on their member."""
        program.address = None
        super().start(program, at, steps, rows, ring=ring)

    def moves(self, job: Job, gradient: Tensor) -> Mapping[str, Stride]:
        slots = {"a": job.delta.slot, "b": job.operand.slot, "other": job.operand.initial}
        found = {name: self.strides[slot] for name, slot in slots.items() if slot}
        return found | {"c": by_member(gradient)}

    # Members -----------------------------------------------------------------------------------

    def by_member(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        return [[each[number] for each in tensors] for number in range(self.lead[0])]

    def joined(self, values: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        return torch.stack([*values]) if values else torch.empty((0, *shape), dtype=self.dtype)
