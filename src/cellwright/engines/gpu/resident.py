"""The resident form: a program holds the weights of its head and walks through all time steps.

The kernel that is emitted, in pseudo-code, for each block of rows (of each member of a population;
and each head, where heads do not meet):

    load masks, vectors and matrices; load the states before the first step
    load what the first step reads: what was hoisted, or saved
    for each step, in the order of the loop:
        load what the next step reads, so that nobody waits for it
        compute the stages; store
        the states are those after the step
    store the states

Nothing is shared between programs, so there is no barrier, and a value that a later stage reads
is simply a name.
"""

from __future__ import annotations

import re
from dataclasses import replace

from cellwright.engines.cpu.arrays import Index, Sources
from cellwright.engines.gpu.frame import Axis, Frame, padded
from cellwright.engines.gpu.text import Text, kernel, module
from cellwright.engines.gpu.values import Values, absorbed, sizes_of
from cellwright.ir import ONE, TABLE, Node

NUMBERS = ("rows", "steps", "first", "stride")
"""Rows of the batch, steps; the first step that is taken, and 1 or -1 from one to the next."""

ENTRY = "walk"

_AHEAD = re.compile(r"\b(now|before|in_rows|is_first|is_later)\b")
"""Names that speak of a step; with "next_" before them, of the next."""


def emit(frame: Frame, *, interpreted: bool) -> str:
    """The module with the kernel; fills in the frame's slots."""
    body, functions = Text(), set[str]()
    _Walk(body, frame, functions).write()
    body.open_with(frame.opening())
    numbers = (*NUMBERS, *frame.distances)
    return module(
        [kernel(ENTRY, frame.slots.values(), numbers, body)], functions, interpreted=interpreted
    )


class _Walk:
    def __init__(self, text: Text, frame: Frame, functions: set[str]):
        self.text, self.frame, self.program = text, frame, frame.program
        self.axes: dict[str, Axis] = {}
        self.down: dict[str, Axis] = {}
        self.values = _Resident(text, frame, self.axes, self.program.sources, functions, self.down)
        self.nodes = [n for stage in self.program.stages for n in stage.nodes]
        self.values.sums = absorbed(self.nodes, self.program.stores)
        # The states after a step, and where the last ones lie in the end.
        self.carried = [
            (node, array)
            for node, arrays in self.program.stores.items()
            for array in arrays
            if array.index is Index.ODD
        ]

    def write(self) -> None:
        """The whole body."""
        text = self.text
        if self.frame.heads > 1:
            text.line("head = tl.program_id(1)")
        self._axes()
        for node, array in self.program.sources.items():
            if array.index is Index.NONE:
                self.values.value(node)
        self._matrices()
        names = self._load_states()
        text.line("next_now = first.to(tl.int64) * rows + row")
        text.line("next_in_rows = in_rows")
        self._look_back("steps == 1")
        ahead = self._fetch({})
        with text.block("for i in range(steps):"):
            text.line("now = next_now")
            for node, name in ahead.items():
                array = self.program.sources[node]
                self.values.give_loaded(node, text.let(self.frame.converted(array, name)))
            text.line("next_now = now + stride * rows")
            text.line("next_in_rows = in_rows & (i + 1 < steps)")
            self._look_back("i + 2 == steps")
            self._fetch(ahead)
            self._step(names)
        for name, (node, array) in zip(names, self.carried, strict=True):
            text.line(self.frame.store(array, self.axes[node.size], name))

    def _axes(self) -> None:
        sizes = sizes_of([*self.program.stores, *self.program.sources])
        operands = {p.inputs[1].size for p in self.nodes if TABLE[p.op].kind == "product"}
        for size in sizes:
            extent = padded(self.frame.per_head(size))
            self.axes[size], lines = self.frame.axis(size, extent)
            if size in operands:
                self.down[size], more = self.frame.axis(size, extent, down=True)
                lines += more
            for line in lines:
                self.text.line(line)

    def _matrices(self) -> None:
        """Load every matrix, in the precision in which it is multiplied."""
        for each in self.nodes:
            if TABLE[each.op].kind == "product":
                self.values.load_matrix(each)

    def _load_states(self) -> list[str]:
        """Load the states before the first step; the names that hold them from step to step."""
        self.text.line("even = row")
        self.text.line("odd = rows + row")
        leaves = {
            array.slot: node
            for node, array in self.program.sources.items()
            if array.index is Index.EVEN
        }
        names = []
        for number, (node, array) in enumerate(self.carried):
            names.append(f"state{number}")
            before = replace(array, index=Index.EVEN)
            self.text.line(f"{names[-1]} = {self.frame.load(before, self.axes[node.size])}")
            if array.slot in leaves:
                self.values.give(leaves[array.slot], names[-1])
        return names

    def _look_back(self, is_first: str) -> None:
        """Whether there is a step before the next, and where it lies."""
        if any(array.index is Index.BEFORE for array in self.program.sources.values()):
            self.text.line(f"next_is_first = {is_first}")
            self.text.line("next_is_later = next_is_first == 0")
            self.text.line("next_before = next_now + stride * rows")

    def _fetch(self, names: dict[Node, str]) -> dict[Node, str]:
        """Load what the next step reads, under these names or new ones."""
        written = {array.slot for arrays in self.program.stores.values() for array in arrays}
        for node, array in self.program.sources.items():
            if array.index in (Index.TIME, Index.BEFORE):
                assert array.slot not in written, f"{array.slot} is read ahead of being written"
                axis = None if node.size == ONE else self.axes[node.size]
                fetched = _AHEAD.sub(r"next_\1", self.frame.fetch(array, axis))
                names.setdefault(node, f"ahead{len(names)}")
                self.text.line(f"{names[node]} = {fetched}")
        return names

    def _step(self, names: list[str]) -> None:
        text, frame = self.text, self.frame
        for node, arrays in self.program.stores.items():
            for array in arrays:
                if array.index is not Index.ODD:
                    axis = None if node.size == ONE else self.axes[node.size]
                    text.line(frame.store(array, axis, self.values.value(node)))
        after = [text.let(self.values.whole(node), "next") for node, _ in self.carried]
        for name, value in zip(names, after, strict=True):
            text.line(f"{name} = {value}")


class _Resident(Values):
    """Values where all units of a row are at hand: products and sums are operations like others."""

    def __init__(
        self, text: Text, frame: Frame, axes: dict[str, Axis], here: Sources, functions: set[str],
        down: dict[str, Axis],
    ):  # fmt: skip
        super().__init__(text, frame, axes, here, functions)
        self.down = down
        self.matrices: dict[tuple[str, Node], str] = {}

    def load_matrix(self, product: Node) -> None:
        """Load a product's matrix, once for each way it is used in."""
        key = product.op, product.inputs[0]
        if key not in self.matrices:
            size = product.inputs[1].size
            loaded = self.frame.weights(product, self.down[size], self.axes[product.size])
            tile = self.frame.operand_of(product).format(loaded)
            self.matrices[key] = self.text.let(tile, "matrix")

    def reads(self, each: Node) -> list[Node]:
        if each in self.here:
            return []
        if each in self.sums:
            product, other = self.sums[each]
            return [product.inputs[1], *([] if other.op == "constant" else [other])]
        if TABLE[each.op].kind == "product":
            return [each.inputs[1]]
        return super().reads(each)

    def _apply(self, each: Node) -> None:
        if each in self.sums:
            product, other = self.sums[each]
            self.give(each, self._product(product, self.whole(other, each.size)))
        elif TABLE[each.op].kind == "product":
            self.give(each, self._product(each, None))
        else:
            super()._apply(each)

    def _product(self, product: Node, start: str | None) -> str:
        operand = self.frame.operand_of(product).format(self.clean(product.inputs[1]))
        matrix = self.matrices[product.op, product.inputs[0]]
        return self.text.let(self.frame.dot(operand, matrix, start))
