"""Emits the products of a stage: micro-kernels that fill tiles of sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llvmlite import ir

from cellwright.engines.cpu import bfloat
from cellwright.engines.cpu.arrays import Array, Sources
from cellwright.engines.cpu.evaluation import Evaluation
from cellwright.engines.cpu.frame import TILE_ROWS, Frame
from cellwright.engines.cpu.ops import I32, Value
from cellwright.engines.cpu.packing import row_counts
from cellwright.engines.cpu.product import (
    LINE,
    ROW_BLOCKS,
    blocks_end,
    call_by_rows,
    declare_pair,
)
from cellwright.engines.cpu.program import weights_slot
from cellwright.engines.cpu.targets import Group, Panels, Target
from cellwright.ir import Node


@dataclass(frozen=True)
class _Call:
    """One call of a micro-kernel for each block of rows.

    Attributes:
        array, first, k: its left side, the first of its numbers in a row, and how many.
        vectors: of its panel.
        begin: first weight inside of the group's panel.
        column: of the tile where its sums begin.
        done: rows of the group's panel before it.
    """

    array: Array
    first: int
    k: int
    vectors: int
    begin: int
    column: int
    done: int


class Tiles:
    """Memory for the sums of some rows and one block of units, one tile a group of products.

    Args:
        frame: the function under construction; its arguments are loaded.
    """

    def __init__(self, frame: Frame):
        self.frame = frame
        groups = frame.program.groups
        widest = max((g.vectors for members in groups for g in members), default=1)
        most = max((len(members) for members in groups), default=0)
        self.stride = widest * frame.lanes.count
        self._tiles = [frame.e.scratch(TILE_ROWS * self.stride) for _ in range(most)]

    def unit(self, panels: Panels, block: Value, part: int) -> Value:
        """The first unit of a vector."""
        e, b = self.frame.e, self.frame.e.b
        first = e.i64((panels.first + part) * self.frame.lanes.count)
        return b.add(b.mul(block, e.i64(panels.blocks * self.frame.lanes.count)), first)

    def mask(self, size: str, panels: Panels, unit: Value) -> Value | None:
        """The lanes that are units; None where all are, in every one of the panels."""
        units = self.frame.program.sizes[size]
        end = panels.first + panels.count * panels.blocks
        if end * self.frame.lanes.count <= units:
            return None
        return self.frame.e.lanes_below(self.frame.e.b.sub(self.frame.e.i64(units), unit))

    def values(
        self, members: list[tuple[int, Group]], panels: Panels, r: Value, part: int
    ) -> dict[Node, tuple[Value, Target]]:
        """Addresses of the sums of one row and vector of units."""
        e, b = self.frame.e, self.frame.e.b
        found = {}
        for position, (_, each) in enumerate(members):
            for number, target in enumerate(each.targets):
                column = (number * panels.blocks + part) * self.frame.lanes.count
                offset = b.add(b.mul(r, e.i64(self.stride)), e.i64(column))
                found[target.root] = (e.at(self._tiles[position], offset), target)
        return found

    def fill(
        self, index: int, number: int, members: Group, panels: Panels, block: Value, row: Value,
        rows: Value, paired: Value, position: int, here: Sources,
    ) -> None:  # fmt: skip
        """Run the micro-kernels of a group for some rows of one block of units."""
        e, b, lanes = self.frame.e, self.frame.e.b, self.frame.lanes
        per_vector = members.per_vector(self._widths(members)) * lanes.count
        packed = e.at(self.frame.address(weights_slot(index, number)),
                      e.i64(panels.first * per_vector))  # fmt: skip
        panel = e.at(packed, b.mul(block, e.i64(panels.blocks * per_vector)))
        # Where targets begin with different operands, all begin with what their tile holds.
        started = len(members.segments) > 1
        started = started or any(target.start is not None for target in members.targets)
        if started:
            self._start(members, panels, block, row, rows, paired, position, here)
        calls = self._calls(index, members, panels, here)
        bf16 = self.frame.program.bf16
        with b.if_else(paired) as (one_row, many_rows):
            with one_row:
                following = e.at(panel, e.i64(panels.blocks * per_vector))
                for n, call in enumerate(calls):
                    kernel = declare_pair(self.frame.module, call.vectors, lanes.double, bf16)
                    b.call(kernel, [
                        e.i64(call.k), self._left(call, row),
                        e.at(panel, e.i64(call.begin)), e.at(following, e.i64(call.begin)),
                        e.at(self._tiles[position], e.i64(call.column)),
                        e.i64(self.stride), ir.Constant(I32, 1 if n or started else 0),
                    ])  # fmt: skip
            with many_rows:
                self._row_blocks(calls, panel, panels.blocks * per_vector, row, rows, position,
                                 started)  # fmt: skip

    def _widths(self, members: Group) -> dict[Node, int]:
        """Rows of a panel for each operand."""
        return row_counts(members, self.frame.program.sizes, self.frame.program.bf16)

    def _calls(self, index: int, members: Group, panels: Panels, here: Sources) -> list[_Call]:
        """What the micro-kernels are called for, one after the other."""
        widths, lanes = self._widths(members), self.frame.lanes.count
        words = self.frame.program.words[index].get(members.operands)
        calls: list[_Call] = []
        begin = done = 0
        for segment in members.segments:
            vectors = segment.width * panels.blocks
            if words is None:
                operands = merged_operands(segment.operands, here, self.frame.program.sizes)
            else:
                operands = [(words, sum(widths[each] for each in segment.operands))]
            for array, k in operands:
                column = segment.first * panels.blocks * lanes
                first = 0 if words is None else done
                calls.append(_Call(array, first, k, vectors, begin, column, done))
                begin += k * vectors * lanes
                done += k
        return calls

    def _left(self, call: _Call, row: Value) -> Value:
        """Address of what a call reads of a row."""
        offset = self.frame.offset(call.array, row)
        offset = self.frame.e.b.add(offset, self.frame.e.i64(call.first))
        return self.frame.e.at(self.frame.base(call.array), offset)

    def convert(self, index: int, here: Sources) -> None:
        """Put what the products of a stage read into words; each share does so for itself."""
        e, b, count = self.frame.e, self.frame.e.b, self.frame.lanes.count
        for operands, array in self.frame.program.words[index].items():
            begin = 0
            for each in operands:
                source, k = here[each], self.frame.program.sizes[each.size]
                words = bfloat.words(k)
                with (
                    e.loop(self.frame.row_from, self.frame.row_to) as row,
                    e.loop(e.i64(0), e.i64(words), count) as word,
                ):
                    numbers = e.at(self.frame.base(source), self.frame.offset(source, row))
                    parts = []
                    for part in range(bfloat.PER_WORD):
                        term = b.add(b.mul(word, e.i64(bfloat.PER_WORD)), e.i64(part * count))
                        mask = self.frame.mask(k, bfloat.PER_WORD * count, term)
                        place = e.at(numbers, term)
                        parts.append(e.load(place) if mask is None else e.masked_load(place, mask))
                    into = e.at(self.frame.base(array), self.frame.offset(array, row))
                    place = e.at(into, b.add(word, e.i64(begin)))
                    self._store_words(bfloat.along(e, *parts), place, words, word)
                begin += words

    def _store_words(self, value: Value, place: Value, words: int, word: Value) -> None:
        mask = self.frame.mask(words, self.frame.lanes.count, word)
        if mask is None:
            self.frame.e.store(value, place)
        else:
            self.frame.e.masked_store(value, place, mask)

    def _start(
        self, members: Group, panels: Panels, block: Value, row: Value, rows: Value,
        paired: Value, position: int, here: Sources,
    ) -> None:  # fmt: skip
        """Fill a tile with what its chains begin with."""
        e, b, lanes = self.frame.e, self.frame.e.b, self.frame.lanes
        with e.loop(e.i64(0), b.select(paired, e.i64(2), rows)) as r:
            here_row = b.select(paired, row, b.add(row, r))
            here_block = b.select(paired, b.add(block, r), block)
            for number, target in enumerate(members.targets):
                for part in range(panels.blocks):
                    unit = self.unit(panels, here_block, part)
                    mask = self.mask(members.size, panels, unit)
                    value = e.splat(0.0)
                    if target.start is not None:
                        evaluation = Evaluation(self.frame, here_row, unit, mask, here, {})
                        value = evaluation.value(target.start)
                    column = (number * panels.blocks + part) * lanes.count
                    offset = b.add(b.mul(r, e.i64(self.stride)), e.i64(column))
                    e.store(value, e.at(self._tiles[position], offset))

    def _row_blocks(
        self, calls: list[_Call], panel: Value, size: int, row: Value, rows: Value, position: int,
        started: bool,
    ) -> None:  # fmt: skip
        e, b = self.frame.e, self.frame.e.b
        line = LINE // self.frame.lanes.bytes
        depth = sum(call.k for call in calls)
        # While the rows of this panel are worked on, the next one is brought near.
        following = e.at(panel, e.i64(size))
        start: Value = e.i64(0)
        for count in ROW_BLOCKS:
            stop = blocks_end(e, start, rows, count)
            with e.loop(start, stop, count) as r:
                passed = b.mul(b.sdiv(r, e.i64(ROW_BLOCKS[0])), e.i64(depth * line))
                tile = e.at(self._tiles[position], b.mul(r, e.i64(self.stride)))
                for n, call in enumerate(calls):
                    left = self._left(call, b.add(row, r))
                    width = call.vectors * self.frame.lanes.count
                    call_by_rows(e, count, call.vectors, [
                        e.i64(call.k), left, e.i64(call.array.stride), e.i64(1),
                        e.at(panel, e.i64(call.begin)), e.i64(width),
                        e.at(tile, e.i64(call.column)), e.i64(self.stride),
                        ir.Constant(I32, 1 if n or started else 0),
                        e.at(following, b.add(passed, e.i64(call.done * line))), e.i64(line),
                    ], self.frame.program.bf16)  # fmt: skip
            start = stop


def merged_operands(
    operands: Iterable[Node], here: Sources, sizes: Mapping[str, int]
) -> list[tuple[Array, int]]:
    """Arrays and widths of some operands; neighbours in memory count as one."""
    merged: list[tuple[Array, int]] = []
    for operand in operands:
        array, k = here[operand], sizes[operand.size]
        if merged:
            last, width = merged[-1]
            same = (last.slot, last.index, last.stride) == (array.slot, array.index, array.stride)
            if same and array.offset == last.offset + width:
                merged[-1] = (last, width + k)
                continue
        merged.append((array, k))
    return merged
