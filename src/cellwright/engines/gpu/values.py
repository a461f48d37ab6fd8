"""Values of nodes as names in a kernel; each is loaded or computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cellwright.engines.cpu.arrays import Array, Kind
from cellwright.engines.gpu.frame import Axis, Frame
from cellwright.engines.gpu.text import Text
from cellwright.errors import EngineError
from cellwright.ir import ONE, TABLE, Matrix, Node, topological

INFIX: Mapping[str, str] = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "less": "{} < {}",
    "less_equal": "{} <= {}",
    "greater": "{} > {}",
    "greater_equal": "{} >= {}",
    "equal": "{} == {}",
    "where": "tl.where({}, {}, {})",
}
"""Operations in which a number may stand as it is."""

CALLS: Mapping[str, str] = {
    "neg": "-{}",
    "fma": "{} * {} + {}",
    "square": "{0} * {0}",
    "abs": "tl.abs({})",
    "maximum": "maximum({}, {})",
    "minimum": "minimum({}, {})",
    "relu": "relu({})",
    "exp": "exp({})",
    "log": "log({})",
    "sigmoid": "sigmoid({})",
    "tanh": "tanh({})",
    "sin": "sin({})",
    "cos": "cos({})",
    "softplus": "softplus({})",
    "log_sigmoid": "log_sigmoid({})",
}
"""Operations on tiles only; the functions are those of ``elementary``."""

SQRT = {
    ("sqrt", "tl.float32"): "tl.sqrt_rn({})",
    ("sqrt", "tl.float64"): "tl.sqrt({})",
    ("rsqrt", "tl.float32"): "1.0 / tl.sqrt_rn({})",
    ("rsqrt", "tl.float64"): "1.0 / tl.sqrt({})",
}
"""Rounded correctly: in float32 the plain one is an approximation on a GPU."""

OPERATIONS = {**INFIX, **CALLS}

SAME = ("expand",)
"""Operations whose value is their operand's; a number a row meets units by broadcasting."""


def absorbed(nodes: Iterable[Node], stored: Iterable[Node]) -> dict[Node, tuple[Node, Node]]:
    """Sums that a product can add its terms to: sum -> the product, and what it is added to.

    Args:
        nodes: everything that is computed together.
        stored: values that are wanted by themselves.
    """
    nodes, kept = list(nodes), set(stored)
    uses: dict[Node, int] = {}
    for each in nodes:
        for source in each.inputs:
            uses[source] = uses.get(source, 0) + 1
    inside = set(nodes)
    found = {}
    for each in nodes:
        if each.op != "add":
            continue
        first, second = each.inputs
        for product, other in ((second, first), (first, second)):
            free = product in inside and uses[product] == 1 and product not in kept
            if TABLE[product.op].kind == "product" and free and product is not other:
                found[each] = (product, other)
                break
    return found


def sizes_of(roots: Iterable[Node]) -> list[str]:
    """Sizes of the vectors that occur under ``roots``."""
    vectors = (each for each in topological(roots) if not isinstance(each.type, Matrix))
    return list(dict.fromkeys(each.size for each in vectors if each.size != ONE))


class Values:
    """Computes values, line by line.

    Args:
        text, frame: where the lines go, and what surrounds them.
        axes: size -> the units of a tile.
        here: places of values that lie in memory.
        functions: names of the elementary functions that are called, added to.
    """

    def __init__(
        self, text: Text, frame: Frame, axes: Mapping[str, Axis], here: Mapping[Node, Array],
        functions: set[str],
    ):  # fmt: skip
        self.text, self.frame, self.axes, self.here = text, frame, axes, here
        self.functions = functions
        self.known: dict[Node, str] = {}
        self.shapes: dict[Node, tuple[bool, bool]] = {}  # whether it has rows, and units
        self.zeroed: set[Node] = set()  # loaded, with zeros where there are no units
        self.sums: Mapping[Node, tuple[Node, Node]] = {}

    def value(self, root: Node) -> str:
        """The name of a value."""
        stack = [root]
        while stack:
            each = stack[-1]
            waiting = [n for n in self.reads(each) if n not in self.known]
            if each in self.known or not waiting:
                stack.pop()
                if each not in self.known:
                    self._compute(each)
            else:
                stack.extend(reversed(waiting))
        return self.known[root]

    def reads(self, each: Node) -> list[Node]:
        """What has to be known before a value is computed."""
        if each in self.here:
            return []
        return [source for source in each.inputs if source.op != "constant"]

    def give(self, each: Node, name: str, shape: tuple[bool, bool] = (True, True)) -> None:
        """Let a value be known by a name."""
        self.known[each], self.shapes[each] = name, shape

    def give_loaded(self, each: Node, name: str) -> None:
        """Let a value that was loaded be known by a name."""
        kind = self.here[each].kind
        if kind is Kind.ROWS:
            self.zeroed.add(each)
        shape = kind in (Kind.ROWS, Kind.ROW), kind in (Kind.ROWS, Kind.UNITS)
        self.give(each, name, shape)

    def whole(self, each: Node, size: str | None = None) -> str:
        """The name of a value with all of its rows, and the units of ``size`` (or its own)."""
        size = size or each.size
        name, shape = self.value(each), self.shapes[each]
        if shape == (True, size != ONE):
            return name
        extent = 1 if size == ONE else self.axes[size].extent
        return self.text.let(f"tl.broadcast_to({name}, [BLOCK, {extent}])")

    def clean(self, each: Node) -> str:
        """A whole value with zeros where there are no units."""
        name = self.whole(each)
        if each in self.zeroed:
            return name
        inside = self.axes[each.size].inside if each.size != ONE else ""
        return f"tl.where({inside}, {name}, 0.0)" if inside else name

    def number(self, value: float) -> str:
        """A tile that holds one number everywhere."""
        shown = repr(value) if abs(value) < float("inf") else f'float("{value}")'
        return f"tl.full([1, 1], {shown}, {self.frame.acc})"

    def _compute(self, each: Node) -> None:
        if each in self.here:
            array = self.here[each]
            axis = None if each.size == ONE else self.axes[each.size]
            self.give_loaded(each, self.text.let(self.frame.load(array, axis)))
        elif each.op == "constant":
            self.give(each, self.text.let(self.number(each.attribute("value"))), (False, False))
        elif each.op == "reciprocal_size":
            share = 1.0 / self.frame.program.sizes[each.attribute("size")]
            self.give(each, self.text.let(self.number(share)), (False, False))
        else:
            assert each.inputs, f"{each!r} is read but has no place in memory"
            self._apply(each)

    def _reduce(self, each: Node) -> None:
        """A sum over units, or their mean; the tile holds all of them."""
        (operand,) = each.inputs
        total = f"tl.reduce({self.clean(operand)}, 1, tl.standard._sum_combine, keep_dims=True)"
        if each.op == "mean":
            total += f" * {1.0 / self.frame.program.sizes[operand.size]!r}"
        self.give(each, self.text.let(total), (True, False))

    def _apply(self, each: Node) -> None:
        if TABLE[each.op].kind == "reduction":
            self._reduce(each)
            return
        if each.op in SAME:
            (source,) = each.inputs
            self.give(each, self.value(source), self.shapes[source])
            return
        numbers = [source.op == "constant" for source in each.inputs]
        inline = each.op in INFIX and sum(numbers) == 1 and not _is_infinite(each)
        operands = [
            repr(source.attribute("value")) if number and inline else self.value(source)
            for source, number in zip(each.inputs, numbers, strict=True)
        ]
        template = OPERATIONS.get(each.op) or SQRT.get((each.op, self.frame.acc))
        if template is None:
            raise EngineError(f"the gpu engine does not know the operator {each.op!r}")
        called = template.partition("(")[0]
        if called and "{" not in called and "." not in called:
            self.functions.add(called)
        shapes = [self.shapes.get(source, (False, False)) for source in each.inputs]
        shape = any(rows for rows, _ in shapes), any(units for _, units in shapes)
        self.give(each, self.text.let(template.format(*operands)), shape)


def _is_infinite(each: Node) -> bool:
    """Whether a number among the operands cannot be written as one."""
    return any(
        source.op == "constant" and not abs(source.attribute("value")) < float("inf")
        for source in each.inputs
    )
