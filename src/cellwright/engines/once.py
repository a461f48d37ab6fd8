"""Values that follow from parameters alone, and their gradients: by torch, once a call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cellwright.engines.protocol import Call
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.ir import Matrix, Node, topological

Totals = dict[str, Tensor]
"""Gradients by the name of a parameter, or of a value computed once."""


def add(totals: Totals, name: str, value: Tensor) -> None:
    """Add to the gradient of that name."""
    totals[name] = totals[name] + value if name in totals else value


class Once:
    """The values of a call's ``once`` graph.

    Args:
        call: whose parameters they follow from.
        dtype: in which they are computed.

    Attributes:
        values: by name, with all units.
    """

    def __init__(self, call: Call, dtype: torch.dtype):
        self.call, self.dtype = call, dtype
        self.plan = call.signature.plan
        self.sizes = call.signature.size
        self.evaluator = Evaluator(algebra(0), self.sizes, call.x.new_empty(0, dtype=dtype))
        graph = self.plan.forward.once
        found = self.evaluator.complete(graph.values(), self._bound(graph.values()))
        self.values = {
            name: value.expand(self.sizes[graph[name].size]).contiguous()
            for name, value in zip(graph, found, strict=True)
        }

    def _bound(self, roots: Iterable[Node]) -> dict[Node, Tensor]:
        slices = {each.parameter: each for each in self.call.signature.slices}
        found = {}
        for each in topological(roots):
            if each.op == "parameter":
                place = slices[str(each.attribute("name"))]
                weight = self.call.weights[place.tensor].detach()[place.start : place.stop]
                # At the start of its memory: torch's products depend on the address.
                found[each] = weight.to(self.dtype, copy=True)
        return found

    def differentiate(self, totals: Totals) -> None:
        """Carry the gradients of such values on to the parameters behind them."""
        plan = self.plan.backward.once
        environment = self._bound([*self.plan.forward.once.values(), *plan.roots])
        for each in topological(plan.roots):
            if each.op == "cotangent":
                name = str(each.attribute("name"))
                environment[each] = totals.get(name, torch.zeros_like(self.values[name]))
        kinds = {p.name: p.type for p in self.plan.parameters}
        shapes = {p.name: p.shape(self.sizes) for p in self.plan.parameters}
        for name, node in plan.vectors.items():
            (value,) = self.evaluator.complete([node], environment)
            add(totals, name, value.expand(shapes[name]))
        for outer in plan.matrices:
            delta, operand = self.evaluator.complete([outer.delta, outer.operand], environment)
            left = delta.expand(1, self.sizes[outer.delta.size])
            right = operand.expand(1, self.sizes[outer.operand.size])
            kind = kinds[outer.parameter]
            assert isinstance(kind, Matrix)
            add(totals, outer.parameter, algebra(0).outer(left, right, left, kind))
