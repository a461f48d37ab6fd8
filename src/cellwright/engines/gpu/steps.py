"""The form of one launch a step and stage: programs share the rows and the units out.

Stages without products that follow each other, if they have sums over units, are one launch:

    for each block of rows: all units, in the way of the resident form; store

Every other stage is one for each size of its values:

    for each block of rows and of units (and each head, where heads do not meet)
        products, block by block of the operand's units, all that read the same operand together
        the equations on the sums; store

Where one launch ends and the next begins, everything is in memory: that is the barrier between
stages and steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from cellwright.engines.cpu.arrays import Sources
from cellwright.engines.cpu.program import Program
from cellwright.engines.gpu.frame import Axis, Frame, padded
from cellwright.engines.gpu.regroup import nearest
from cellwright.engines.gpu.text import Text, kernel, module
from cellwright.engines.gpu.values import Values, absorbed, sizes_of
from cellwright.ir import ONE, TABLE, Node
from cellwright.plan import Stage

NUMBERS = ("rows", "t", "stride", "parity", "begins")
"""Rows of the batch; the step, and 1 or -1 from one to the next; which of two buffers holds the
states; whether there is no step before in the forward pass."""

WIDTH, DEPTH = 32, 64
"""Units that a program computes, and units of an operand that it reads at a time."""

MOST_ROWS, WHOLE_ROWS, WHOLE = 64, 16, 2048
"""Rows of the largest tile with products; rows and numbers of the largest tile with all units."""

_PLACES = (
    ("now", "t.to(tl.int64) * rows + row"),
    ("before", "now + stride * rows"),
    ("is_first", "begins != 0"),
    ("is_later", "begins == 0"),
    ("even", "parity * rows + row"),
    ("odd", "(1 - parity) * rows + row"),
)


@dataclass(frozen=True)
class Launch:
    """One kernel of a step.

    Attributes:
        name: of the kernel.
        slots: its arrays.
        blocks: of units, in one head.
        heads: how many.
        most_rows: of a tile.
        widths: numbers in a row of each array, in a population; else empty.
    """

    name: str
    slots: tuple[str, ...]
    blocks: int
    heads: int
    most_rows: int
    widths: tuple[int, ...]

    def rows(self, batch: int) -> int:
        """Rows of a tile for a batch."""
        return min(self.most_rows, padded(batch))


def emit(
    program: Program, dtype: torch.dtype, heads: int, *, population: bool, interpreted: bool
) -> tuple[str, list[Launch]]:
    """The module with all kernels, and how they are launched at each step."""
    functions: set[str] = set()
    kernels, launches = [], []
    here: Sources = dict(program.sources)
    for index, stage in enumerate(program.stages):
        wanted = [n for n in stage.nodes if n in program.stores]
        sizes = [ONE] if stage.reductions else list(dict.fromkeys(n.size for n in wanted))
        for size in sizes:
            frame, body = Frame(program, dtype, heads, population=population), Text()
            writer = _Stage(body, frame, stage, here, functions)
            name, blocks, most = f"stage{index}_{size}", 1, MOST_ROWS
            if size == ONE:
                roots = wanted if stage.reductions else [n for n in wanted if n.size == ONE]
                name, most = f"stage{index}_rows", writer.rows(roots)
            else:
                blocks = -(-frame.per_head(size) // writer.width(size))
                writer.units(size, [n for n in wanted if n.size == size])
            body.open_with([*frame.opening(), *_places(body)])
            numbers = (*NUMBERS, *frame.distances)
            kernels.append(kernel(name, frame.slots.values(), numbers, body))
            shared = 1 if size == ONE else heads
            widths = tuple(frame.widths.values()) if population else ()
            launches.append(Launch(name, tuple(frame.slots), blocks, shared, most, widths))
        here |= {n: nearest(program.stores[n]) for n in wanted}
    return module(kernels, functions, interpreted=interpreted), launches


def _places(body: Text) -> list[str]:
    """Lines for the places in memory that a body speaks of, or that such a line does."""
    lines: list[str] = []
    for name, text in reversed(_PLACES):
        if any(name in _words(line) for line in (*lines, *body.lines)):
            lines.insert(0, f"{name} = {text}")
    return lines


def _words(line: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in line).split())


class _Stage:
    """Emits the kernels of a stage."""

    def __init__(
        self, text: Text, frame: Frame, stage: Stage, here: Sources, functions: set[str]
    ):  # fmt: skip
        self.text, self.frame, self.stage = text, frame, stage
        self.here, self.functions = here, functions
        self.stores = frame.program.stores

    def width(self, size: str) -> int:
        """Units of a size that a program computes."""
        return min(WIDTH, padded(self.frame.per_head(size)))

    def _lines(self, made: tuple[Axis, list[str]]) -> Axis:
        for line in made[1]:
            self.text.line(line)
        return made[0]

    def _values(self, axes: dict[str, Axis]) -> Values:
        return Values(self.text, self.frame, axes, self.here, self.functions)

    def _store(self, values: Values, roots: list[Node], axes: Mapping[str, Axis]) -> None:
        names = [values.value(each) for each in roots]
        for each, name in zip(roots, names, strict=True):
            for array in self.stores[each]:
                self.text.line(self.frame.store(array, axes.get(each.size), name))

    def rows(self, roots: list[Node]) -> int:
        """All units of a block of rows; how many rows that may be."""
        axes, widest = {}, 1
        for size in sizes_of(roots):
            width = padded(self.frame.per_head(size))
            axes[size], widest = self._lines(self.frame.axis(size, width)), max(widest, width)
        values = self._values(axes)
        self._store(values, roots, axes)
        return max(1, min(WHOLE_ROWS, WHOLE // widest))

    def units(self, size: str, roots: list[Node]) -> None:
        """Products, and the equations on them."""
        text, frame, width = self.text, self.frame, self.width(size)
        if frame.heads > 1:
            text.line("head = tl.program_id(2)")
        text.line(f"start = tl.program_id(1) * {width}")
        axis = self._lines(frame.axis(size, width, start="start"))
        values = self._values({size: axis})
        values.sums = absorbed(self.stage.nodes, self.stores)
        self._products(values, roots, axis)
        self._store(values, roots, {size: axis})

    def _products(self, values: Values, roots: list[Node], axis: Axis) -> None:
        """All products below ``roots``, those that read the same operand in one loop."""
        order = self._needed(roots)
        taken = {product for product, _ in values.sums.values()}
        waiting: dict[Node, tuple[Node, Node | None]] = {}
        for each in order:
            if each in values.sums:
                waiting[each] = values.sums[each]
            elif TABLE[each.op].kind == "product" and each not in taken:
                waiting[each] = (each, None)
        while waiting:
            operand = next(iter(waiting.values()))[0].inputs[1]
            group = {
                each: start
                for each, (product, start) in waiting.items()
                if product.inputs[1] is operand
                and (start is None or not waiting.keys() & set(self._needed([start], values)))
            }
            self._multiply(values, operand, {n: waiting.pop(n) for n in group}, axis)

    def _needed(self, roots: Iterable[Node], values: Values | None = None) -> list[Node]:
        """What is computed for ``roots``, in order; nothing behind what is at hand."""
        known = values.known if values else {}
        order: list[Node] = []
        seen: set[Node] = set()
        stack = [(each, False) for each in reversed(list(roots))]
        while stack:
            each, ready = stack.pop()
            if ready:
                order.append(each)
            elif each not in seen and each not in self.here and each not in known:
                seen.add(each)
                stack.append((each, True))
                product = TABLE[each.op].kind == "product"
                sources = () if product else each.inputs
                stack.extend((source, False) for source in reversed(sources))
        return order

    def _multiply(
        self, values: Values, operand: Node, group: dict[Node, tuple[Node, Node | None]],
        axis: Axis,
    ) -> None:  # fmt: skip
        text, frame, size = self.text, self.frame, operand.size
        sums = {}
        for each, (_, start) in group.items():
            begun = f"tl.full([BLOCK, {axis.extent}], 0.0, {frame.acc})"
            sums[each] = text.let(begun if start is None else values.whole(start, axis.size), "sum")
        depth = min(DEPTH, padded(frame.per_head(size)))
        with text.block(f"for k in range(0, {frame.per_head(size)}, {depth}):"):
            across = self._lines(frame.axis(size, depth, start="k", mark="k_"))
            down = self._lines(frame.axis(size, depth, start="k", down=True, mark="k_"))
            tile = self._values({size: across}).clean(operand)
            for each, (product, _) in group.items():
                rounded = frame.operand_of(product)
                loaded = frame.weights(product, down, axis)
                left, right = rounded.format(tile), rounded.format(loaded)
                text.line(f"{sums[each]} = {frame.dot(left, right, sums[each])}")
        for each, name in sums.items():
            values.give(each, name)
