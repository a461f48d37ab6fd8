"""Reverse-mode differentiation from graph to graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cellwright.ir.node import Node, apply, topological
from cellwright.ir.operators import TABLE
from cellwright.ir.types import ONE, Vector


def gradient(seeds: Mapping[Node, Node], wrt: Sequence[Node]) -> dict[Node, Node]:
    """Cotangents of ``wrt``, given the cotangents of some results.

    Args:
        seeds: result -> the gradient of the loss with respect to it, as a node.
        wrt: nodes whose gradients are wanted, usually leaves.

    Returns:
        A node for each of ``wrt`` that the results depend on; the others are left out.
        The gradient of a matrix is a sum of ``outer`` nodes. The gradient of a vector
        parameter is the contribution of one row and step; the sum over both is its user's.
    """
    order = topological(seeds)
    active = _reachable(order, wrt)
    cotangents: dict[Node, Node] = {}
    for result, seed in seeds.items():
        _accumulate(cotangents, result, seed)
    wanted = set(wrt)
    for each in reversed(order):
        cotangent = cotangents.get(each)
        if cotangent is None or each in wanted or each not in active:
            continue
        rule = TABLE[each.op].derivative
        if rule is None:
            continue
        contributions = rule(cotangent, each, *each.inputs, **dict(each.attributes))
        for source, contribution in zip(each.inputs, contributions, strict=True):
            if contribution is not None and source in active:
                _accumulate(cotangents, source, _unbroadcast(contribution, source))
    return {each: cotangents[each] for each in wrt if each in cotangents}


def _reachable(order: Sequence[Node], wrt: Sequence[Node]) -> set[Node]:
    active = set(wrt)
    for each in order:
        if any(source in active for source in each.inputs):
            active.add(each)
    return active


def _accumulate(cotangents: dict[Node, Node], target: Node, contribution: Node) -> None:
    held = cotangents.get(target)
    if held is None:
        cotangents[target] = contribution
    elif held.op == contribution.op == "sum" and held.inputs[0].type == contribution.inputs[0].type:
        # One sum over the units rather than two.
        cotangents[target] = apply("sum", held.inputs[0] + contribution.inputs[0])
    else:
        cotangents[target] = held + contribution


def _unbroadcast(contribution: Node, source: Node) -> Node:
    """The contribution in the type of ``source``, which broadcasting may have widened."""
    have, want = contribution.type, source.type
    if isinstance(have, Vector) and isinstance(want, Vector) and have.size != want.size:
        if want.size == ONE:
            return apply("sum", contribution)
        assert have.size == ONE, f"a cotangent of {have} for a value of {want}"
        return apply("expand", contribution, size=want.size)
    return contribution
