"""The reference engine: a plan carried out step by step with torch operations.

It is the slow readable twin of the engines that generate code, and what they are compared
with. ``forward`` and ``backward`` follow the plan, the derived gradients included;
``differentiable`` runs only the forward plan, leaving the gradients to torch's autograd: for
second derivatives and for ``torch.func``.

A step computes its own ``W @ x`` with the same shapes whether it is alone or one of many, so
streaming gives exactly the numbers of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.engines.signature import Signature
from cellwright.ir import Matrix, Node, topological
from cellwright.plan import Gradients as PlannedGradients
from cellwright.plan import Outer

Environment = dict[Node, Tensor]


class ReferenceEngine:
    """Runs every plan on every device and dtype."""

    name = "reference"

    def objection(
        self, signature: Signature, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """None: there is nothing it cannot run."""
        return None

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the forward plan."""
        return _Run(call).forward(keep=keep)

    def backward(
        self, call: Call, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        """Run the backward plan."""
        return _Run(call).backward(list(kept), cotangents, need_x=need_x)


def differentiable(call: Call) -> Result:
    """The forward plan as plain torch operations that torch's autograd can follow."""
    return _Run(call).forward(keep=False)


class _Run:
    """One call: its tensors, bound to the leaves of the plan's graphs."""

    def __init__(self, call: Call):
        self.call = call
        self.plan = call.signature.plan
        self.algebra = algebra(call.signature.spatial)
        self.evaluator = Evaluator(self.algebra, call.signature.size, call.x)
        self.parameters: dict[str, Tensor] = {}
        for each in call.signature.slices:
            weight = call.weights[each.tensor]
            whole = each.start == 0 and each.stop == weight.shape[0]
            self.parameters[each.parameter] = (
                weight if whole else weight.narrow(0, each.start, each.stop - each.start)
            )
        self.forward_plan = self.plan.forward
        self.backward_plan = self.plan.backward
        self.leaves = self._leaf_names()

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

    def bind(self, environment: Environment, kind: str, name: str, value: Tensor) -> None:
        """Let the leaf of that kind and name have a value, where the plan reads it."""
        for each in self.leaves.get((kind, name), ()):
            environment[each] = value

    def constants(self) -> Environment:
        """What is the same at every step: parameters, what follows from them, whole masks."""
        environment: Environment = {}
        for name, parameter in self.parameters.items():
            leaves = self.leaves.get(("parameter", name), ())
            matrix = any(isinstance(each.type, Matrix) for each in leaves)
            value = parameter if matrix else self.algebra.vector(parameter)
            self.bind(environment, "parameter", name, value)
        self.once = dict(self._complete(self.forward_plan.once, environment))
        for name, value in self.once.items():
            self.bind(environment, "value", name, value)
        for spec, mask in zip(self.plan.graph.streams, self.call.streams, strict=True):
            if not spec.per_step:
                self.bind(environment, "stream", spec.name, mask)
        return environment

    def _complete(
        self, named: Mapping[str, Node], environment: Environment
    ) -> list[tuple[str, Tensor]]:
        values = self.evaluator.complete(named.values(), environment)
        return list(zip(named, values, strict=True))

    def enter_step(self, constants: Environment, t: int) -> Environment:
        """The constants and the masks of step ``t``."""
        environment = dict(constants)
        for spec, mask in zip(self.plan.graph.streams, self.call.streams, strict=True):
            if spec.per_step:
                self.bind(environment, "stream", spec.name, mask[t])
        return environment

    def forward(self, *, keep: bool) -> Result:
        plan = self.forward_plan
        constants = self.constants()
        names = [each.name for each in self.plan.graph.states]
        states = dict(zip(names, map(_aligned, self.call.states), strict=True))
        outputs: dict[int, Tensor] = {}
        traces: dict[str, dict[int, Tensor]] = {name: {} for name in plan.trace}
        kept: dict[str, dict[int, Tensor]] = {}
        if keep:
            kept = {name: {} for name in (*names, *plan.saved)}
        for t in self.call.steps:
            environment = self.enter_step(constants, t)
            self.bind(environment, "input", "x", _aligned(self.call.x[t]))
            for name, value in self._complete(plan.inputs, environment):
                self.bind(environment, "value", name, value)
            for name, value in states.items():
                self.bind(environment, "state", name, value)
            for stage in plan.loop.stages:
                self.evaluator.evaluate(stage.nodes, environment)
            states = {name: self._at(environment, plan.next[name]) for name in names}
            outputs[t] = self._at(environment, plan.output)
            for name, node in plan.trace.items():
                traces[name][t] = self._at(environment, node)
            if keep:
                for name in names:
                    kept[name][t] = states[name]
                for name, node in plan.saved.items():
                    kept[name][t] = self._at(environment, node)
        return Result(
            output=self._stack(outputs, plan.output),
            states=[states[name] for name in names],
            trace=[self._stack(traces[name], node) for name, node in plan.trace.items()],
            kept=[
                self._stack(values, plan.saved[name] if name in plan.saved else plan.next[name])
                for name, values in kept.items()
            ],
        )

    def _at(self, environment: Environment, node: Node) -> Tensor:
        if node not in environment:
            self.evaluator.evaluate([node], environment)
        return self._whole(environment[node], node, self.call.x.shape[1])

    def _whole(self, value: Tensor, node: Node, rows: int) -> Tensor:
        """The value with all rows and units; constants and parameters have been broadcast."""
        units = self.call.signature.size[node.size]
        return value.expand(rows, units, *self.call.x.shape[3:])

    def _stack(self, by_step: dict[int, Tensor], node: Node) -> Tensor:
        if by_step:
            return torch.stack([by_step[t] for t in range(len(by_step))])
        units = self.call.signature.size[node.size]
        return self.call.x.new_zeros((0, self.call.x.shape[1], units, *self.call.x.shape[3:]))

    def backward(
        self, kept: list[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        plan = self.backward_plan
        names = [each.name for each in self.plan.graph.states]
        after = dict(zip(names, kept, strict=False))
        saved = dict(zip(self.forward_plan.saved, kept[len(names) :], strict=True))
        constants = self.constants()
        carried = dict(zip(names, cotangents.states, strict=True))
        totals: dict[str, Tensor] = {}
        hoisted: dict[str, dict[int, Tensor]] = {
            name: {} for name in plan.hoisted if name.startswith("input.")
        }
        once: dict[str, Tensor] = {}
        pairs: dict[Outer, list[tuple[Tensor, Tensor]]] = {
            outer: [] for outer in plan.parameters.matrices
        }
        order = list(self.call.steps)
        rows = self.call.x.shape[1]
        for position in range(len(order) - 1, -1, -1):
            t = order[position]
            environment = self.enter_step(constants, t)
            for index, name in enumerate(names):
                before = after[name][order[position - 1]] if position else self.call.states[index]
                self.bind(environment, "state", name, before)
                self.bind(environment, "value", f"next.{name}", after[name][t])
                self.bind(environment, "cotangent", f"next.{name}", carried[name])
            for name, value in saved.items():
                self.bind(environment, "value", name, value[t])
            self.bind(environment, "cotangent", "output", cotangents.output[t])
            for name, value in zip(self.forward_plan.trace, cotangents.trace, strict=True):
                self.bind(environment, "cotangent", f"trace.{name}", value[t])
            for stage in plan.loop.stages:
                self.evaluator.evaluate(stage.nodes, environment)
            self._add_vectors(totals, plan.parameters, environment, rows)
            for outer in plan.parameters.matrices:
                pairs[outer].append(self._pair(outer, environment, rows))
            for name, node in plan.hoisted.items():
                value = self._at(environment, node)
                if name in hoisted:
                    hoisted[name][t] = value
                else:
                    _add(once, name, value.sum_to_size(self.once[name].shape))
            carried = {
                name: self._at(environment, plan.states[name])
                if name in plan.states
                else torch.zeros_like(carried[name])
                for name in names
            }
        for outer, every in pairs.items():
            deltas, operands = (torch.cat(part) for part in zip(*every, strict=True))
            self._add_matrix(totals, outer, deltas, operands)
        stacked = {name: self._stack(v, plan.hoisted[name]) for name, v in hoisted.items()}
        x = self._after_loop(stacked, once, totals, constants, need_x=need_x)
        return Gradients(x, [carried[name] for name in names], self._weights(totals))

    def _add_vectors(
        self,
        totals: dict[str, Tensor],
        found: PlannedGradients,
        environment: Environment,
        rows: int,
    ) -> None:
        """Add what a graph contributes to the gradients of vector parameters."""
        for name, node in found.vectors.items():
            (value,) = self.evaluator.complete([node], environment)
            like = self.algebra.vector(self.parameters[name])
            summed = self._whole(value, node, rows).sum_to_size(like.shape)
            _add(totals, name, summed.reshape(self.parameters[name].shape))

    def _pair(self, outer: Outer, environment: Environment, rows: int) -> tuple[Tensor, Tensor]:
        nodes = (outer.delta, outer.operand)
        delta, operand = self.evaluator.complete(nodes, environment)
        return self._whole(delta, nodes[0], rows), self._whole(operand, nodes[1], rows)

    def _add_matrix(
        self, totals: dict[str, Tensor], outer: Outer, delta: Tensor, operand: Tensor
    ) -> None:
        """Add an outer product, over all rows at once, to a matrix's gradient."""
        weight = self.parameters[outer.parameter]
        kind = self.leaves[("parameter", outer.parameter)][0].matrix
        delta, operand = (self.evaluator.round(v, outer.precision) for v in (delta, operand))
        _add(totals, outer.parameter, self.algebra.outer(delta, operand, weight, kind))

    def _after_loop(
        self,
        stacked: dict[str, Tensor],
        once: dict[str, Tensor],
        totals: dict[str, Tensor],
        constants: Environment,
        *,
        need_x: bool,
    ) -> Tensor | None:
        """Gradients of what was hoisted: over all steps at once, then of parameters alone."""
        plan, x = self.backward_plan, self.call.x
        steps, rows = x.shape[0], x.shape[0] * x.shape[1]
        environment = dict(constants)
        self.bind(environment, "input", "x", x.flatten(0, 1))
        for spec, mask in zip(self.plan.graph.streams, self.call.streams, strict=True):
            repeated = mask.repeat(steps, *[1] * (mask.dim() - 1))
            every = mask.flatten(0, 1) if spec.per_step else repeated
            self.bind(environment, "stream", spec.name, every)
        for name, node in self.forward_plan.inputs.items():
            zero = x.new_zeros(()).expand(rows, self.call.signature.size[node.size], *x.shape[3:])
            value = stacked[name].flatten(0, 1) if name in stacked else zero
            self.bind(environment, "cotangent", name, value)
        self._add_vectors(totals, plan.inputs, environment, rows)
        for outer in plan.inputs.matrices:
            self._add_matrix(totals, outer, *self._pair(outer, environment, rows))
        for name, node in plan.inputs.values.items():
            if name != "x":
                (value,) = self.evaluator.complete([node], environment)
                whole = self._whole(value, node, rows)
                _add(once, name, whole.sum_to_size(self.once[name].shape))
        alone = dict(constants)
        for name, value in self.once.items():
            self.bind(alone, "cotangent", name, once.get(name, torch.zeros_like(value)))
        for name, node in plan.once.vectors.items():
            (value,) = self.evaluator.complete([node], alone)
            like = self.algebra.vector(self.parameters[name])
            _add(totals, name, value.expand_as(like).reshape(self.parameters[name].shape))
        if not need_x:
            return None
        if "x" not in plan.inputs.values:
            return torch.zeros_like(x)
        (value,) = self.evaluator.complete([plan.inputs.values["x"]], environment)
        return value.reshape(x.shape)

    def _weights(self, totals: dict[str, Tensor]) -> list[Tensor]:
        """The gradients of the parameters, laid out as the weights are."""
        gradients = [torch.zeros_like(each) for each in self.call.weights]
        for each in self.call.signature.slices:
            if each.parameter in totals:
                gradients[each.tensor][each.start : each.stop] += totals[each.parameter]
        return gradients


def _aligned(v: Tensor) -> Tensor:
    """A copy at the start of its memory: a library's products may depend on the address."""
    return v.clone(memory_format=torch.contiguous_format)


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    totals[name] = totals[name] + value if name in totals else value
