"""Recurrences over space: torch's convolutions, and compiled code for all the rest.

At each step the convolutions of a segment are torch's, and a compiled program does everything up to
the next ones. What can be convolved for all steps at once is: ``W @ x`` before the loop, the
gradients of x and of the kernels after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.arrays import Array, Index
from cellwright.engines.cpu.convolution import channels_last, convolve, gradient, turned
from cellwright.engines.cpu.spatial_kernels import Chain, CompiledSegment, spatial_kernels
from cellwright.engines.cpu.spatial_programs import Convolution, before
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.reference.backward import Backward
from cellwright.engines.reference.bound import BoundCall
from cellwright.ir import Node

FIRST = 2
"""The axis of the channels in what a layer gives and gets: (T, B, channels, *space)."""


class _Place:
    """Memory of a slot: one value, or one for each step, or for as many as are kept."""

    def __init__(self, tensor: Tensor, steps: int):
        self.tensor, self.steps = tensor, steps
        self.base = tensor.data_ptr()
        self.stride = tensor.numel() // steps * tensor.element_size() if steps else 0

    def address(self, t: int) -> int:
        """Where the value of step ``t`` begins."""
        return self.base + t % self.steps * self.stride if self.steps else self.base

    def at(self, t: int) -> Tensor:
        """The value of step ``t``."""
        return self.tensor[t % self.steps] if self.steps else self.tensor


class SpatialRun:
    """One call: its tensors, channels last, by the names of the programs' slots."""

    def __init__(self, call: Call):
        self.call = call
        self.plan = call.signature.plan
        self.dtype = call.x.dtype
        self.sizes = call.signature.size
        self.steps, self.batch, self.space = call.x.shape[0], call.x.shape[1], call.x.shape[3:]
        self.rows = self.batch * math.prod(self.space)
        self.names = [each.name for each in self.plan.graph.states]
        self.weights = [each.detach() for each in call.weights]
        self.places: dict[str, _Place] = {}
        self.turned: dict[Convolution, Tensor] = {}
        self.positional: set[str] = set()
        self._put_parameters()
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            lead = (self.steps, self.batch) if spec.per_step else (self.batch,)
            whole = mask.expand(*lead, self.sizes[spec.size], *self.space)
            self.put(f"stream.{spec.name}", whole, each_step=spec.per_step)
        self.kernels = spatial_kernels(
            call.signature.text, self.dtype == torch.float64, jit.features_limit(),
            frozenset(self.positional),
        )  # fmt: skip

    # Memory --------------------------------------------------------------------------------------

    def hold(self, slot: str, tensor: Tensor, steps: int = 0) -> Tensor:
        """Let a slot be a tensor whose channels lie last."""
        self.places[slot] = _Place(tensor, steps)
        return tensor

    def put(self, slot: str, tensor: Tensor, *, each_step: bool) -> None:
        """Let a slot be the numbers of a tensor that lies as the layer has it."""
        axis = FIRST if each_step else FIRST - 1
        self.hold(slot, channels_last(tensor, axis), self.steps if each_step else 0)

    def room(self, slot: str, units: int, steps: int, *, boolean: bool = False) -> Tensor:
        """Let a slot be new memory."""
        shape = (*([steps] if steps else []), self.batch, *self.space, units)
        dtype = torch.bool if boolean else self.dtype
        return self.hold(slot, torch.empty(shape, dtype=dtype), steps)

    def room_for_results(self, chain: Chain, *, short: frozenset[str] = frozenset()) -> None:
        """Let what a chain writes, and has no memory yet, have some; two steps of ``short``."""
        for segment in chain:
            for arrays in segment.compiled.program.stores.values():
                for array in arrays:
                    if array.slot.startswith("temporary.") or array.slot in self.places:
                        continue
                    steps = self.steps
                    if array.slot.startswith("between."):
                        steps = 0
                    elif array.slot in short:
                        steps = 2
                    self.room(array.slot, array.stride, steps, boolean=array.boolean)

    def returned(self, tensor: Tensor, *, each_step: bool) -> Tensor:
        """A copy as the layer has it."""
        turned = tensor.movedim(-1, FIRST if each_step else FIRST - 1)
        return turned.clone(memory_format=torch.contiguous_format)

    def _put_parameters(self) -> None:
        kinds = {each.name: each for each in self.plan.parameters}
        for place in self.call.signature.slices:
            if hasattr(kinds[place.parameter].type, "size"):
                value = self.weights[place.tensor][place.start : place.stop]
                self._put_vector(f"parameter.{place.parameter}", value)
        self.once: dict[str, Tensor] = {}
        if self.plan.forward.once:
            self.once = BoundCall(self.call).once
        for name, value in self.once.items():
            units = self.sizes[self.plan.forward.once[name].size]
            (whole,) = value.expand(1, units, *value.shape[2:])
            spread = whole if math.prod(whole.shape[1:]) > 1 else whole.reshape(units)
            self._put_vector(f"value.{name}", spread)

    def _put_vector(self, slot: str, value: Tensor) -> None:
        """A number for each channel, or for each channel and position."""
        if value.dim() == 1:
            self.hold(slot, value.contiguous())
            return
        self.positional.add(slot)
        self.put(slot, value.expand(self.batch, *value.shape[:1], *self.space), each_step=False)

    # Running -------------------------------------------------------------------------------------

    def ahead(self, chain: Chain) -> None:
        """Convolve what is there for all steps before they begin."""
        for segment in chain:
            for each in segment.convolutions:
                if each.ahead:
                    whole = self.places[each.operand.slot].tensor.flatten(0, 1)
                    result = self.convolve(each, whole)
                    self.hold(each.slot, result.unflatten(0, (self.steps, -1)), self.steps)

    def step(self, chain: Chain, t: int) -> None:
        """Run a chain for one step; the places are those of the step."""
        for segment in chain:
            for each in segment.convolutions:
                if not each.ahead:
                    operand = self.places[each.operand.slot].at(t)
                    self.hold(each.slot, self.convolve(each, operand))
            segment.compiled.run_rows(self._addresses(segment, t), 1, self.rows)

    def _addresses(self, segment: CompiledSegment, t: int) -> dict[str, int]:
        places = self.places
        return {
            slot: places[slot].address(t)
            for slot in segment.compiled.program.slots
            if slot in places
        }

    def convolve(self, each: Convolution, v: Tensor) -> Tensor:
        """The result of a convolution of (N, *space, channels)."""
        place = each.weight
        if each not in self.turned:
            weight = self.weights[place.tensor][place.start : place.stop]
            self.turned[each] = turned(weight, each.blocks) if each.transposed else weight
        part = v.narrow(-1, each.operand.offset, each.channels)
        return convolve(self.turned[each], part, each.blocks)

    # Forward -------------------------------------------------------------------------------------

    def kept_slots(self) -> list[str]:
        """Slots of what the forward pass keeps, in the protocol's order."""
        plan = self.plan.forward
        return [*(f"state.{name}" for name in self.names), *plan.saved, *plan.saved_inputs]

    def forward(self, *, keep: bool) -> Result:
        """What does not depend on the state, then the loop."""
        inputs, loop, aliases = self.kernels.forward_chains(keep)
        self.put("x", self.call.x, each_step=True)
        self.ahead(inputs)
        width = sum(self.sizes[node.size] for node in self.plan.forward.inputs.values())
        if inputs:
            self.room("inputs", width, self.steps)
        self.room_for_results(inputs)
        for t in self.call.steps if inputs else ():
            self.step(inputs, t)
        self.ahead(loop)
        slots = {name: f"state.{name}" for name in self.names}
        slots = {name: aliases.get(slot, slot) for name, slot in slots.items()}
        whole = {"output", *aliases.values()}
        self.room_for_results(
            loop, short=frozenset() if keep else frozenset(slots.values()) - whole
        )
        for name, state in zip(self.names, self.call.states, strict=True):
            self.put(f"initial.{name}", state, each_step=False)
        for t in self.call.steps:
            self.step(loop, t)
            for name, slot in slots.items():
                self.hold(f"initial.{name}", self.places[slot].at(t))
        traces = [f"trace.{name}" for name in self.plan.forward.trace]
        output, *trace = [
            self.returned(self.places[aliases.get(slot, slot)].tensor, each_step=True)
            for slot in ("output", *traces)
        ]
        after = [
            self.returned(self.places[f"initial.{name}"].tensor, each_step=False)
            for name in self.names
        ]
        kept = [self.places[aliases.get(slot, slot)].tensor.movedim(-1, FIRST)
                for slot in self.kept_slots()] if keep else []  # fmt: skip
        return Result(output, after, trace, kept)

    # Backward ------------------------------------------------------------------------------------

    def backward(
        self, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        """The loop from the last step to the first, then what is gathered over all steps."""
        inputs, loop = self.kernels.backward_chains(need_x)
        self.put("x", self.call.x, each_step=True)
        for slot, value in zip(self.kept_slots(), kept, strict=True):
            self.put(slot, value, each_step=True)
        self.put("d_output", cotangents.output, each_step=True)
        for name, value in zip(self.plan.forward.trace, cotangents.trace, strict=True):
            self.put(f"d_trace.{name}", value, each_step=True)
        width = sum(self.sizes[node.size] for node in self.plan.forward.inputs.values())
        self.room("d_inputs", width, self.steps).zero_()
        for name, value in zip(self.names, cotangents.states, strict=True):
            self.put(f"carry.{name}", value.clone(), each_step=False)
            self.room(before(f"carry.{name}"), value.shape[1], 0)
        self.room_for_results(loop)
        self._loop(loop)
        d_x = None
        if need_x:
            d_x = self.room("d_x", self.call.x.shape[FIRST], self.steps)
            if "x" not in self.plan.backward.inputs.values:
                d_x.zero_()
            d_x = d_x.movedim(-1, FIRST)
        if inputs:
            self.ahead(inputs)
            self.room_for_results(inputs)
            for t in self.call.steps:
                self.step(inputs, t)
        gradients = [torch.zeros(each.shape, dtype=self.dtype) for each in self.weights]
        self._matrices(gradients, need_x=need_x)
        self._vectors(gradients, kept, cotangents, need_x=need_x)
        carried = [self.places[f"carry.{name}"].tensor for name in self.names]
        return Gradients(
            None if d_x is None else d_x.contiguous(),
            [self.returned(each, each_step=False) for each in carried],
            gradients,
        )

    def _loop(self, loop: Chain) -> None:
        """Gradients of every step; at the end the carried ones are those of the first states."""
        order = list(self.call.steps)
        first = dict(zip(self.names, self.call.states, strict=True))
        for position in range(len(order) - 1, -1, -1):
            t = order[position]
            for name in self.names:
                if position:
                    state = self.places[f"state.{name}"].at(order[position - 1])
                    self.hold(f"initial.{name}", state)
                else:
                    self.put(f"initial.{name}", first[name], each_step=False)
            self.step(loop, t)
            for name in self.names:
                now, then = f"carry.{name}", before(f"carry.{name}")
                self.places[now], self.places[then] = self.places[then], self.places[now]

    def _matrices(self, gradients: list[Tensor], *, need_x: bool) -> None:
        """Gradients of kernels: convolutions over all steps."""
        for job in self.kernels.jobs(need_x):
            weight = self.weights[job.tensor][job.row : job.row + job.m]
            into = gradients[job.tensor][job.row : job.row + job.m]
            delta = self._every(job.delta, job.m)
            for part, operand in self._factors(delta, job.operand, job.n):
                into += gradient(weight, part.flatten(0, 1), operand.flatten(0, 1))

    def _every(self, array: Array, units: int) -> Tensor:
        """The values of all steps: (T, B, *space, units)."""
        return self.places[array.slot].tensor.narrow(-1, array.offset, units)

    def _factors(
        self, delta: Tensor, array: Array, units: int
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """What is multiplied with what; a state before a step is the one after another."""
        if array.index is not Index.BEFORE:
            yield delta, self._every(array, units)
            return
        initial = self.places[array.initial].tensor.narrow(-1, array.offset, units).unsqueeze(0)
        every, count = self._every(array, units), self.steps - 1
        at, others, earlier = (count, 0, 1) if self.call.reverse else (0, 1, 0)
        yield delta[at : at + 1], initial
        if count:
            yield delta.narrow(0, others, count), every.narrow(0, earlier, count)

    def _vectors(
        self, gradients: list[Tensor], kept: Sequence[Tensor], cotangents: Cotangents, *,
        need_x: bool,
    ) -> None:  # fmt: skip
        """Gradients of vector parameters, those behind what is computed once a call included."""
        bases = {slot: place.base for slot, place in self.places.items()}
        totals: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            totals[name] = totals[name] + value if name in totals else value

        reverse = self.call.reverse
        for each in self.kernels.channel_sums(need_x):
            found = {slot: torch.empty(each.units, dtype=self.dtype) for slot in each.results}
            at = bases | {slot: value.data_ptr() for slot, value in found.items()}
            each.compiled.run_sums(at, self.steps, self.rows, reverse=reverse)
            for slot, names in each.results.items():
                for name in names:
                    add(name, found[slot])
        for position in self.kernels.position_sums(need_x):
            total = self.room(position.slot, position.units, 0).zero_()
            at = bases | {position.slot: total.data_ptr()}
            position.compiled.run_rows(at, self.steps, self.rows, reverse=reverse)
            add(position.name, total.sum(0).movedim(-1, 0))
        if self.once:
            self._differentiate_once(totals, kept, cotangents)
        for part in self.call.signature.slices:
            if part.parameter in totals:
                gradients[part.tensor][part.start : part.stop] += totals[part.parameter]

    def _differentiate_once(
        self, totals: dict[str, Tensor], kept: Sequence[Tensor], cotangents: Cotangents
    ) -> None:
        """Carry the gradients of values of parameters alone on to the parameters, by torch."""
        behind = Backward(self.call, kept, cotangents)
        for name, value in self.once.items():
            if name in totals:
                whole = totals[name].reshape(1, -1, *(totals[name].shape[1:] or [1] * len(self.space)))
                behind.d_once[name] = whole.sum_to_size(value.shape)
        behind.differentiate_once()
        for name, total in behind.totals.items():
            totals[name] = totals[name] + total if name in totals else total


def forward(call: Call, *, keep: bool) -> Result:
    """Run a recurrence over space."""
    return SpatialRun(call).forward(keep=keep)


def backward(
    call: Call, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
) -> Gradients:
    """Its gradient."""
    return SpatialRun(call).backward(kept, cotangents, need_x=need_x)
