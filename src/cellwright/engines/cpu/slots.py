"""Where a population's tensors are: addresses by the names of the programs' slots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.kernels import kernels
from cellwright.engines.cpu.members import Script, Stride, by_member, pad, within
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.runtime import Compiled
from cellwright.engines.protocol import Call
from cellwright.ir import Node


class Slots:
    """One call for a population: its tensors, working memory, and how its programs are started.

    The programs are written into a script, which then runs them for all members; addresses are
    those of the first member, on the first thread.

    Attributes:
        at: addresses by slot.
        strides: how they move.
        lead: the axis of members.
        script: what has been started.
    """

    def __init__(self, call: Call):
        self.call = call
        assert call.population is not None
        self.lead = (call.population,)
        self.script = Script(call.population)
        self.dtype = call.x.dtype
        self.double = self.dtype == torch.float64
        self.width = 8 if self.double else 4
        self.kernels = kernels(call.signature.text, self.double, jit.features_limit())
        self.plan = self.kernels.signature.plan
        self.steps, self.rows = call.x.shape[len(self.lead) :][:2]
        self.every = self.steps * self.rows
        self.sizes = call.signature.size
        self.names = [each.name for each in self.plan.graph.states]
        self.at: dict[str, int] = {}
        self.strides: dict[str, Stride] = {}
        self.held: list[Tensor] = []  # what the addresses point into
        self.weights = [self.whole(each) for each in call.weights]
        for slot, tensor, skipped in self.kernels.places:
            self.point(slot, self.weights[tensor], skipped)
        self.put("x", call.x)
        for name, state in zip(self.names, call.states, strict=True):
            self.put(f"initial.{name}", state)
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            lead = (self.steps, self.rows) if spec.per_step else (self.rows,)
            whole = mask.expand(*self.lead, *lead, self.sizes[spec.size])
            self.put(f"stream.{spec.name}", whole)
            if not spec.per_step:
                every = whole.unsqueeze(-3).expand(*self.lead, self.steps, *whole.shape[-2:])
                self.put(f"stream_rows.{spec.name}", every)

    # Memory ----------------------------------------------------------------------------------

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor, copied if the numbers of a member do not lie one after the other."""
        return within(tensor)

    def point(self, slot: str, tensor: Tensor, skipped: int = 0) -> None:
        """Let a slot be what lies so many bytes behind a tensor's beginning."""
        self.at[slot] = tensor.data_ptr() + skipped
        self.strides[slot] = by_member(tensor)

    def put(self, slot: str, tensor: Tensor) -> Tensor:
        """Let a slot be a tensor's numbers, copied if need be."""
        tensor = self.whole(tensor)
        self.held.append(tensor)
        self.point(slot, tensor)
        return tensor

    def fresh(self, slot: str, node: Node) -> Tensor:
        """Let a slot be new memory for a value of every step."""
        dtype = torch.bool if node.vector.boolean else self.dtype
        shape = (*self.lead, self.steps, self.rows, self.sizes[node.size])
        return self.put(slot, empty(shape, dtype))

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
            slot: self.put(slot, part[: math.prod(shape)].view(shape))
            for slot, part, shape in zip(numbers, parts, shapes, strict=True)
        }
        others = {slot: self.fresh(slot, nodes[slot]) for slot in nodes if slot not in found}
        return found | others

    def work(self, slot: str, elements: int) -> Tensor:
        """Let a slot be working memory of each thread, with anything in it."""
        apart = pad(elements)
        tensor = memory.take(slot, apart * self.script.team, self.dtype)
        self.strides[slot] = 0, apart * self.width
        self.script.held.append(tensor)
        self.at[slot] = tensor.data_ptr()
        return tensor

    def pair(self, slot: str, state: str) -> Tensor:
        """Let a slot be memory for a state at two steps."""
        size = next(each.size for each in self.plan.graph.states if each.name == state)
        shape = (*self.lead, 2, self.rows, self.sizes[size])
        return self.put(slot, torch.empty(shape, dtype=self.dtype))

    # Programs ----------------------------------------------------------------------------------

    def start(self, program: Compiled, *, reverse: bool = False, ring: bool = False) -> None:
        """Let the script run a loop over the steps."""
        program.add_to(
            self.script, self.at, self.strides, self.weights, self.steps, self.rows,
            reverse=reverse, ring=ring,
        )  # fmt: skip

    def start_at_once(self, program: Compiled) -> None:
        """Let the script run a program over all steps and rows at once."""
        program.add_to(self.script, self.at, self.strides, self.weights, 1, self.every)

    # Members -----------------------------------------------------------------------------------

    def by_member(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors of each member."""
        return [[each[number] for each in tensors] for number in range(self.lead[0])]

    def joined(self, values: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Each member's value, of that shape."""
        return torch.stack([*values]) if values else torch.empty((0, *shape), dtype=self.dtype)
