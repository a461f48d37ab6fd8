"""Chooses what the forward pass saves for the backward pass, and what is computed again."""

from __future__ import annotations

from collections.abc import Iterable

from cellwright.ir import TABLE, Node, is_leaf, topological

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
    saved. Products are always saved: nothing is ever multiplied twice.
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
            saved[each] = None
            cost[each] = 0
    missing = [each for each in needed if each not in cost and each not in saved]
    return [*saved, *dict.fromkeys(missing)]
