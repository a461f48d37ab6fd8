"""The backward plan: the loop from the last step to the first, then what was hoisted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cellwright.engines.protocol import Call, Cotangents, Gradients
from cellwright.engines.reference.bound import BoundCall, Environment
from cellwright.plan import Gradients as PlannedGradients
from cellwright.plan import Outer


class Backward(BoundCall):
    """One backward pass, and the gradients that it has added up so far.

    Args:
        call: as it was given to the forward pass.
        kept: what the forward pass kept: states, saved values, saved inputs.
        cotangents: gradients of the loss with respect to the results.
    """

    def __init__(self, call: Call, kept: Sequence[Tensor], cotangents: Cotangents):
        super().__init__(call)
        plan = self.forward_plan
        named = iter(kept)
        self.after = {name: next(named) for name in self.state_names}
        self.saved = {name: next(named) for name in plan.saved}
        self.saved_inputs = {name: next(named) for name in plan.saved_inputs}
        self.cotangents = cotangents
        self.totals: dict[str, Tensor] = {}  # gradients of parameters
        self.d_once: dict[str, Tensor] = {}  # gradients of what is computed once a call

    def run(self, *, need_x: bool, need_weights: bool) -> Gradients:
        """All gradients; those of the input and of the weights only if they are asked for."""
        carried, d_inputs = self._loop()
        x = self._inputs(d_inputs, need_x=need_x)
        self.differentiate_once()
        return Gradients(x, carried, self._weights() if need_weights else [])

    def _loop(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Gradients of the states before the first step, and of the hoisted inputs."""
        plan, rows = self.backward_plan, self.call.x.shape[1]
        carried = dict(zip(self.state_names, self.cotangents.states, strict=True))
        d_inputs: dict[str, dict[int, Tensor]] = {
            name: {} for name in plan.hoisted if name.startswith("input.")
        }
        pairs: dict[Outer, list[tuple[Tensor, Tensor]]] = {
            outer: [] for outer in plan.parameters.matrices
        }
        for t, environment in self._steps_backwards():
            for name, value in carried.items():
                self.bind(environment, "cotangent", f"next.{name}", value)
            for stage in plan.loop.stages:
                self.evaluator.evaluate(stage.nodes, environment)
            self._add_vectors(plan.parameters, environment, rows)
            for outer in plan.parameters.matrices:
                pairs[outer].append(self._pair(outer, environment, rows))
            for name, node in plan.hoisted.items():
                value = self.at(environment, node)
                if name in d_inputs:
                    d_inputs[name][t] = value
                else:
                    self._add_once(name, value)
            carried = {
                name: self.at(environment, plan.states[name])
                if name in plan.states
                else torch.zeros_like(carried[name])
                for name in self.state_names
            }
        for outer, every in pairs.items():
            deltas, operands = (torch.cat(part) for part in zip(*every, strict=True))
            self._add_matrix(outer, deltas, operands)
        return [*carried.values()], {name: self.stack(v) for name, v in d_inputs.items()}

    def _steps_backwards(self) -> Iterable[tuple[int, Environment]]:
        """Each step, last first, with all that its gradients read save what is carried."""
        order = list(self.call.steps)
        for position in range(len(order) - 1, -1, -1):
            t = order[position]
            environment = self.enter_step(t)
            for index, (name, after) in enumerate(self.after.items()):
                before = after[order[position - 1]] if position else self.call.states[index]
                self.bind(environment, "state", name, before)
                self.bind(environment, "value", f"next.{name}", after[t])
            for name, value in (self.saved | self.saved_inputs).items():
                self.bind(environment, "value", name, value[t])
            self.bind(environment, "cotangent", "output", self.cotangents.output[t])
            for name, value in zip(self.forward_plan.trace, self.cotangents.trace, strict=True):
                self.bind(environment, "cotangent", f"trace.{name}", value[t])
            yield t, environment

    def _inputs(self, d_inputs: dict[str, Tensor], *, need_x: bool) -> Tensor | None:
        """Gradients of what was hoisted, over all steps at once; the gradient of ``x``."""
        plan, x = self.backward_plan.inputs, self.call.x
        steps, rows = x.shape[0], x.shape[0] * x.shape[1]
        environment = dict(self.constants)
        self.bind(environment, "input", "x", x.flatten(0, 1))
        for name, value in self.saved_inputs.items():
            self.bind(environment, "value", name, value.flatten(0, 1))
        for spec, mask in zip(self.plan.graph.streams, self.call.streams, strict=True):
            repeated = mask.repeat(steps, *[1] * (mask.dim() - 1))
            every = mask.flatten(0, 1) if spec.per_step else repeated
            self.bind(environment, "stream", spec.name, every)
        for name, node in self.forward_plan.inputs.items():
            zero = self.evaluator.whole(x.new_zeros(()), node.size, rows)
            value = d_inputs[name].flatten(0, 1) if name in d_inputs else zero
            self.bind(environment, "cotangent", name, value)
        self._add_vectors(plan, environment, rows)
        for outer in plan.matrices:
            self._add_matrix(outer, *self._pair(outer, environment, rows))
        once = {name: node for name, node in plan.values.items() if name != "x"}
        for name, value in self.complete(once, environment):
            self._add_once(name, self.evaluator.whole(value, once[name].size, rows))
        if not need_x:
            return None
        if "x" not in plan.values:
            return torch.zeros_like(x)
        (d_x,) = self.evaluator.complete([plan.values["x"]], environment)
        return d_x.reshape(x.shape)

    def differentiate_once(self) -> None:
        """Carry the gradients of what is computed once a call on to parameters."""
        plan = self.backward_plan.once
        environment = dict(self.constants)
        for name, value in self.once.items():
            d_value = self.d_once.get(name, torch.zeros_like(value))
            self.bind(environment, "cotangent", name, d_value)
        self._add_vectors(plan, environment, None)
        for outer in plan.matrices:
            self._add_matrix(outer, *self._pair(outer, environment, 1))

    def _add_vectors(
        self, found: PlannedGradients, environment: Environment, rows: int | None
    ) -> None:
        """Add what a graph contributes to the gradients of vector parameters."""
        for name, value in self.complete(found.vectors, environment):
            if rows is not None:
                value = self.evaluator.whole(value, found.vectors[name].size, rows)
            parameter = self.parameters[name]
            summed = value.sum_to_size(self.algebra.vector(parameter).shape)
            _add(self.totals, name, summed.reshape(parameter.shape))

    def _pair(self, outer: Outer, environment: Environment, rows: int) -> tuple[Tensor, Tensor]:
        """Both factors of an outer product, with all of their rows."""
        delta, operand = self.evaluator.complete((outer.delta, outer.operand), environment)
        return (
            self.evaluator.whole(delta, outer.delta.size, rows),
            self.evaluator.whole(operand, outer.operand.size, rows),
        )

    def _add_matrix(self, outer: Outer, delta: Tensor, operand: Tensor) -> None:
        """Add an outer product, over all rows at once, to a matrix's gradient."""
        weight = self.parameters[outer.parameter]
        kind = self.leaves[("parameter", outer.parameter)][0].matrix
        delta, operand = (self.evaluator.round(v, outer.precision) for v in (delta, operand))
        _add(self.totals, outer.parameter, self.algebra.outer(delta, operand, weight, kind))

    def _add_once(self, name: str, value: Tensor) -> None:
        """Add to the gradient of a value that every row, and perhaps every position, reads."""
        _add(self.d_once, name, value.sum_to_size(self.once[name].shape))

    def _weights(self) -> list[Tensor]:
        """The gradients of the parameters, laid out as the weights are."""
        gradients = [torch.zeros_like(each) for each in self.call.weights]
        for each in self.call.signature.slices:
            if each.parameter in self.totals:
                gradients[each.tensor][each.start : each.stop] += self.totals[each.parameter]
        return gradients


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    totals[name] = totals[name] + value if name in totals else value
