"""Cuts the loop's body into stages.

A product reads every unit of its operand, and a reduction too; whatever they read has to be
complete, for all units, before they start. A stage is: some products and reductions, then
pointwise work on their results that needs no further product. On a machine that shares the
units among threads, a barrier stands between two stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cellwright.ir import TABLE, Node, is_leaf, topological

LATE = ("state", "cotangent")
"""Leaves that the step before a step of the loop yields."""


@dataclass(frozen=True)
class Stage:
    """Work between two barriers.

    Attributes:
        products: ``matvec`` and ``matvec_transposed``; operands come from earlier stages.
        reductions: sums and means over units, of values from earlier stages.
        pointwise: the rest, in an order in which it can be computed.
        stored: values of this stage that a later one reads.
    """

    products: tuple[Node, ...]
    reductions: tuple[Node, ...]
    pointwise: tuple[Node, ...]
    stored: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Everything the stage computes, in order."""
        return (*self.products, *self.reductions, *self.pointwise)


def cut(roots: Iterable[Node]) -> tuple[Stage, ...]:
    """The stages that compute ``roots``; each value is computed in exactly one stage."""
    order = [each for each in topological(roots) if not is_leaf(each)]
    level = _levels(order)
    _sink(order, level)
    stages = []
    for index in range(max(level.values(), default=-1) + 1):
        inside = [each for each in order if level[each] == index]
        later = {
            source
            for each in order
            if level[each] > index
            for source in each.inputs
            if level.get(source) == index
        }
        stages.append(
            Stage(
                products=tuple(n for n in inside if TABLE[n.op].kind == "product"),
                reductions=tuple(n for n in inside if TABLE[n.op].kind == "reduction"),
                pointwise=tuple(n for n in inside if TABLE[n.op].kind in ("pointwise", "marker")),
                stored=tuple(n for n in inside if n in later),
            )
        )
    return tuple(each for each in stages if each.nodes)


def _waits(each: Node) -> bool:
    """Whether an operation needs its operand complete; ``x`` is, from the start."""
    kind = TABLE[each.op].kind
    return kind == "reduction" or (kind == "product" and each.inputs[1].op != "input")


def _levels(order: list[Node]) -> dict[Node, int]:
    """The earliest stage of each value."""
    level: dict[Node, int] = {}
    for each in order:
        earliest = max((level.get(source, 0) for source in each.inputs), default=0)
        level[each] = earliest + _waits(each)
    return level


def _sink(order: list[Node], level: dict[Node, int]) -> None:
    """Move what waits for nothing in the loop to its first user, so that it is not stored.

    That is what is in the first level, and what follows from x alone.
    """
    early: set[Node] = set()
    for each in order:
        known = (s in early or (is_leaf(s) and s.op not in LATE) for s in each.inputs)
        if all(known):
            early.add(each)
    first_user: dict[Node, int] = {}
    for each in reversed(order):
        if each in first_user and (level[each] == 0 or each in early):
            level[each] = max(level[each], first_user[each])
        needed = level[each] - _waits(each)
        for source in each.inputs:
            first_user[source] = min(first_user.get(source, needed), needed)
