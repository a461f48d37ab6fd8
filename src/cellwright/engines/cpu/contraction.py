"""Computes the same with fewer operations.

A product and a sum that follows become one operation, ``a * b + c``, rounded once. Sums with matrix
products in them are left alone: those are chains of such operations already. What becomes one
operation follows from the equations alone, and not from what is stored, or where products with
``x`` and gradients of hoisted values are computed, so that all programs of a cell have the same
bits. And numbers that all units of a row share are multiplied with each other first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cellwright.ir import ONE, TABLE, Node, apply, rebuild, topological
from cellwright.plan import Backward, Forward, Plan

SUMS = ("add", "sub")
FACTORS = {"mul": (0, 1), "square": (0, 0)}
"""Operations that are a product of two of their operands."""


def contract(roots: Iterable[Node]) -> list[Node]:
    """``roots`` with fewer operations."""
    roots = list(roots)
    order = topological(roots)
    chains = _with_products(order)
    waits = _waits(order)
    done: dict[Node, Node] = {}
    for each in order:
        inputs = tuple(done[source] for source in each.inputs)
        done[each] = _numbers_first(each, inputs)
        if each.op not in SUMS or each in chains:
            continue
        # Of two products the one that is known last. What was known before, but not from the
        # beginning, may lie in memory by now, and what it was made of no longer.
        first, second = (waits[source] for source in each.inputs)
        for place in (1, 0) if second >= first else (0, 1):
            source = each.inputs[place]
            if source.op in FACTORS and waits[source] in (0, waits[each]):
                done[each] = _as_one(each.op, done[source], inputs[1 - place], place)
                break
    return [done[root] for root in roots]


def contracted(plan: Plan) -> Plan:
    """The plan with fewer operations in its passes."""
    return replace(plan, forward=_forward(plan.forward), backward=_backward(plan.backward))


def _forward(forward: Forward) -> Forward:
    hoisted = iter(contract([*forward.inputs.values(), *forward.saved_inputs.values()]))
    inside = [*forward.next.values(), forward.output, *forward.trace.values()]
    step = iter(contract([*inside, *forward.saved.values()]))
    return replace(
        forward,
        inputs={name: next(hoisted) for name in forward.inputs},
        saved_inputs={name: next(hoisted) for name in forward.saved_inputs},
        next={name: next(step) for name in forward.next},
        output=next(step),
        trace={name: next(step) for name in forward.trace},
        saved={name: next(step) for name in forward.saved},
    )


def _backward(backward: Backward) -> Backward:
    parameters = backward.parameters
    inside = [*backward.states.values(), *backward.hoisted.values(), *parameters.roots]
    step = iter(contract(inside))
    return replace(
        backward,
        states={name: next(step) for name in backward.states},
        hoisted={name: next(step) for name in backward.hoisted},
        parameters=parameters.map(lambda roots: [next(step) for _ in roots]),
        inputs=backward.inputs.map(contract),
    )


def _numbers_first(original: Node, inputs: tuple[Node, ...]) -> Node:
    """The operation of ``original`` on other inputs; of factors, single numbers meet first."""
    if original.op == "mul":
        for number, value in (inputs, inputs[::-1]):
            found = _number(number)
            if found is None or value.op != "mul":
                continue
            for factor, vector in (value.inputs, value.inputs[::-1]):
                other = _number(factor)
                if other is not None and _number(vector) is None:
                    return apply("expand", other * found, size=original.size) * vector
    return original if inputs == original.inputs else rebuild(original, inputs)


def _number(each: Node) -> Node | None:
    """The single number of the row that a value is for all units; None if it is not one."""
    if each.op == "expand":
        return each.inputs[0]
    return each if each.size == ONE else None


def _with_products(order: Iterable[Node]) -> set[Node]:
    """The sums that are part of a sum with a matrix product."""
    order = list(order)
    found: set[Node] = set()
    for each in order:
        if each.op in SUMS:
            terms = each.inputs
            if any(source in found or TABLE[source.op].kind == "product" for source in terms):
                found.add(each)
    for each in reversed(order):
        if each in found:
            found.update(source for source in each.inputs if source.op in SUMS)
    return found


def _waits(order: Iterable[Node]) -> dict[Node, int]:
    """How many matrix products and sums over units each value waits for."""
    found: dict[Node, int] = {}
    for each in order:
        own = TABLE[each.op].kind in ("product", "reduction")
        found[each] = max((found[source] for source in each.inputs), default=0) + own
    return found


def _as_one(op: str, product: Node, other: Node, place: int) -> Node:
    """``product`` and ``other`` added, or one subtracted from the other."""
    first, second = (product.inputs[index] for index in FACTORS[product.op])
    if op == "sub" and place == 1:
        first = -first
    elif op == "sub":
        other = -other
    return apply("fma", first, second, other)
