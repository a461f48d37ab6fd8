"""From symbols to the nodes of an expression graph, once every size is settled."""

from __future__ import annotations

from cellwright.ir import Matrix, Node, Type, Vector, apply, constant, leaf
from cellwright.lang.symbols import Parameter, Symbol


def parameter_type(parameter: Parameter) -> Type:
    """Matrix or vector, with the names of its sizes."""
    rows = parameter.rows.resolve()
    if parameter.kind == "matrix":
        return Matrix(rows, parameter.columns.resolve())
    return Vector(rows)


def lower(roots: list[Symbol]) -> dict[Symbol, Node]:
    """Symbols as nodes, now that every size is settled."""
    done: dict[Symbol, Node] = {}
    stack = list(reversed(roots))
    while stack:
        each = stack[-1]
        waiting = [source for source in each.operands if source not in done]
        if each in done or not waiting:
            stack.pop()
            if each not in done:
                done[each] = _lower_one(each, done)
        else:
            stack.extend(reversed(waiting))
    return done


def _lower_one(each: Symbol, done: dict[Symbol, Node]) -> Node:
    size = each.size.resolve()
    attributes = dict(each.attributes)
    if each.op == "constant":
        return constant(attributes["value"])
    if each.op in ("input", "state", "parameter"):
        return leaf(each.op, attributes["name"], Vector(size))
    inputs = [done[source] for source in each.operands]
    if each.op == "matvec":
        matrix: Parameter = attributes.pop("matrix")
        inputs.insert(0, leaf("parameter", matrix.name, parameter_type(matrix)))
    return apply(each.op, *inputs, **attributes)
