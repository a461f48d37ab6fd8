"""Checks a graph against the table of operators; run after each pass that makes one."""

from __future__ import annotations

from collections.abc import Iterable

from cellwright.ir.node import Node, rebuild, topological
from cellwright.ir.operators import TABLE, GraphTypeError
from cellwright.ir.types import Type


class GraphError(AssertionError):
    """A pass has made a graph that breaks the specification: a defect of cellwright."""


def verify(
    roots: Iterable[Node],
    *,
    leaves: Iterable[str],
    composites: bool = False,
    markers: bool = False,
) -> None:
    """Raise :class:`GraphError` unless every node obeys its row of the table.

    Args:
        roots: the results of the graph.
        leaves: the kinds of leaves that this graph may read ("state", "parameter", ...).
        composites: whether operators that are still to be expanded may occur.
        markers: whether operators that only a differentiation sees may occur.
    """
    allowed = {*leaves, "constant", "reciprocal_size"}
    named: dict[tuple[str, str], Type] = {}
    for each in topological(roots):
        operator = TABLE.get(each.op)
        if operator is None:
            raise GraphError(f"{each!r}: no such operator in the table")
        if operator.arity is not None and len(each.inputs) != operator.arity:
            raise GraphError(f"{each!r}: {operator.arity} operands expected")
        if operator.kind == "composite" and not composites:
            raise GraphError(f"{each!r}: should have been expanded")
        if operator.kind == "marker" and not markers:
            raise GraphError(f"{each!r}: should have been left out")
        if operator.kind == "leaf":
            if each.op not in allowed:
                raise GraphError(f"{each!r}: this graph may only read {sorted(allowed)}")
            if each.op not in ("constant", "reciprocal_size"):
                key = (each.op, str(each.attribute("name")))
                if named.setdefault(key, each.type) != each.type:
                    raise GraphError(f"{each!r}: also of type {named[key]}")
            continue
        try:
            expected = operator.result([i.type for i in each.inputs], dict(each.attributes))
        except (GraphTypeError, AssertionError, KeyError) as error:
            raise GraphError(f"{each!r}: {error}") from error
        if expected != each.type:
            raise GraphError(f"{each!r}: its operands make {expected}")


def expand_composites(roots: Iterable[Node]) -> list[Node]:
    """``roots`` with every composite operator written out in the others."""
    from cellwright.ir.operators import EXPANSIONS

    roots = list(roots)
    done: dict[Node, Node] = {}
    for each in topological(roots):
        inputs = tuple(done[source] for source in each.inputs)
        fresh = each if inputs == each.inputs else rebuild(each, inputs)
        expansion = EXPANSIONS.get(each.op)
        done[each] = fresh if expansion is None else expansion(fresh)
    return [done[root] for root in roots]


def leave_out_markers(roots: Iterable[Node]) -> list[Node]:
    """``roots`` without the operators that only a differentiation sees."""
    roots = list(roots)
    done: dict[Node, Node] = {}
    for each in topological(roots):
        inputs = tuple(done[source] for source in each.inputs)
        if each.op in TABLE and TABLE[each.op].kind == "marker":
            done[each] = inputs[0]
        else:
            done[each] = each if inputs == each.inputs else rebuild(each, inputs)
    return [done[root] for root in roots]
