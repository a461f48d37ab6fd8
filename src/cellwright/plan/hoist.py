"""Takes out of the time loop what does not depend on the state.

Sums are first rearranged so that their state-independent terms come first: ``W @ x + U @ h + b``
becomes ``(W @ x + b) + U @ h``, and what is in the brackets is computed for all steps at once.
A function such as ``tanh(W @ x)`` is no such term: the loop reads ``W @ x`` and computes the
function in registers, so that only the product is hoisted, and nothing is differentiated apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cellwright.ir import TABLE, Node, is_leaf, leaf, rebuild, substitute, topological


class Region(IntEnum):
    """When a value is known."""

    ONCE = 0  # from parameters alone
    INPUT = 1  # from x and masks: for all steps at once
    STEP = 2  # only inside the loop


_LEAF_REGION = {
    "constant": Region.ONCE,
    "reciprocal_size": Region.ONCE,
    "parameter": Region.ONCE,
    "input": Region.INPUT,
    "stream": Region.INPUT,
    "value": Region.INPUT,
    "state": Region.STEP,
    "cotangent": Region.STEP,
}


def regions(roots: Iterable[Node]) -> dict[Node, Region]:
    """The region of every node."""
    found: dict[Node, Region] = {}
    for each in topological(roots):
        if is_leaf(each):
            found[each] = _LEAF_REGION[each.op]
        else:
            found[each] = max(found[source] for source in each.inputs)
    return found


def gather_sums(roots: Iterable[Node]) -> list[Node]:
    """``roots`` with the state-independent terms of every sum added up first, but for functions."""
    roots = list(roots)
    region = regions(roots)
    users: dict[Node, int] = {}
    for each in topological(roots):
        for source in each.inputs:
            users[source] = users.get(source, 0) + 1
    kept = set(roots)

    def terms(each: Node) -> list[Node]:
        inner = each.op == "add" and users.get(each, 0) <= 1 and each not in kept
        return [t for source in each.inputs for t in terms(source)] if inner else [each]

    done: dict[Node, Node] = {}
    for each in topological(roots):
        if each.op == "add" and region[each] == Region.STEP:
            parts = [term for source in each.inputs for term in terms(source)]
            first = [region[p] < Region.STEP and not _is_function(p, region) for p in parts]
            early = [done[p] for p, is_first in zip(parts, first, strict=True) if is_first]
            late = [done[p] for p, is_first in zip(parts, first, strict=True) if not is_first]
            if len(early) > 1:
                total = early[0]
                for part in [*early[1:], *late]:
                    total = total + part
                done[each] = total
                continue
        inputs = tuple(done[source] for source in each.inputs)
        done[each] = each if inputs == each.inputs else rebuild(each, inputs)
    return [done[root] for root in roots]


def _is_function(each: Node, region: dict[Node, Region]) -> bool:
    """Whether a term is a function of one number that is known from ``x``, and not linear."""
    one_number = TABLE[each.op].kind == "pointwise" and len(each.inputs) == 1
    if region[each] != Region.INPUT or not one_number or each.op in ("neg", "expand"):
        return False
    below = _push_down([each], region)
    return len(below) == 1 and below != [each]


@dataclass(frozen=True)
class Hoisted:
    """A step's graph after hoisting.

    Attributes:
        once: name -> value computed from parameters alone, once a call.
        inputs: name -> value computed from ``x`` for all steps at once.
        roots: the step's results; they read the above as leaves of kind ``value``.
    """

    once: dict[str, Node]
    inputs: dict[str, Node]
    roots: list[Node]


def hoist(roots: Iterable[Node], parameters: Sequence[str] = ()) -> Hoisted:
    """Split a step's graph into what is computed once, for all steps at once, and in the loop.

    Args:
        roots: the step's results.
        parameters: names in the order in which a layer stores them; hoisted values are put in
            that order, so that matrices that lie together are multiplied together.
    """
    rank = {name: index for index, name in enumerate(parameters)}

    def position(each: Node) -> int:
        names = (n.attribute("name") for n in topological([each]) if n.op == "parameter")
        return min((rank.get(name, 0) for name in names), default=0)

    roots = gather_sums(roots)
    region = regions(roots)
    once_nodes = sorted(_boundary(roots, region, Region.ONCE), key=position)
    once = {f"once.{index}": each for index, each in enumerate(once_nodes)}
    as_leaf = {each: leaf("value", name, each.vector) for name, each in once.items()}
    roots = substitute(roots, as_leaf)

    region = regions(roots)
    for each in as_leaf.values():
        region[each] = Region.ONCE
    whole = _boundary(roots, region, Region.INPUT)
    pushed = _push_down(whole, region)
    # What is hoisted are numbers: a comparison stays in the loop, what it compares is hoisted.
    compared = any(each.vector.boolean for each in whole)
    chosen = sorted(pushed if compared or len(pushed) <= len(whole) else whole, key=position)
    inputs = {f"input.{index}": each for index, each in enumerate(chosen)}
    roots = substitute(
        roots, {each: leaf("value", name, each.vector) for name, each in inputs.items()}
    )
    return Hoisted(once, inputs, roots)


def _boundary(roots: list[Node], region: dict[Node, Region], wanted: Region) -> list[Node]:
    """Computed values of a region that a later region, or the step's results, read."""
    found: dict[Node, None] = {}
    for each in topological(roots):
        if region[each] > wanted:
            for source in each.inputs:
                if region[source] == wanted and not is_leaf(source):
                    found[source] = None
    for root in roots:
        if region[root] == wanted and not is_leaf(root):
            found[root] = None
    return list(found)


def _push_down(boundary: list[Node], region: dict[Node, Region]) -> list[Node]:
    """The boundary moved below pointwise functions, which the loop computes in registers."""
    found: dict[Node, None] = {}
    stack = list(reversed(boundary))
    while stack:
        each = stack.pop()
        if is_leaf(each):
            continue
        movable = TABLE[each.op].kind == "pointwise" and each.op != "add"
        if movable and region[each] == Region.INPUT:
            stack.extend(reversed(each.inputs))
        else:
            found[each] = None
    return list(found)
