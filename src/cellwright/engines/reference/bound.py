"""A call's tensors, bound to the leaves of its plan's graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from cellwright.engines.protocol import Call
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.ir import Matrix, Node, topological

Environment = dict[Node, Tensor]


class BoundCall:
    """One call, ready to be evaluated.

    A value is (rows, units, *space); what depends on parameters alone has one row.

    Args:
        call: what is to be run.
        marked: with the operators that torch's autograd has to see.
    """

    def __init__(self, call: Call, *, marked: bool = False):
        self.call = call
        self.plan = call.signature.plan
        self.forward_plan = self.plan.marked if marked else self.plan.forward
        self.backward_plan = self.plan.backward
        self.state_names = [each.name for each in self.plan.graph.states]
        self.algebra = algebra(call.signature.spatial)
        self.evaluator = Evaluator(self.algebra, call.signature.size, call.x)
        self.parameters: dict[str, Tensor] = {}
        for each in call.signature.slices:
            weight = call.weights[each.tensor]
            whole = each.start == 0 and each.stop == weight.shape[0]
            self.parameters[each.parameter] = (
                weight if whole else weight.narrow(0, each.start, each.stop - each.start)
            )
        self.leaves = self._leaf_names()
        self.once: dict[str, Tensor] = {}
        self.constants = self._constants()

    def _leaf_names(self) -> dict[tuple[str, str], list[Node]]:
        """Every leaf of the plan's graphs by kind and name."""
        forward, backward = self.forward_plan, self.backward_plan
        roots = [
            *forward.once.values(), *forward.inputs.values(), *forward.loop.roots,
            *backward.loop.roots, *backward.inputs.roots, *backward.once.roots,
        ]  # fmt: skip
        found: dict[tuple[str, str], list[Node]] = {}
        for each in topological(roots):
            if not each.inputs and each.op not in ("constant", "reciprocal_size"):
                found.setdefault((each.op, each.attribute("name")), []).append(each)
        return found

    def _constants(self) -> Environment:
        """What is the same at every step: parameters, what follows from them, whole masks."""
        environment: Environment = {}
        for name, parameter in self.parameters.items():
            leaves = self.leaves.get(("parameter", name), ())
            matrix = any(isinstance(each.type, Matrix) for each in leaves)
            value = parameter if matrix else self.algebra.vector(parameter)
            self.bind(environment, "parameter", name, value)
        self.once = dict(self.complete(self.forward_plan.once, environment))
        for name, value in self.once.items():
            self.bind(environment, "value", name, value)
        for spec, mask in zip(self.plan.graph.streams, self.call.streams, strict=True):
            if not spec.per_step:
                self.bind(environment, "stream", spec.name, mask)
        return environment

    def bind(self, environment: Environment, kind: str, name: str, value: Tensor) -> None:
        """Let the leaf of that kind and name have a value, where the plan reads it."""
        for each in self.leaves.get((kind, name), ()):
            environment[each] = value

    def complete(
        self, named: Mapping[str, Node], environment: Environment
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and values of ``named``, computing all that they need beyond ``environment``."""
        return zip(named, self.evaluator.complete(named.values(), environment), strict=True)

    def enter_step(self, t: int) -> Environment:
        """The constants and the masks of step ``t``."""
        environment = dict(self.constants)
        for spec, mask in zip(self.plan.graph.streams, self.call.streams, strict=True):
            if spec.per_step:
                self.bind(environment, "stream", spec.name, mask[t])
        return environment

    def at(self, environment: Environment, node: Node) -> Tensor:
        """The value of ``node`` at a step, with all of its rows, units and positions."""
        if node not in environment:
            self.evaluator.evaluate([node], environment)
        return self.evaluator.whole(environment[node], node.size, self.call.x.shape[1])

    def stack(self, by_step: Mapping[int, Tensor]) -> Tensor:
        """Values of every step as one tensor, in the order of time."""
        return torch.stack([by_step[t] for t in range(len(by_step))])
