"""Chooses what the forward pass saves for the backward pass, and what is computed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cellwright.ir import ONE, TABLE, Node, is_leaf, topological

RECOMPUTE_LIMIT = 23
"""Largest cost, in the table's units, of a value that is computed again rather than saved.

It admits one transcendental function of values that are at hand (such as tanh of the cell state)
and some arithmetic, but no chain of two functions.
"""


def choose(needed: Iterable[Node], at_hand: Mapping[Node, int]) -> list[Node]:
    """The values to save so that every one of ``needed`` can be had in the backward pass.

    Args:
        needed: forward values that the gradient graph reads.
        at_hand: what can be had anyway, and what that costs: the states before and after the
            step, and hoisted values that :func:`costs` knows.

    A value whose operands can all be had is computed again if that is cheap; otherwise it is
    saved, or the single number of the row that is missing for it. Products are always saved:
    nothing is ever multiplied twice.
    """
    needed = list(needed)
    cost = dict(at_hand)
    saved: dict[Node, None] = {}
    wanted = set(needed)
    for each in topological(needed):
        if each in cost:
            continue
        if is_leaf(each):
            if _stays(each):
                cost[each] = 0
            continue
        total, possible = _again(each, cost)
        if possible and total <= RECOMPUTE_LIMIT:
            cost[each] = total
        elif each in wanted:
            for part in _parts(each, cost) if total <= RECOMPUTE_LIMIT else [each]:
                saved[part] = None
                cost[part] = 0
            cost.setdefault(each, total)
    missing = [each for each in needed if each not in cost and each not in saved]
    return [*saved, *dict.fromkeys(missing)]


def costs(roots: Iterable[Node], at_hand: Iterable[Node]) -> dict[Node, int]:
    """What it costs to compute values again; without those for which that is not cheap.

    Args:
        roots: the values.
        at_hand: values that are kept.
    """
    roots = list(roots)
    cost: dict[Node, int] = dict.fromkeys(at_hand, 0)
    for each in topological(roots):
        if each in cost:
            continue
        if is_leaf(each):
            if _stays(each):
                cost[each] = 0
            continue
        total, possible = _again(each, cost)
        if possible and total <= RECOMPUTE_LIMIT:
            cost[each] = total
    return {root: cost[root] for root in roots if root in cost}


def _stays(each: Node) -> bool:
    """Whether a leaf can be read in the backward pass as it could in the forward pass.

    A hoisted value is an array over all steps that the forward pass may overwrite.
    """
    return each.op != "value" or str(each.attribute("name")).startswith("once.")


def _again(each: Node, cost: Mapping[Node, int]) -> tuple[int, bool]:
    """What it costs to compute a value, for every unit, as far as its operands can be had.

    Returns:
        the cost, to which what is computed once a row adds nothing, and whether all can be had.
    """
    found = [cost[source] for source in each.inputs if source in cost]
    own = 0 if each.size == ONE else TABLE[each.op].cost
    possible = TABLE[each.op].kind == "pointwise" and len(found) == len(each.inputs)
    return own + sum(found), possible


def _parts(each: Node, cost: Mapping[Node, int]) -> list[Node]:
    """What is saved for the sake of ``each``: itself, or what it is one operation away from.

    The latter where that takes no more memory: a single number for the whole row, beside a product
    or what is at hand. A product is complete as soon as it has been multiplied, while what becomes
    of it with that number is known only when all units are.
    """
    operator = TABLE[each.op]
    if operator.kind != "pointwise" or operator.cost > 1 or each.size == ONE:
        return [each]
    missing = [source for source in each.inputs if source not in cost]
    wide = [source for source in missing if source.size != ONE]
    numbers = [source for source in each.inputs if source.size == ONE and not is_leaf(source)]
    if not numbers or len(wide) > 1:
        return [each]
    if any(TABLE[source.op].kind != "product" for source in wide):
        return [each]
    return missing
