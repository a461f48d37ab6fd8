"""Recurrences over space: torch's convolutions, and compiled code for all the rest.

At each step the convolutions of a segment are torch's, and a compiled program does everything up to
the next ones. What can be convolved for all steps at once is: ``W @ x`` before the loop, the
gradients of x and of the kernels after it.
"""

from __future__ import annotations

import math

from torch import Tensor

from cellwright.engines import segments
from cellwright.engines.cpu import jit
from cellwright.engines.cpu.convolution import convolve, turned
from cellwright.engines.cpu.images import CHANNELS, Images
from cellwright.engines.cpu.spatial_kernels import Chain, CompiledSegment, spatial_kernels
from cellwright.engines.cpu.spatial_programs import Convolution
from cellwright.engines.protocol import Call, Result
from cellwright.engines.reference.bound import BoundCall
from cellwright.ir import Matrix


class SpatialRun:
    """One call: its tensors and its compiled segments."""

    def __init__(self, call: Call):
        self.call = call
        self.plan, self.sizes = call.signature.plan, call.signature.size
        self.steps, self.batch, _, *space = call.x.shape
        self.rows = self.batch * math.prod(space)
        self.images = Images(self.steps, self.batch, space, call.x.dtype)
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
        double = call.x.element_size() == 8
        self.kernels = spatial_kernels(
            call.signature.text, double, jit.features_limit(), frozenset(self._positional)
        )

    # Values of parameters alone ------------------------------------------------------------------

    def _put_vectors(self) -> None:
        """Vector parameters, and what follows from parameters alone (by torch, once a call)."""
        kinds = {each.name: each.type for each in self.plan.parameters}
        for place in self.call.signature.slices:
            if not isinstance(kinds[place.parameter], Matrix):
                value = self.weights[place.tensor][place.start : place.stop]
                self._put_vector(f"parameter.{place.parameter}", value)
        if self.plan.forward.once:
            self.once = BoundCall(self.call).once
        for name, value in self.once.items():
            units = self.sizes[self.plan.forward.once[name].size]
            (whole,) = value.expand(1, units, *value.shape[2:])
            spread = whole.numel() > units
            self._put_vector(f"value.{name}", whole if spread else whole.reshape(units))

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
        stored = (s.compiled.program.stores.values() for s in chain)
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

    def step(self, chain: Chain, t: int) -> None:
        """Run a chain for one step; places without steps are those of this step."""
        for segment in chain:
            for each in segment.convolutions:
                if not each.ahead:
                    operand = self.images.places[each.operand.slot].at(t)
                    self.images.hold(each.slot, self._convolve(each, operand), None)
            segment.compiled.run_rows(self._addresses(segment, t), 1, self.rows)

    def _addresses(self, segment: CompiledSegment, t: int) -> dict[str, int]:
        places = self.images.places
        slots = segment.compiled.program.slots
        return {slot: places[slot].address(t) for slot in slots if slot in places}

    def _convolve(self, each: Convolution, v: Tensor) -> Tensor:
        """The result of a convolution of (N, *space, channels)."""
        if each not in self._convolved:
            place = each.weight
            weight = self.weights[place.tensor][place.start : place.stop]
            self._convolved[each] = turned(weight, each.blocks) if each.transposed else weight
        part = v.narrow(-1, each.operand.offset, each.channels)
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
        inputs, loop, joined = self.kernels.forward_chains(keep)
        images = self.images
        if inputs:
            self.ahead(inputs)
            images.room("inputs", self.hoisted, self.steps)
            self.room_for_results(inputs)
            for t in self.call.steps:
                self.step(inputs, t)
        self.ahead(loop)
        states = {name: joined.get(f"state.{name}", f"state.{name}") for name in self.names}
        short = frozenset() if keep else frozenset(states.values()) - {"output", *joined.values()}
        self.room_for_results(loop, short)
        for name, state in zip(self.names, self.call.states, strict=True):
            images.put_fixed(f"initial.{name}", state)
        for t in self.call.steps:
            self.step(loop, t)
            for name, slot in states.items():
                images.hold(f"initial.{name}", images.places[slot].at(t), None)
        results = ["output", *(f"trace.{name}" for name in self.plan.forward.trace)]
        output, *trace = [images.copy(joined.get(slot, slot)) for slot in results]
        after = [images.copy(f"initial.{name}") for name in self.names]
        kept = [images.places[joined.get(slot, slot)] for slot in self.kept_slots if keep]
        return Result(output, after, trace, [each.tensor.movedim(-1, CHANNELS) for each in kept])


def forward(call: Call, *, keep: bool) -> Result:
    """Run a recurrence over space."""
    if keep and call.signature.options.save != "gates":
        return segments.forward(call, kept)
    return SpatialRun(call).forward(keep=keep)


def kept(call: Call) -> Result:
    """Run a recurrence over space, keeping everything."""
    return SpatialRun(call).forward(keep=True)
