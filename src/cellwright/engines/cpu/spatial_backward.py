"""The backward pass of recurrences over space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from cellwright.engines import segments
from cellwright.engines.cpu import spatial
from cellwright.engines.cpu.arrays import Array, Index
from cellwright.engines.cpu.convolution import gradient
from cellwright.engines.cpu.spatial import Backend, Chain, SpatialRun
from cellwright.engines.cpu.spatial_programs import before
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.reference.backward import Backward


class SpatialBackward(SpatialRun):
    """One backward pass.

    Args:
        call: as it was given to the forward pass.
        backend: of the engine.
        kept: what the forward pass kept.
        cotangents: gradients of the loss with respect to the results.
    """

    def __init__(
        self, call: Call, backend: Backend, kept: Sequence[Tensor], cotangents: Cotangents
    ):
        super().__init__(call, backend)
        self.kept, self.cotangents = kept, cotangents
        for slot, value in zip(self.kept_slots, kept, strict=True):
            self.images.put(slot, value)
        self.images.put("d_output", cotangents.output)
        for name, value in zip(self.plan.forward.trace, cotangents.trace, strict=True):
            self.images.put(f"d_trace.{name}", value)
        for name, value in zip(self.names, cotangents.states, strict=True):
            carry = self.images.room(f"carry.{name}", value.shape[1], None)
            carry.copy_(value.movedim(1, -1))
            self.images.room(before(f"carry.{name}"), value.shape[1], None)

    def run(self, *, need_x: bool) -> Gradients:
        """The loop from the last step to the first, then what is gathered over all steps."""
        inputs, loop = self.code.backward_chains(need_x)
        d_inputs = self.images.room("d_inputs", self.hoisted, self.steps)
        if self.code.planned(need_x).missing:
            d_inputs.zero_()
        self.room_for_results(loop)
        self._loop(loop)
        if need_x:
            d_x = self.images.room("d_x", self.call.x.shape[2], self.steps)
            if "x" not in self.plan.backward.inputs.values:
                d_x.zero_()
        if inputs:
            self.ahead(inputs)
            self.room_for_results(inputs)
            for t in self.call.steps:
                self.step(inputs, t)
        gradients = [each.new_zeros(each.shape) for each in self.weights]
        self._kernels(gradients, need_x=need_x)
        self._vectors(gradients, need_x=need_x)
        return Gradients(
            self.images.copy("d_x") if need_x else None,
            [self.images.copy(f"carry.{name}") for name in self.names],
            gradients,
        )

    def _loop(self, loop: Chain) -> None:
        """Gradients of every step; at the end the carried ones are those of the first states."""
        order, places = list(self.call.steps), self.images.places
        for position in range(len(order) - 1, -1, -1):
            for name, first in zip(self.names, self.call.states, strict=True):
                if position:
                    state = places[f"state.{name}"].at(order[position - 1])
                    self.images.hold(f"initial.{name}", state, None)
                else:
                    self.images.put_fixed(f"initial.{name}", first)
            self.step(loop, order[position])
            for slot in (f"carry.{name}" for name in self.names):
                places[slot], places[before(slot)] = places[before(slot)], places[slot]

    def _kernels(self, gradients: list[Tensor], *, need_x: bool) -> None:
        """Gradients of convolutions' kernels, over all steps."""
        for job in self.code.jobs(need_x):
            weight = self.weights[job.tensor][job.row : job.row + job.m]
            into = gradients[job.tensor][job.row : job.row + job.m]
            delta = self.every(job.delta, job.m)
            for part, operand in self._pairs(delta, job.operand, job.n):
                factors = (self.factor(each.flatten(0, 1)) for each in (part, operand))
                into += gradient(weight, *factors)

    def _pairs(self, delta: Tensor, array: Array, units: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Parts of both factors, step by step in the same order."""
        if array.index is not Index.BEFORE:
            yield delta, self.every(array, units)
            return
        # A state before a step is the one after another step, but for the first.
        first = self.images.places[array.initial].tensor.narrow(-1, array.offset, units)
        every, last = self.every(array, units), self.steps - 1
        if self.call.reverse:
            yield delta[last:], first.unsqueeze(0)
            delta, every = delta[:last], every[1:]
        else:
            yield delta[:1], first.unsqueeze(0)
            delta, every = delta[1:], every[:last]
        if last:
            yield delta, every

    def _vectors(self, gradients: list[Tensor], *, need_x: bool) -> None:
        """Gradients of vector parameters, those behind values of parameters alone included."""
        totals = self.code.vector_sums(self, need_x)
        if self.once:
            for name, value in self._behind_once(totals).items():
                totals[name] = totals[name] + value if name in totals else value
        for part in self.call.signature.slices:
            if part.parameter in totals:
                gradients[part.tensor][part.start : part.stop] += totals[part.parameter]

    def _behind_once(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the parameters behind values of parameters alone, by torch, once a call."""
        behind = Backward(self.exact(), self.kept, self.cotangents)
        for name, value in self.once.items():
            if name in totals:
                total = totals[name]
                space = total.shape[1:] or (1,) * len(self.images.space)
                behind.d_once[name] = total.reshape(1, -1, *space).sum_to_size(value.shape)
        behind.differentiate_once()
        return behind.totals


def backward(
    call: Call, backend: Backend, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
) -> Gradients:
    """The gradient of a recurrence over space."""

    def run(call: Call, kept: Sequence[Tensor], cotangents: Cotangents) -> Gradients:
        return SpatialBackward(call, backend, kept, cotangents).run(need_x=need_x)

    def again(call: Call) -> Result:
        return spatial.kept(call, backend)

    if call.signature.options.save == "gates":
        return run(call, kept, cotangents)
    return segments.backward(call, kept, cotangents, again, run)
