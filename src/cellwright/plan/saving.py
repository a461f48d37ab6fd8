"""Chooses what the forward pass saves for the backward pass, and what is computed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cellwright.ir import ONE, TABLE, Node, is_leaf, topological

RECOMPUTE_LIMIT = 16
"""Largest cost, in the table's units, of a value that is computed again rather than saved.

It admits one transcendental function of a value that is at hand (such as tanh of the cell
state) and any short arithmetic, but no chain of two functions.
"""


def choose(needed: Iterable[Node], at_hand: Iterable[Node]) -> list[Node]:
    """The values to save so that every one of ``needed`` can be had in the backward pass.

    Args:
        needed: forward values that the gradient graph reads.
        at_hand: values that are kept anyway: the states before and after the step.

    A value whose operands can all be had is computed again if that is cheap; otherwise it is
    saved, or the single number of the row that is missing for it. Products are always saved:
    nothing is ever multiplied twice.
    """
    needed = list(needed)
    cost: dict[Node, int] = {each: 0 for each in at_hand}
    saved: dict[Node, None] = {}
    wanted = set(needed)
    for each in topological(needed):
        if each in cost:
            continue
        if is_leaf(each):
            # A hoisted value is an array over all steps that the forward pass may overwrite.
            if each.op != "value" or str(each.attribute("name")).startswith("once."):
                cost[each] = 0
            continue
        operands_cost = [cost.get(source) for source in each.inputs]
        known = [each_cost for each_cost in operands_cost if each_cost is not None]
        cheap = TABLE[each.op].kind == "pointwise" and len(known) == len(operands_cost)
        total = TABLE[each.op].cost + sum(known)
        if cheap and total <= RECOMPUTE_LIMIT:
            cost[each] = total
        elif each in wanted:
            for part in _parts(each, cost) if total <= RECOMPUTE_LIMIT else [each]:
                saved[part] = None
                cost[part] = 0
            cost.setdefault(each, total)
    missing = [each for each in needed if each not in cost and each not in saved]
    return [*saved, *dict.fromkeys(missing)]


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
