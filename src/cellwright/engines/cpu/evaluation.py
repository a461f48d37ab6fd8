"""Values of nodes, in registers, for one row and one vector of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llvmlite import ir

from cellwright.engines.cpu.arrays import Array, Kind, Sources
from cellwright.engines.cpu.frame import Frame
from cellwright.engines.cpu.functions import OPERATIONS
from cellwright.engines.cpu.ops import I8, Value
from cellwright.engines.cpu.targets import Target
from cellwright.ir import Node

Tiles = Mapping[Node, tuple[Value, Target]]
"""Sums in memory: the node whose value they are part of -> their address."""


class Evaluation:
    """Computes values; each is loaded or computed once.

    Args:
        frame: the function under construction.
        row, unit: where.
        mask: lanes that are units; None if all are.
        here: places of values that lie in memory.
        tiles: sums of products.
    """

    def __init__(
        self, frame: Frame, row: Value, unit: Value, mask: Value | None, here: Sources,
        tiles: Tiles,
    ):  # fmt: skip
        self.frame, self.row, self.unit, self.mask = frame, row, unit, mask
        self.here, self.tiles = here, tiles
        self.known: dict[Node, Value] = {}

    def value(self, root: Node) -> Value:
        """The value of a node, computing what it needs."""
        for each in self._needed(root):
            if each not in self.known:
                self.known[each] = self._compute(each)
        return self.known[root]

    def _needed(self, root: Node) -> list[Node]:
        """What has to be computed or loaded, in order; nothing behind what is at hand."""
        order: list[Node] = []
        seen: set[Node] = set(self.known)
        stack = [(root, False)]
        while stack:
            each, ready = stack.pop()
            if ready:
                order.append(each)
            elif each not in seen:
                seen.add(each)
                stack.append((each, True))
                stack.extend((source, False) for source in reversed(self._reads(each)))
        return order

    def _reads(self, each: Node) -> Sequence[Node]:
        if each in self.tiles:
            return self.tiles[each][1].rest
        return () if each in self.here else each.inputs

    def _compute(self, each: Node) -> Value:
        e = self.frame.e
        if each in self.tiles:
            address, target = self.tiles[each]
            value = e.load(address)
            for part in target.rest:
                value = e.b.fadd(value, self.known[part])
            return value
        if each in self.here:
            return self._load(self.here[each])
        if each.op == "constant":
            return e.splat(each.attribute("value"))
        if each.op == "reciprocal_size":
            return e.splat(1.0 / self.frame.program.sizes[each.attribute("size")])
        assert each.inputs, f"{each!r} is read but has no place in memory"
        return OPERATIONS[each.op](e, *(self.known[source] for source in each.inputs))

    def _load(self, array: Array) -> Value:
        e, b, frame = self.frame.e, self.frame.e.b, self.frame
        base = frame.base(array)
        by_row = array.kind in (Kind.ROWS, Kind.ROW)
        offset = frame.offset(array, self.row) if by_row else e.i64(array.offset)
        if array.kind in (Kind.ROW, Kind.UNIT):
            if array.boolean:
                address = b.gep(base, [offset], source_etype=I8)
                byte = e.load(address, I8, 1)
                return e.broadcast(b.icmp_unsigned("!=", byte, ir.Constant(I8, 0)))
            return e.broadcast(e.load(e.at(base, offset), frame.lanes.element))
        place = b.add(offset, self.unit)
        if array.boolean:
            address = b.gep(base, [place], source_etype=I8)
            full = ir.Constant(frame.lanes.mask, [1] * frame.lanes.count)
            bytes_ = e.masked_load_bytes(address, self.mask if self.mask is not None else full)
            zero = ir.Constant(ir.VectorType(I8, frame.lanes.count), [0] * frame.lanes.count)
            return b.icmp_unsigned("!=", bytes_, zero)
        if array.kind is Kind.ROWS:
            frame.prefetch(array, e.at(base, place))
        if self.mask is None:
            return e.load(e.at(base, place))
        return e.masked_load(e.at(base, place), self.mask)
