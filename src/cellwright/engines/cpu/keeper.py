"""Finds places, in memory over all steps, for what is read after a backward program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources, Stores
from cellwright.engines.cpu.layout import Layout
from cellwright.ir import ONE, TABLE, Node, is_leaf
from cellwright.plan import Outer

Outers = list[tuple[Outer, Array, Array]]
"""Outer products with the places of their factors."""

Sums = dict[str, tuple[Node, Sources]]
"""By parameter, or value of parameters: what is summed, with the sources to read from."""


class Keeper:
    """Finds, or makes, an array over all steps for a value that is needed after the loop.

    What it makes are columns of one array, in the order in which they are asked for; single numbers
    of rows are arrays of their own.
    """

    def __init__(self, layout: Layout, stores: Stores, slot: str, *, looped: bool):
        self.layout, self.stores, self.slot, self.looped = layout, stores, slot, looped
        self._width = 0
        self._made: list[Array] = []
        self._numbers: list[Array] = []

    @property
    def kept(self) -> dict[str, int]:
        """The arrays that it makes, and elements of their rows."""
        made = {self.slot: self._width} if self._made else {}
        return made | {each.slot: each.stride for each in self._numbers}

    def outers(self, outers: Iterable[Outer]) -> Outers:
        """Places of what is multiplied for matrices' gradients.

        They are asked for in the order of the matrices' rows, so that the gradients of matrices
        that lie side by side, and have the same operand, can be one product.
        """
        start = {each.parameter: (each.tensor, each.start) for each in self.layout.signature.slices}
        found = [(each, self.place(each.operand)) for each in outers]
        found.sort(key=lambda pair: start[pair[0].parameter])
        return [(each, self.place(each.delta), operand) for each, operand in found]

    def joined(self, outers: Outers, sums: Sums) -> tuple[Outers, Sums]:
        """The same with the width of the array, which is known when nothing more is asked for."""
        for node, arrays in self.stores.items():
            self.stores[node] = [self.whole(each) for each in arrays]
        return (
            [(outer, self.whole(delta), self.whole(operand)) for outer, delta, operand in outers],
            {
                name: (node, {source: self.whole(array) for source, array in sources.items()})
                for name, (node, sources) in sums.items()
            },
        )

    def whole(self, array: Array) -> Array:
        """An array with its width, when nothing more is asked for."""
        return replace(array, stride=self._width) if array in self._made else array

    def known(self, node: Node) -> Array | None:
        """Where the value lies for all steps, if it does."""
        for array in self.stores.get(node, ()):
            if array.index is not Index.ODD:
                return array
        if is_leaf(node) and node.op not in ("constant", "reciprocal_size"):
            place = self.layout.leaf(node, looped=self.looped)
            if place is not None and place.index is not Index.EVEN:
                return place
        return None

    def place(self, node: Node) -> Array:
        """Where the value lies for all steps."""
        known = self.known(node)
        if known is not None and known.kind is Kind.ROWS and not known.boolean:
            constant_in_time = known.index is Index.NONE and self.looped
            if not constant_in_time:
                return known
        index = Index.TIME if self.looped else Index.NONE
        if node.size == ONE:
            slot = f"{self.slot}.{len(self._numbers)}"
            array = self.layout.array(slot, node.size, index, boolean=node.vector.boolean)
            self._numbers.append(array)
            self.stores.setdefault(node, []).append(array)
            return array
        array = self.layout.array(self.slot, node.size, index).moved(self._width)
        self._width += array.stride
        self._made.append(array)
        self.stores.setdefault(node, []).append(array)
        return array

    def summand(self, node: Node) -> tuple[Node, Sources]:
        """A value to be summed, with the places of all that it is computed from."""
        sources: Sources = {}
        if not self._collect(node, sources):
            sources = {node: self.place(node)}
        return node, sources

    def _collect(self, node: Node, sources: Sources) -> bool:
        """Whether the value can be computed from arrays, unit by unit; adds them."""
        found = self.known(node)
        if found is not None:
            sources[node] = found
            return True
        if is_leaf(node):
            return node.op in ("constant", "reciprocal_size")
        if TABLE[node.op].kind != "pointwise" or TABLE[node.op].cost > 4:
            return False
        if node.size == ONE and TABLE[node.op].cost > 1:
            sources[node] = self.place(node)
            return True
        return all(self._collect(source, sources) for source in node.inputs)
