"""The CPU engine: compiles a layer's programs once and runs them on torch's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import bfloat, jit, once, spatial, spatial_backward, threads
from cellwright.engines.cpu.arrays import Index
from cellwright.engines.cpu.kernels import NO_BF16, kernels
from cellwright.engines.cpu.members import by_member
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.runtime import Product, memory
from cellwright.engines.cpu.slots import Slots
from cellwright.engines.cpu.streaming import Stream
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.signature import Signature


class CpuEngine:
    """Compiles plans to machine code with LLVM and runs them on torch's threads."""

    name = "cpu"
    purpose = "it runs the cell as machine code compiled for this processor"
    fresh = True

    def objection(
        self, signature: Signature, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """Why it cannot run the signature; None if it can."""
        if device.type != "cpu":
            return f"the tensors are on {device}"
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, not {str(dtype).removeprefix('torch.')}"
        if signature.options.precision == "bf16" and signature.spatial:
            return "it has no convolutions of bfloat16 numbers"
        if signature.options.precision == "bf16" and dtype != torch.float32:
            return "its products of bfloat16 numbers have float32 sums, and the tensors are float64"
        return None

    def remark(self, signature: Signature) -> str | None:
        """How products are computed, where that is not in the tensors' own precision."""
        if signature.options.precision == "fp32":
            return None
        if bfloat.is_available():
            return "products are of bfloat16 numbers, with float32 sums"
        return NO_BF16

    def takes_populations(self, signature: Signature) -> bool:
        """Whether it carries out calls that are populations."""
        return not signature.spatial

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the forward programs."""
        try:
            if call.signature.spatial:
                return spatial.forward(call, keep=keep)
            if _are_few(call):
                return _forward_of_few(call, keep=keep)
            return _Run(call).forward(keep=keep)
        finally:
            memory.release()

    def backward(
        self,
        call: Call,
        kept: Sequence[Tensor],
        cotangents: Cotangents,
        *,
        need_x: bool,
        need_weights: bool = True,
    ) -> Gradients:
        """Run the backward programs."""
        needs = {"need_x": need_x, "need_weights": need_weights}
        try:
            if call.signature.spatial:
                return spatial_backward.backward(call, kept, cotangents, need_x=need_x)
            if _are_few(call):
                return _backward_of_few(call, kept, cotangents, **needs)
            return _Run(call).backward(kept, cotangents, **needs)
        finally:
            memory.release()

    def stream(
        self,
        signatures: Sequence[Signature],
        weights: Sequence[Sequence[Tensor]],
        lead: Sequence[int],
        sizes: Sequence[int],
    ) -> Stream | None:
        """Prepared single steps, or None where a step is more than one program."""
        double = weights[0][0].dtype == torch.float64
        limit = jit.features_limit()
        if not all(kernels(each.text, double, limit).can_step for each in signatures):
            return None
        return Stream(signatures, weights, lead, sizes)


def _are_few(call: Call) -> bool:
    """Whether a population is run member by member, each on all threads."""
    return call.population is not None and 0 < call.population < threads.count()


def _forward_of_few(call: Call, *, keep: bool) -> Result:
    found = [_Run(each).forward(keep=keep) for each in call.members()]
    return Result(
        torch.stack([each.output for each in found]),
        _stacked(each.states for each in found),
        _stacked(each.trace for each in found),
        _stacked(each.kept for each in found),
    )


def _backward_of_few(
    call: Call, kept: Sequence[Tensor], cotangents: Cotangents, **needs: bool
) -> Gradients:
    found = []
    for number, each in enumerate(call.members()):
        own = [value[number] for value in kept]
        found.append(_Run(each).backward(own, cotangents.of_member(number), **needs))
    every_x = [each.x for each in found if each.x is not None]
    return Gradients(
        torch.stack(every_x) if every_x else None,
        _stacked(each.states for each in found),
        _stacked(each.weights for each in found),
    )


def _stacked(results: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The members' results, each as one tensor."""
    return [torch.stack(each) for each in zip(*results, strict=True)]


class _Run(Slots):
    """One call, forward or backward."""

    def __init__(self, call: Call):
        super().__init__(call)
        self.once: dict[str, Tensor] = {}
        if self.plan.forward.once:
            self._compute_once()

    # Values of parameters alone -----------------------------------------------------------------

    def _compute_once(self) -> None:
        signature = self.kernels.signature
        found = [once.values(signature, weights) for weights in self.by_member(self.weights)]
        for number, (name, node) in enumerate(self.plan.forward.once.items()):
            value = self.joined([each[number] for each in found], (self.sizes[node.size],))
            self.once[name] = self.put(f"value.{name}", value)

    def _differentiate_once(self, totals: dict[str, Tensor]) -> None:
        """Carry the gradients of such values on to the parameters behind them."""
        signature = self.kernels.signature
        names = once.arriving(signature)
        given = [totals.get(name, torch.zeros_like(self.once[name])) for name in names]
        members = zip(self.by_member(self.weights), self.by_member(given), strict=True)
        found = [
            once.gradients(signature, weights, dict(zip(names, own, strict=True)))
            for weights, own in members
        ]
        shapes = {p.name: p.shape(self.sizes) for p in self.plan.parameters}
        for number, name in enumerate(once.parameters(signature)):
            value = self.joined([each[number] for each in found], shapes[name])
            totals[name] = totals[name] + value if name in totals else value

    # Forward -----------------------------------------------------------------------------------

    def kept_slots(self) -> list[str]:
        """Slots of what the forward pass keeps, in the protocol's order."""
        plan = self.plan.forward
        return [*(f"state.{name}" for name in self.names), *plan.saved, *plan.saved_inputs]

    def forward(self, *, keep: bool) -> Result:
        """Inputs for all steps at once, then the loop."""
        # A member's rows are all of one thread.
        rows = self.rows * threads.count() if self.lead else self.rows
        programs, inputs, loop = self.kernels.forward(keep, self.kernels.fuses(rows))
        plan = self.plan.forward
        kept: dict[str, Tensor] = {}
        if keep:
            after_steps = {f"state.{name}": plan.next[name] for name in self.names}
            kept = self.fresh_together({**after_steps, **plan.saved, **plan.saved_inputs})
        if inputs is not None:
            self.work("inputs", self.every * programs.width)
            self.start_at_once(inputs)
        output = self.fresh("output", plan.output)
        states = {name: kept[f"state.{name}"] for name in self.names if keep}
        rings = {}
        if not keep:
            first, *others = self.names
            if plan.next[first] is plan.output:
                states[first] = output
            else:
                others = self.names
            rings = {name: self.pair(f"state.{name}", name) for name in others}
        trace = [self.fresh(f"trace.{name}", node) for name, node in plan.trace.items()]
        self.start(loop, reverse=self.call.reverse, ring=not keep)
        self.finish()
        last = self.call.steps[-1]
        after = [
            rings[name].select(-3, last & 1).clone()
            if name in rings
            else states[name].select(-3, last).clone()
            for name in self.names
        ]
        return Result(output, after, trace, [kept[s] for s in self.kept_slots()] if keep else [])

    # Backward ----------------------------------------------------------------------------------

    def backward(
        self, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool, need_weights: bool
    ) -> Gradients:
        """The loop from the last step to the first, then what is gathered over all steps."""
        programs, inputs, loop = self.kernels.backward(need_x)
        for slot, value in zip(self.kept_slots(), kept, strict=True):
            self.put(slot, value)
        self.put("d_output", cotangents.output)
        for name, value in zip(self.plan.forward.trace, cotangents.trace, strict=True):
            self.put(f"d_trace.{name}", value)
        carried = []
        for name, value in zip(self.names, cotangents.states, strict=True):
            carry = self.pair(f"carry.{name}", name)
            carry.select(-3, 0).copy_(value)
            carried.append(carry)
        d_inputs = self.work("d_inputs", self.every * programs.width)
        if programs.missing:
            d_inputs.zero_()
        for slot, units in (*programs.kept.items(), *programs.kept_after.items()):
            self.work(slot, self.every * units)
        self.start(loop, reverse=self.call.reverse)
        d_x = None
        if need_x:
            d_x = self.put("d_x", empty(self.call.x.shape, self.dtype))
            if "x" not in self.plan.backward.inputs.values:
                d_x.zero_()
        if inputs is not None:
            self.start_at_once(inputs)
        gradients = []
        if need_weights:
            gradients = [torch.zeros(each.shape, dtype=self.dtype) for each in self.weights]
            self._matrices(gradients, need_x=need_x)
            sums = self._sums(gradients, need_x=need_x)
        self.finish()
        if need_weights:
            self._vectors(gradients, sums)
        after = [carry.select(-3, self.steps % 2).clone() for carry in carried]
        return Gradients(d_x, after, gradients)

    def _matrices(self, gradients: list[Tensor], *, need_x: bool) -> None:
        """Gradients of matrices: products over all rows and steps."""
        product = Product(self.double, self.kernels.bf16)
        bases = [each.data_ptr() for each in gradients]
        for job in self.kernels.jobs(need_x):
            delta, operand = job.delta, job.operand
            left = self.at[delta.slot] + delta.offset * self.width
            right = self.at[operand.slot] + operand.offset * self.width
            gradient = bases[job.tensor] + job.row * job.columns * self.width
            arguments = (job.m, job.n, self.every, left, delta.stride, right, operand.stride,
                         gradient, job.columns)  # fmt: skip
            moves = {}
            if self.lead:
                slots = {"a": delta.slot, "b": operand.slot, "other": operand.initial}
                moves = {name: self.strides[slot] for name, slot in slots.items() if slot}
                moves["c"] = by_member(gradients[job.tensor])
            if operand.index is not Index.BEFORE:
                product.add(*arguments, moves=moves)
                continue
            other = self.at[operand.initial] + operand.offset * self.width
            if self.call.reverse:
                border = (self.every - self.rows, self.every)
                product.add(*arguments, other, border, self.rows, moves=moves)
            else:
                product.add(*arguments, other, (0, self.rows), -self.rows, moves=moves)
        if self.script is None:
            product.run()
        else:
            product.add_to(self.script)

    def _sums(self, gradients: list[Tensor], *, need_x: bool) -> list[tuple[Tensor, list[str]]]:
        """Start the sums of vectors' gradients; those written apart, with the vectors' names."""
        direct = self.kernels.direct_sums(need_x)
        apart: list[tuple[Tensor, list[str]]] = []
        for which, steps, rows in (("loop", self.steps, self.rows), ("inputs", 1, self.every)):
            for each in self.kernels.sums(need_x, which):
                for slot, names in each.results.items():
                    if slot in direct:
                        place = self.kernels.weights[names[0]]
                        self.point(slot, gradients[place.tensor], place.start * self.width)
                    else:
                        value = torch.empty((*self.lead, each.units), dtype=self.dtype)
                        apart.append((self.put(slot, value), names))
                reverse = self.call.reverse and which == "loop"
                if self.script is None:
                    each.compiled.run_sums(self.at, steps, rows, reverse=reverse)
                else:
                    each.compiled.add_to(
                        self.script, self.at, self.strides, [], steps, rows, reverse=reverse
                    )
        return apart

    def _vectors(self, gradients: list[Tensor], sums: list[tuple[Tensor, list[str]]]) -> None:
        """Add the finished sums to the gradients, those behind once-values included."""
        totals: dict[str, Tensor] = {}
        for value, names in sums:
            for name in names:
                totals[name] = totals[name] + value if name in totals else value
        if self.plan.forward.once:
            self._differentiate_once(totals)
        for part in self.call.signature.slices if totals else ():
            if part.parameter in totals:
                rows = (part.start, part.stop - part.start)
                gradients[part.tensor].narrow(len(self.lead), *rows).add_(totals[part.parameter])
