"""The truncated gradient of the first LSTM, for any cell.

Hochreiter & Schmidhuber 1997 (appendix A.1) propagate an error that arrives at the net input of
a gate or of a cell no further back through the recurrent connections: it changes their weights,
and stops there. Only the carousel, a cell's own way from c(t-1) to c(t), carries errors over
time. Gers & Schmidhuber 2000 keep to that for peepholes: they pass no error back to the cell.

As a rule for every cell:

* In the operand of a recurrent matrix, states before the step are cut off. What the operand
  reads of the same step is not: in ``U.n @ (r * h)`` the error reaches the gate r.
* In a net input (a sum in which a ``@`` stands) a state that a vector of weights multiplies, as in
  ``V.o * c``, is cut off, be it that before the step or the new one.
* All other uses of states stay: ``f * c``, ``(1 - z) * h``, ``o * tanh(c)``.
"""

from __future__ import annotations

from collections.abc import Iterable

from cellwright.ir import Matrix, Node, apply, rebuild, topological

_SUMS = ("add", "sub")
_LINEAR = (*_SUMS, "neg", "mul", "layer_norm")


def truncate(roots: Iterable[Node], new_states: Iterable[Node]) -> list[Node]:
    """``roots`` with the operator ``stop_gradient`` where errors go no further back.

    Args:
        roots: the results of a step.
        new_states: those that are states after it.
    """
    roots, new = list(roots), set(new_states)
    order = topological(roots)
    peepholes = _peepholes(order, new)
    outside: dict[Node, Node] = {}
    inside: dict[Node, Node] = {}  # as an operand of a matrix reads it
    for each in order:
        if each.op == "matvec":
            operand = inside[each.inputs[1]]
            outside[each] = inside[each] = rebuild(each, (each.inputs[0], operand))
        elif each in peepholes:
            cut = (_stop(outside[i]) if _is_state(i, new) else i for i in each.inputs)
            outside[each] = inside[each] = rebuild(each, tuple(cut))
        else:
            outside[each] = _with(each, outside)
            if each.op == "state":
                inside[each] = _stop(each)
            else:
                inside[each] = outside[each] if each in new else _with(each, inside)
    return [outside[root] for root in roots]


def _with(each: Node, done: dict[Node, Node]) -> Node:
    inputs = tuple(done[source] for source in each.inputs)
    return each if inputs == each.inputs else rebuild(each, inputs)


def _stop(each: Node) -> Node:
    return apply("stop_gradient", each)


def _is_state(each: Node, new: set[Node]) -> bool:
    return each.op == "state" or each in new


def _peepholes(order: list[Node], new: set[Node]) -> set[Node]:
    """Products of a vector of weights with a state, in a sum in which a ``@`` stands."""
    found: set[Node] = set()
    for each in order:
        if each.op not in _SUMS:
            continue
        parts = _parts(each, new)
        if any(part.op == "matvec" for part in parts):
            found |= {part for part in parts if _weighs_state(part, new)}
    return found


def _parts(total: Node, new: set[Node]) -> list[Node]:
    """What a sum is made of by adding, multiplying and normalising, new states left whole."""
    parts: dict[Node, None] = {}
    stack = [total]
    while stack:
        each = stack.pop()
        if each not in parts:
            parts[each] = None
            if each is total or (each.op in _LINEAR and each not in new):
                stack.extend(each.inputs)
    return list(parts)


def _weighs_state(each: Node, new: set[Node]) -> bool:
    if each.op != "mul":
        return False
    weights = [i for i in each.inputs if i.op == "parameter" and not isinstance(i.type, Matrix)]
    return bool(weights) and any(_is_state(i, new) for i in each.inputs)
