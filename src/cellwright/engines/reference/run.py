"""The reference engine: a plan carried out step by step with torch operations.

It is the slow readable twin of the engines that generate code, and what they are compared
with. ``forward`` and ``backward`` follow the plan, the derived gradients included;
``differentiable`` runs only the forward plan, leaving the gradients to torch's autograd: for
second derivatives and for ``torch.func``.

A step computes its own ``W @ x`` with the same shapes whether it is alone or one of many, so
streaming gives exactly the numbers of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.engines import segments
from cellwright.engines.protocol import Call, Cotangents, Engine, Gradients, Result
from cellwright.engines.reference.backward import Backward
from cellwright.engines.reference.bound import BoundCall
from cellwright.engines.signature import Signature
from cellwright.ir import Node


class ReferenceEngine(Engine):
    """Runs every plan on every device and dtype."""

    name = "reference"
    purpose = "it runs every cell, device and dtype with torch operations"
    fresh = False

    def objection(
        self, signature: Signature, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """None: there is nothing it cannot run."""
        return None

    def takes_populations(self, signature: Signature) -> bool:
        """No: torch.func.vmap turns its operations into those of a population."""
        return False

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the forward plan."""
        if keep and call.signature.options.save != "gates":
            return segments.forward(call, _kept)
        return _forward(call, keep=keep)

    def backward(
        self,
        call: Call,
        kept: Sequence[Tensor],
        cotangents: Cotangents,
        *,
        need_x: bool,
        need_weights: bool = True,
    ) -> Gradients:
        """Run the backward plan."""

        def gradient(call: Call, kept: Sequence[Tensor], cotangents: Cotangents) -> Gradients:
            return Backward(call, kept, cotangents).run(need_x=need_x, need_weights=need_weights)

        if call.signature.options.save == "gates":
            return gradient(call, kept, cotangents)
        return segments.backward(call, kept, cotangents, _kept, gradient)


def differentiable(call: Call) -> Result:
    """The forward plan as plain torch operations that torch's autograd can follow."""
    return _forward(call, keep=False, marked=True)


def _kept(call: Call) -> Result:
    return _forward(call, keep=True)


def _forward(call: Call, *, keep: bool, marked: bool = False) -> Result:
    bound = BoundCall(call, marked=marked)
    plan, names = bound.forward_plan, bound.state_names
    states = dict(zip(names, map(_aligned, call.states), strict=True))
    output: dict[int, Tensor] = {}
    trace: dict[str, dict[int, Tensor]] = {name: {} for name in plan.trace}
    saved: dict[str, Node] = {**plan.saved, **plan.saved_inputs} if keep else {}
    kept: dict[str, dict[int, Tensor]] = {name: {} for name in (*names, *saved) if keep}
    for t in call.steps:
        environment = bound.enter_step(t)
        bound.bind(environment, "input", "x", _aligned(call.x[t]))
        for name, value in bound.complete(plan.inputs, environment):
            bound.bind(environment, "value", name, value)
        for name, value in states.items():
            bound.bind(environment, "state", name, value)
        for stage in plan.loop.stages:
            bound.evaluator.evaluate(stage.nodes, environment)
        states = {name: bound.at(environment, plan.next[name]) for name in names}
        output[t] = bound.at(environment, plan.output)
        for name, node in plan.trace.items():
            trace[name][t] = bound.at(environment, node)
        if keep:
            for name in names:
                kept[name][t] = states[name]
        for name, node in saved.items():
            kept[name][t] = bound.at(environment, node)
    return Result(
        output=bound.stack(output),
        states=[states[name] for name in names],
        trace=[bound.stack(values) for values in trace.values()],
        kept=[bound.stack(values) for values in kept.values()],
    )


def _aligned(v: Tensor) -> Tensor:
    """A copy at the start of its memory: a library's products may depend on the address."""
    return v.clone(memory_format=torch.contiguous_format)
