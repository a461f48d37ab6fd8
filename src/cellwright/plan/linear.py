"""Takes a number that all units share out of a sum over units, where the sum would wait for it.

The gradient of a normalisation has sums inside of sums: ``sum(a * r + c * s)``, where ``s`` is
itself a sum over the units of the row. As ``sum(a * r) + s * sum(c)`` both are known at the same
time, and a loop passes over its units once less. Often ``c`` are distances from their own mean:
then ``sum(c)`` is zero, and the second sum goes altogether.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from cellwright.ir import ONE, TABLE, Node, constant, is_leaf, rebuild, topological

SMALL = 1e-9
"""What is left of coefficients that cancel, as a share of the largest."""


@dataclass(frozen=True)
class _Term:
    """``factor`` x the single numbers ``shared`` x ``value``, a vector."""

    factor: float
    shared: tuple[Node, ...]
    value: Node


def take_apart(roots: Iterable[Node], known: Iterable[Node]) -> list[Node]:
    """``roots`` with sums over units taken apart at numbers that they would wait for.

    Args:
        roots: of a graph of gradients.
        known: what has been computed before it.
    """
    roots, at_hand = list(roots), set(known)
    done: dict[Node, Node] = {}
    level: dict[Node, int] = dict.fromkeys(at_hand, 0)
    for each in topological(roots):
        if each in at_hand or is_leaf(each):
            done[each] = each
        else:
            inputs = tuple(done[source] for source in each.inputs)
            done[each] = each if inputs == each.inputs else rebuild(each, inputs)
            if each.op == "sum":
                _note_levels(inputs[0], level)
                done[each] = _apart(done[each], at_hand, level)
        _note_levels(done[each], level)
    return [done[root] for root in roots]


def _note_levels(root: Node, level: dict[Node, int]) -> None:
    """How many products and reductions, one after the other, each node waits for."""
    stack = [root]
    while stack:
        each = stack[-1]
        missing = [source for source in each.inputs if source not in level]
        if each not in level and missing:
            stack.extend(missing)
            continue
        stack.pop()
        waits = TABLE[each.op].kind in ("product", "reduction")
        level.setdefault(each, max((level[source] for source in each.inputs), default=0) + waits)


def _apart(total: Node, known: set[Node], level: dict[Node, int]) -> Node:
    """The sum as a sum of sums, each of which waits for less; itself where that cannot be."""
    (operand,) = total.inputs
    together: dict[tuple[Node, ...], list[_Term]] = {}
    for term in _terms(operand, known):
        late = tuple(each for each in term.shared if level[each] == level[operand])
        if not level[operand] or level[term.value] == level[operand] or term.value.size == ONE:
            return total
        together.setdefault(late, []).append(term)
    parts = [
        _sum_of(terms, late, total)
        for late, terms in together.items()
        if not _vanish(terms, operand.size)
    ]
    return reduce(lambda a, b: a + b, parts) if parts else constant(0.0)


def _sum_of(terms: Sequence[_Term], late: tuple[Node, ...], total: Node) -> Node:
    """The sum of terms; numbers that they all share are multiplied once, behind it."""
    first = terms[0]
    shared, factor = late, 1.0
    if all((term.shared, term.factor) == (first.shared, first.factor) for term in terms):
        shared, factor = first.shared, first.factor
    inner = []
    for term in terms:
        numbers = [each for each in term.shared if each not in shared]
        value = reduce(lambda a, b: a * b, numbers, term.value)
        left = term.factor / factor
        inner.append(value if left == 1.0 else value * left)
    found = rebuild(total, (reduce(lambda a, b: a + b, inner),))
    found = reduce(lambda a, b: a * b, shared, found)
    return found if factor == 1.0 else found * factor


def _terms(each: Node, known: set[Node]) -> list[_Term]:
    """What a vector is the sum of; nothing behind what is known is looked at."""
    if each not in known:
        if each.op in ("add", "sub"):
            first, second = (_terms(source, known) for source in each.inputs)
            sign = 1.0 if each.op == "add" else -1.0
            return [*first, *(replace(term, factor=sign * term.factor) for term in second)]
        if each.op == "neg":
            return [replace(t, factor=-t.factor) for t in _terms(each.inputs[0], known)]
        if each.op == "mul":
            for value, number in (each.inputs, each.inputs[::-1]):
                shared = number.inputs[0] if number.op == "expand" else number
                if shared.size == ONE and value.size != ONE:
                    return [_times(term, shared) for term in _terms(value, known)]
    return [_Term(1.0, (), each)]


def _times(term: _Term, number: Node) -> _Term:
    if number.op == "constant":
        return replace(term, factor=term.factor * number.attribute("value"))
    return replace(term, shared=(*term.shared, number))


def _vanish(terms: Iterable[_Term], size: str) -> bool:
    """Whether the terms' sum over units is zero whatever the values."""
    left: dict[Node, float] = {}
    largest = 0.0

    def add(each: Node, factor: float) -> None:
        """Add ``factor`` x (the sum of a vector over units; a single number as often)."""
        nonlocal largest
        numbers = [n for n in each.inputs if n.op == "constant"]
        others = [n for n in each.inputs if n.op != "constant"]
        if each.op == "neg":
            add(each.inputs[0], -factor)
        elif each.op in ("add", "sub") and not numbers:
            add(each.inputs[0], factor)
            add(each.inputs[1], factor if each.op == "add" else -factor)
        elif each.op == "mul" and numbers and others:
            add(others[0], factor * numbers[0].attribute("value"))
        elif each.op == "expand" or (each.op == "mean" and each.inputs[0].size == size):
            add(each.inputs[0], factor)
        else:
            left[each] = left.get(each, 0.0) + factor
            largest = max(largest, abs(factor))

    for term in terms:
        add(term.value, term.factor)
    return all(math.isclose(each, 0.0, abs_tol=SMALL * largest) for each in left.values())
