"""Expressions: immutable nodes, one object for each distinct expression.

Two expressions that are built alike are the same object, so common sub-expressions are
shared and a node can be a key in a dictionary. Nodes combine with ``+ - * /``; derivative
rules and graph passes are written that way.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cellwright.ir.types import ONE, Matrix, Type, Vector

Attributes = tuple[tuple[str, Any], ...]

_interned: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
_interning = threading.Lock()


class Node:
    """One operation on the values of other nodes.

    Attributes:
        op: name of the operator, a key of ``ir.operators.TABLE``.
        inputs: the nodes it reads.
        attributes: constants of the operation, as sorted pairs of name and value.
        type: what it yields.
    """

    __slots__ = ("__weakref__", "attributes", "inputs", "op", "type")

    op: str
    inputs: tuple[Node, ...]
    attributes: Attributes
    type: Type

    def attribute(self, name: str) -> Any:
        """The constant ``name`` of the operation."""
        for key, value in self.attributes:
            if key == name:
                return value
        raise KeyError(f"{self.op} has no attribute {name!r}")

    @property
    def vector(self) -> Vector:
        """Its type, which has to be a vector."""
        assert isinstance(self.type, Vector), f"{self.op} is {self.type}, not a vector"
        return self.type

    @property
    def matrix(self) -> Matrix:
        """Its type, which has to be a matrix."""
        assert isinstance(self.type, Matrix), f"{self.op} is {self.type}, not a matrix"
        return self.type

    @property
    def size(self) -> str:
        """Name of a vector's size."""
        return self.vector.size

    def __repr__(self) -> str:
        attributes = ", ".join(f"{key}={value!r}" for key, value in self.attributes)
        return f"Node({self.op}{': ' if attributes else ''}{attributes}, {self.type})"

    def __reduce__(self) -> tuple[Callable[..., Node], tuple[Any, ...]]:
        return node, (self.op, self.inputs, dict(self.attributes), self.type)

    def __copy__(self) -> Node:
        return self

    def __deepcopy__(self, memo: object) -> Node:
        return self

    def __add__(self, other: Node | float) -> Node:
        return apply("add", self, as_node(other))

    def __radd__(self, other: float) -> Node:
        return apply("add", as_node(other), self)

    def __sub__(self, other: Node | float) -> Node:
        return apply("sub", self, as_node(other))

    def __rsub__(self, other: float) -> Node:
        return apply("sub", as_node(other), self)

    def __mul__(self, other: Node | float) -> Node:
        return apply("mul", self, as_node(other))

    def __rmul__(self, other: float) -> Node:
        return apply("mul", as_node(other), self)

    def __truediv__(self, other: Node | float) -> Node:
        return apply("div", self, as_node(other))

    def __neg__(self) -> Node:
        return apply("neg", self)


def node(op: str, inputs: Iterable[Node], attributes: Mapping[str, Any], type: Type) -> Node:
    """The node with these parts; always the same object for the same parts."""
    inputs = tuple(inputs)
    pairs = tuple(sorted(attributes.items()))
    # repr keeps 0.0 apart from -0.0 and 1 from True
    key = (op, tuple(id(each) for each in inputs), repr(pairs), type)
    with _interning:
        found = _interned.get(key)
        if found is None:
            found = Node()
            found.op, found.inputs, found.attributes, found.type = op, inputs, pairs, type
            _interned[key] = found
    return found


def apply(op: str, *inputs: Node, **attributes: Any) -> Node:
    """The operator ``op`` applied to ``inputs``; its type follows from the table."""
    from cellwright.ir.operators import TABLE

    operator = TABLE[op]
    types = tuple(each.type for each in inputs)
    return node(op, inputs, attributes, operator.result(types, attributes))


def constant(value: float) -> Node:
    """A number."""
    return node("constant", (), {"value": float(value)}, Vector(ONE))


def as_node(value: Node | float) -> Node:
    """``value`` itself, or a constant of that value."""
    return value if isinstance(value, Node) else constant(value)


def leaf(op: str, name: str, type: Type, **attributes: Any) -> Node:
    """A value that comes from outside the graph."""
    return node(op, (), {"name": name, **attributes}, type)


def topological(roots: Iterable[Node], known: Iterable[Node] = ()) -> list[Node]:
    """Every node that ``roots`` are computed from, inputs before their users.

    Args:
        roots: what is to be computed.
        known: what is at hand already; neither these nor what is only behind them are among them.
    """
    order: list[Node] = []
    seen: set[Node] = set(known)
    for root in roots:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            current, ready = stack.pop()
            if ready:
                order.append(current)
            elif current not in seen:
                seen.add(current)
                stack.append((current, True))
                stack.extend((each, False) for each in reversed(current.inputs) if each not in seen)
    return order


def substitute(roots: Iterable[Node], replacement: Mapping[Node, Node]) -> list[Node]:
    """``roots`` with every occurrence of a key of ``replacement`` exchanged for its value."""
    roots = list(roots)
    done: dict[Node, Node] = dict(replacement)
    for each in topological(roots):
        if each not in done:
            inputs = tuple(done[source] for source in each.inputs)
            done[each] = each if inputs == each.inputs else rebuild(each, inputs)
    return [done[root] for root in roots]


def rebuild(original: Node, inputs: tuple[Node, ...]) -> Node:
    """The operation of ``original`` on other inputs."""
    return apply(original.op, *inputs, **dict(original.attributes))
