"""Populations on the CPU engine: one call with weights of their own for every member."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import once, threads
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.kernels import Job
from cellwright.engines.cpu.matrices import Product, add_products, turns
from cellwright.engines.cpu.members import Stride, by_member
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.slots import Slots
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result


def forward(call: Call, *, keep: bool) -> Result:
    """Run the forward programs of every member."""
    if _go_one_by_one(call):
        return _forward_one_by_one(call, keep=keep)
    return _Run(call).forward(keep=keep)


def backward(
    call: Call, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool, need_weights: bool
) -> Gradients:
    """Run the backward programs of every member."""
    needs = {"need_x": need_x, "need_weights": need_weights}
    if _go_one_by_one(call):
        return _backward_one_by_one(call, kept, cotangents, **needs)
    return _Run(call).backward(kept, cotangents, **needs)


def _go_one_by_one(call: Call) -> bool:
    """Whether members run one after the other, each on all threads.

    They do where they are few, and where they save less than all gates.
    """
    assert call.population is not None
    few = call.population < threads.count()
    return call.population > 0 and (few or call.signature.options.save != "gates")


def _forward_one_by_one(call: Call, *, keep: bool) -> Result:
    found = [ForwardPass(each, keep=keep).run() for each in call.members()]
    return Result(
        torch.stack([each.output for each in found]),
        _stacked(each.states for each in found),
        _stacked(each.trace for each in found),
        _stacked(each.kept for each in found),
    )


def _backward_one_by_one(
    call: Call, kept: Sequence[Tensor], cotangents: Cotangents, **needs: bool
) -> Gradients:
    found = []
    for number, each in enumerate(call.members()):
        own = [value[number] for value in kept]
        found.append(BackwardPass(each, own, cotangents.of_member(number), **needs).run())
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
    """One call, forward or backward: everything is written into a script, which is then run."""

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
        fuse = self.kernels.fuses(self.rows * threads.count())
        programs, inputs, loop = self.kernels.forward(keep, fuse)
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
        self.script.run()
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
        every: list[list[Tensor]] = []
        if need_weights:
            for _ in range(turns(self.kernels.jobs(need_x))):
                every.append([torch.zeros(each.shape, dtype=self.dtype) for each in self.weights])
            self._matrices(every, need_x=need_x)
            sums = self._sums(every[0], need_x=need_x)
        self.script.run()
        gradients, *others = every or [[]]
        for other in others:
            for into, each in zip(gradients, other, strict=True):
                into += each
        if need_weights:
            self._vectors(gradients, sums)
        after = [carry.select(-3, self.steps % 2).clone() for carry in carried]
        return Gradients(d_x, after, gradients)

    def _matrices(self, gradients: list[list[Tensor]], *, need_x: bool) -> None:
        """Let the script add up the gradients of matrices, as one call by itself does."""
        product = Product(self.double, self.kernels.bf16)

        def moves(job: Job) -> Mapping[str, Stride]:
            slots = {"a": job.delta.slot, "b": job.operand.slot, "other": job.operand.initial}
            found = {name: self.strides[slot] for name, slot in slots.items() if slot}
            return found | {"c": by_member(gradients[job.turn][job.tensor])}

        add_products(
            product, self.kernels.jobs(need_x), self.at, gradients, self.every, self.rows,
            reverse=self.call.reverse, moves=moves,
        )  # fmt: skip
        product.add_to(self.script)

    def _sums(self, gradients: list[Tensor], *, need_x: bool) -> list[tuple[Tensor, list[str]]]:
        """Let the script sum vectors' gradients; those written apart, with the vectors' names."""
        direct = self.kernels.direct_sums(need_x)
        apart: list[tuple[Tensor, list[str]]] = []
        for which, steps, rows in (("loop", self.steps, self.rows), ("inputs", 1, self.every)):
            for each in self.kernels.sums(need_x, which):
                for slot, names in each.results.items():
                    if slot in direct:
                        place = self.kernels.weights[names[0]]
                        self.point(slot, gradients[place.tensor], place.start * self.width)
                    else:
                        value = torch.zeros((*self.lead, each.units), dtype=self.dtype)
                        apart.append((self.put(slot, value), names))
                each.compiled.add_to(
                    self.script, self.at, self.strides, [], steps, rows, reverse=self.call.reverse
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
