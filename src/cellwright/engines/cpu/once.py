"""Values of parameters alone: computed by torch, once a call, and differentiated by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.engines.signature import Signature
from cellwright.ir import Matrix, Node, topological


def values(signature: Signature, weights: Sequence[Tensor]) -> list[Tensor]:
    """The plan's values, in its order, each with all of its units."""
    graph = signature.plan.forward.once
    evaluator = _evaluator(signature, weights)
    found = evaluator.complete(graph.values(), _bound(signature, graph.values(), weights))
    sizes = signature.size
    return [
        value.expand(sizes[node.size]) for value, node in zip(found, graph.values(), strict=True)
    ]


def arriving(signature: Signature) -> list[str]:
    """The values whose gradients :func:`gradients` reads."""
    roots = topological(signature.plan.backward.once.roots)
    return [str(each.attribute("name")) for each in roots if each.op == "cotangent"]


def parameters(signature: Signature) -> list[str]:
    """The parameters whose gradients :func:`gradients` yields; one may come twice."""
    plan = signature.plan.backward.once
    return [*plan.vectors, *(outer.parameter for outer in plan.matrices)]


def gradients(
    signature: Signature, weights: Sequence[Tensor], given: Mapping[str, Tensor]
) -> list[Tensor]:
    """What the gradients of values contribute to those of :func:`parameters`."""
    plan, sizes = signature.plan.backward.once, signature.size
    environment = _bound(signature, [*signature.plan.forward.once.values(), *plan.roots], weights)
    for each in topological(plan.roots):
        if each.op == "cotangent":
            environment[each] = given[str(each.attribute("name"))]
    evaluator = _evaluator(signature, weights)
    specs = {each.name: each for each in signature.plan.parameters}
    found = []
    for name, node in plan.vectors.items():
        (value,) = evaluator.complete([node], environment)
        found.append(value.expand(specs[name].shape(sizes)))
    for outer in plan.matrices:
        delta, operand = evaluator.complete([outer.delta, outer.operand], environment)
        left, right = (
            evaluator.round(value.expand(1, sizes[node.size]), outer.precision)
            for value, node in ((delta, outer.delta), (operand, outer.operand))
        )
        kind = specs[outer.parameter].type
        assert isinstance(kind, Matrix)
        found.append(algebra(0).outer(left, right, weights[0], kind))
    return found


def _evaluator(signature: Signature, weights: Sequence[Tensor]) -> Evaluator:
    return Evaluator(algebra(0), signature.size, weights[0].new_empty((1, 1, 1)))


def _bound(
    signature: Signature, roots: Iterable[Node], weights: Sequence[Tensor]
) -> dict[Node, Tensor]:
    slices = {each.parameter: each for each in signature.slices}
    found = {}
    for each in topological(roots):
        if each.op == "parameter":
            place = slices[str(each.attribute("name"))]
            weight = weights[place.tensor].detach()
            # At the start of its memory: torch's products depend on the address.
            found[each] = weight[place.start : place.stop].clone()
    return found
