"""The form of one launch a step and stage: programs share the rows and the units out.

Of each stage, as far as it has work of the kind:

    rows: for each block of rows
        sum over the units of values from earlier stages; compute what is one number a row; store
    units of a size: for each block of rows and of units (and each head, where heads do not meet)
        products, block by block of the operand's units, all that read the same operand together
        the equations on the sums; store

Where one launch ends and the next begins, everything is in memory: that is the barrier between
stages and steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from cellwright.engines.cpu.arrays import Array, Kind, Sources
from cellwright.engines.cpu.program import Program
from cellwright.engines.gpu.frame import ARITHMETIC, WORKING, Axis, Frame, padded
from cellwright.engines.gpu.text import Text, kernel, module
from cellwright.engines.gpu.values import Values, absorbed
from cellwright.ir import ONE, TABLE, Node
from cellwright.plan import Stage

NUMBERS = ("rows", "t", "stride", "parity", "begins")
"""Rows of the batch; the step, and 1 or -1 from one to the next; which of two buffers holds the
states; whether there is no step before in the forward pass."""

WIDTH, DEPTH = 32, 64
"""Units that a program computes, and units of an operand that it reads at a time."""

_PLACES = (
    ("row", "tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]"),
    ("in_rows", "row < rows"),
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
    """

    name: str
    slots: tuple[str, ...]
    blocks: int
    heads: int


def with_temporaries(program: Program, dtype: torch.dtype) -> Program:
    """The program with a place in memory for every value that a later stage reads.

    A value that lies there rounded has another place, as it was computed, unless all that reads
    it are products, which would round it themselves.
    """
    stores, temporaries = dict(program.stores), dict[str, int]()
    narrow = ARITHMETIC[dtype] != dtype
    read = {
        source
        for stage in program.stages
        for each in stage.nodes
        if TABLE[each.op].kind != "product"
        for source in each.inputs
    }
    for stage in program.stages:
        for each in (*stage.stored, *stage.reductions):
            rounded = narrow and each in read and not each.vector.boolean
            known = stores.get(each, [])
            if any(_is_working(array) or not rounded for array in known):
                continue
            name = f"temporary.{len(temporaries)}"
            kind = Kind.ROW if each.size == ONE else Kind.ROWS
            temporaries[name] = program.sizes[each.size]
            boolean = each.vector.boolean
            array = Array(name, kind, stride=temporaries[name], boolean=boolean)
            stores[each] = [array, *known]
    return replace(program, stores=stores, temporaries=temporaries)


def emit(
    program: Program, dtype: torch.dtype, heads: int, *, interpreted: bool
) -> tuple[str, list[Launch]]:
    """The module with all kernels, and how they are launched at each step."""
    functions: set[str] = set()
    kernels, launches = [], []
    here: Sources = dict(program.sources)
    for index, stage in enumerate(program.stages):
        summed = {each: program.stores[each][0] for each in stage.reductions}
        wanted = [n for n in stage.nodes if n in program.stores and n not in summed]
        for size in dict.fromkeys([ONE] * bool(summed) + [n.size for n in _rows_first(wanted)]):
            frame, body = Frame(program, dtype, heads), Text()
            writer = _Stage(body, frame, stage, here, functions)
            roots = [n for n in wanted if n.size == size]
            if size == ONE:
                writer.rows(roots)
            else:
                writer.units(size, roots)
            name = f"stage{index}_{'rows' if size == ONE else size}"
            blocks = 1 if size == ONE else -(-frame.per_head(size) // writer.width(size))
            kernels.append(kernel(name, frame.slots.values(), NUMBERS, _with_places(body)))
            slots = tuple(frame.slots)
            launches.append(Launch(name, slots, blocks, 1 if size == ONE else heads))
            if size == ONE:
                here = {**here, **summed}
        here |= {n: _nearest(program.stores[n]) for n in wanted}
    return module(kernels, functions, interpreted=interpreted), launches


def _rows_first(nodes: Iterable[Node]) -> list[Node]:
    return sorted(nodes, key=lambda each: each.size != ONE)


def _nearest(arrays: list[Array]) -> Array:
    """Where a value is read from: working memory holds it as it was computed."""
    return next(filter(_is_working, arrays), arrays[0])


def _is_working(array: Array) -> bool:
    return array.slot.startswith(WORKING)


def _with_places(body: Text) -> Text:
    """The body, and before it the rows that it speaks of."""
    whole, lines = Text(), list(body.lines)
    for name, text in reversed(_PLACES):
        if any(name in _words(line) for line in lines):
            lines.insert(0, f"    {name} = {text}")
    whole.lines = lines
    return whole


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

    def _store(self, values: Values, roots: list[Node], axis: Axis | None) -> None:
        names = [values.value(each) for each in roots]
        for each, name in zip(roots, names, strict=True):
            for array in self.stores[each]:
                self.text.line(self.frame.store(array, axis, name))

    def rows(self, roots: list[Node]) -> None:
        """Sums over units, and what is one number a row."""
        results = self._values({})
        for each in self.stage.reductions:
            (operand,) = each.inputs
            results.give(each, results.total(each, self._added_up(operand)), (True, False))
        self._store(results, [*self.stage.reductions, *roots], None)

    def _added_up(self, operand: Node) -> str:
        """A tile with the sums of every block of units."""
        if operand.size == ONE:
            return self._values({}).whole(operand)
        text, frame, size = self.text, self.frame, operand.size
        width = self.width(size)
        total = text.let(f"tl.full([BLOCK, {width}], 0.0, {frame.acc})", "total")
        with text.block(f"for k in range(0, {frame.per_head(size)}, {width}):"):
            axis = self._lines(frame.axis(size, width, start="k"))
            text.line(f"{total} = {total} + {self._values({size: axis}).clean(operand)}")
        return total

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
        self._store(values, roots, axis)

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
