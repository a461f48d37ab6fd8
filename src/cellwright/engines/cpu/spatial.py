"""Recurrences over space: torch's convolutions, and an engine's own code for all the rest.

At each step the convolutions of a segment are torch's, and a program of the engine's does
everything up to the next ones. What can be convolved for all steps at once is: ``W @ x`` before the
loop, the gradients of x and of the kernels after it. What runs the programs is the engine's
:class:`Backend`: nothing here knows how.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cellwright.engines import segments
from cellwright.engines.cpu.arrays import Array
from cellwright.engines.cpu.convolution import convolve, turned
from cellwright.engines.cpu.images import CHANNELS, Images, Place
from cellwright.engines.cpu.jobs import Job
from cellwright.engines.cpu.program import Program
from cellwright.engines.cpu.programs import Backward
from cellwright.engines.cpu.spatial_programs import Convolution
from cellwright.engines.protocol import Call, Result
from cellwright.engines.reference.bound import BoundCall
from cellwright.ir import Matrix


class Segment(Protocol):
    """Convolutions, then a program."""

    @property
    def convolutions(self) -> Sequence[Convolution]:
        """What has to be convolved before the program."""

    @property
    def program(self) -> Program:
        """Tells what is stored."""

    def run(self, places: Mapping[str, Place], t: int, rows: int) -> None:
        """Run the program at one step."""


Chain = Sequence[Segment]


class Code(Protocol):
    """What an engine makes of a signature."""

    def forward_chains(self, keep: bool) -> tuple[Chain, Chain, dict[str, str]]:
        """Inputs, loop, and where results lie that are the same value as another."""

    def backward_chains(self, need_x: bool) -> tuple[Chain, Chain]:
        """Inputs and loop."""

    def planned(self, need_x: bool) -> Backward:
        """The backward programs, as they are for matrix products."""

    def jobs(self, need_x: bool) -> list[Job]:
        """The gradients of kernels."""

    def vector_sums(self, run: SpatialRun, need_x: bool) -> dict[str, Tensor]:
        """The gradients of vectors, from what a backward pass left in its places."""


@dataclass(frozen=True)
class Backend:
    """What an engine brings along.

    Attributes:
        images: input -> the arrays of a call.
        code: a call, and the slots of vectors with a number for each position -> what runs.
    """

    images: Callable[[Tensor], Images]
    code: Callable[[Call, frozenset[str]], Code]


class SpatialRun:
    """One call: its tensors, and the code that runs on them."""

    def __init__(self, call: Call, backend: Backend):
        self.call = call
        self.plan, self.sizes = call.signature.plan, call.signature.size
        self.steps, self.batch, _, *space = call.x.shape
        self.rows = self.batch * math.prod(space)
        self.images = backend.images(call.x)
        self.names = [each.name for each in self.plan.graph.states]
        self.weights = [each.detach() for each in call.weights]
        self._convolved: dict[Convolution, Tensor] = {}
        self._positional: set[str] = set()
        self.once: dict[str, Tensor] = {}
        self._put_vectors()
        self.images.put("x", call.x)
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            lead = (self.steps, self.batch) if spec.per_step else (self.batch,)
            whole = mask.expand(*lead, self.sizes[spec.size], *space)
            put = self.images.put if spec.per_step else self.images.put_fixed
            put(f"stream.{spec.name}", whole)
        self.code = backend.code(call, frozenset(self._positional))

    # Values of parameters alone ------------------------------------------------------------------

    def _put_vectors(self) -> None:
        """Vector parameters, and what follows from parameters alone (by torch, once a call)."""
        kinds = {each.name: each.type for each in self.plan.parameters}
        for place in self.call.signature.slices:
            if not isinstance(kinds[place.parameter], Matrix):
                value = self.weights[place.tensor][place.start : place.stop]
                self._put_vector(f"parameter.{place.parameter}", value)
        if self.plan.forward.once:
            self.once = BoundCall(self.exact()).once
        for name, value in self.once.items():
            units = self.sizes[self.plan.forward.once[name].size]
            (whole,) = value.expand(1, units, *value.shape[2:])
            spread = whole.numel() > units
            self._put_vector(f"value.{name}", whole if spread else whole.reshape(units))

    def exact(self) -> Call:
        """The call with weights in the dtype in which everything is computed."""
        dtype = self.images.working_dtype
        weights = [each.to(dtype) for each in self.weights]
        return replace(self.call, x=self.call.x[:1].to(dtype), weights=weights)

    def _put_vector(self, slot: str, value: Tensor) -> None:
        """A number for each channel, or for each channel and position."""
        if value.dim() == 1:
            self.images.hold(slot, value.contiguous(), None)
            return
        self._positional.add(slot)
        shape = (self.batch, value.shape[0], *self.images.space)
        self.images.put_fixed(slot, value.expand(shape))

    # Running -------------------------------------------------------------------------------------

    def room_for_results(self, chain: Chain, short: frozenset[str] = frozenset()) -> None:
        """Memory for what a chain writes, where there is none yet; of two steps for ``short``."""
        stored = (segment.program.stores.values() for segment in chain)
        for array in (array for stores in stored for arrays in stores for array in arrays):
            slot = array.slot
            if slot not in self.images.places and not slot.startswith("temporary."):
                steps = 2 if slot in short else self.steps
                between = slot.startswith("between.")
                self.images.room(
                    slot, array.stride, None if between else steps, boolean=array.boolean
                )

    def ahead(self, chain: Chain) -> None:
        """Convolve what is there for all steps before they begin."""
        for segment in chain:
            for each in segment.convolutions:
                if each.ahead:
                    whole = self.images.places[each.operand.slot].tensor.flatten(0, 1)
                    result = self._convolve(each, whole).unflatten(0, (self.steps, -1))
                    self.images.hold(each.slot, result, self.steps)

    def every(self, array: Array, units: int) -> Tensor:
        """The values of all steps: (T, B, *space, units)."""
        return self.images.places[array.slot].tensor.narrow(-1, array.offset, units)

    def step(self, chain: Chain, t: int) -> None:
        """Run a chain for one step; places without steps are those of this step."""
        for segment in chain:
            for each in segment.convolutions:
                if not each.ahead:
                    operand = self.images.places[each.operand.slot].at(t)
                    self.images.hold(each.slot, self._convolve(each, operand), None)
            segment.run(self.images.places, t, self.rows)

    @property
    def rounded(self) -> bool:
        """Whether products are of numbers rounded to bfloat16."""
        return self.call.signature.options.precision == "bf16"

    def factor(self, value: Tensor) -> Tensor:
        """A value as it enters a product: as precise as the tensors are, or rounded."""
        value = value.to(self.call.x.dtype)
        return value.to(torch.bfloat16).to(value.dtype) if self.rounded else value

    def _convolve(self, each: Convolution, v: Tensor) -> Tensor:
        """The result of a convolution of (N, *space, channels)."""
        if each not in self._convolved:
            place = each.weight
            weight = self.weights[place.tensor][place.start : place.stop]
            weight = self.factor(weight)
            self._convolved[each] = turned(weight, each.blocks) if each.transposed else weight
        part = self.factor(v.narrow(-1, each.operand.offset, each.channels))
        return convolve(self._convolved[each], part, each.blocks)

    @property
    def hoisted(self) -> int:
        """Channels of all hoisted values together."""
        return sum(self.sizes[node.size] for node in self.plan.forward.inputs.values())

    @property
    def kept_slots(self) -> list[str]:
        """Slots of what the forward pass keeps, in the protocol's order."""
        plan = self.plan.forward
        return [*(f"state.{name}" for name in self.names), *plan.saved, *plan.saved_inputs]

    # Forward -------------------------------------------------------------------------------------

    def forward(self, *, keep: bool) -> Result:
        """What does not depend on the state, then the loop."""
        inputs, loop, joined = self.code.forward_chains(keep)
        images = self.images
        if inputs:
            self.ahead(inputs)
            images.room("inputs", self.hoisted, self.steps)
            self.room_for_results(inputs)
            for t in self.call.steps:
                self.step(inputs, t)
        self.ahead(loop)
        states = {name: joined.get(f"state.{name}", f"state.{name}") for name in self.names}
        results = ["output", *(f"trace.{name}" for name in self.plan.forward.trace)]
        whole = {joined.get(slot, slot) for slot in results}
        short = frozenset() if keep else frozenset(states.values()) - whole
        self.room_for_results(loop, short)
        for name, state in zip(self.names, self.call.states, strict=True):
            images.put_fixed(f"initial.{name}", state.to(images.working_dtype))
        for t in self.call.steps:
            self.step(loop, t)
            for name, slot in states.items():
                images.hold(f"initial.{name}", images.places[slot].at(t), None)
        output, *trace = [images.copy(joined.get(slot, slot)) for slot in results]
        after = [images.copy(f"initial.{name}") for name in self.names]
        kept = [images.places[joined.get(slot, slot)] for slot in self.kept_slots if keep]
        return Result(output, after, trace, [self._kept(each.tensor) for each in kept])

    def _kept(self, value: Tensor) -> Tensor:
        """What is kept of a value, in the tensors' own dtype and order of axes."""
        value = value.to(self.call.x.dtype) if value.is_floating_point() else value
        return value.movedim(-1, CHANNELS)


def forward(call: Call, backend: Backend, *, keep: bool) -> Result:
    """Run a recurrence over space."""
    if keep and call.signature.options.save != "gates":
        return segments.forward(call, lambda part: kept(part, backend))
    return SpatialRun(call, backend).forward(keep=keep)


def kept(call: Call, backend: Backend) -> Result:
    """Run a recurrence over space, keeping everything."""
    return SpatialRun(call, backend).forward(keep=True)
