"""Emits the products of a stage: micro-kernels that fill tiles of sums."""

from __future__ import annotations

from collections.abc import Mapping

from llvmlite import ir

from cellwright.engines.cpu import bfloat
from cellwright.engines.cpu.arrays import Array, Sources
from cellwright.engines.cpu.evaluation import Evaluation
from cellwright.engines.cpu.frame import Frame
from cellwright.engines.cpu.ops import I32, Value
from cellwright.engines.cpu.product import (
    LINE,
    ROW_BLOCKS,
    blocks_end,
    call_by_rows,
    declare_pair,
)
from cellwright.engines.cpu.program import weights_slot
from cellwright.engines.cpu.targets import Group, Target
from cellwright.ir import Node

TILE_ROWS = 48


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

    def values(
        self, members: list[tuple[int, Group]], r: Value, part: int
    ) -> dict[Node, tuple[Value, Target]]:
        """Addresses of the sums of one row and vector of units."""
        e, b = self.frame.e, self.frame.e.b
        found = {}
        for position, (_, each) in enumerate(members):
            for number, target in enumerate(each.targets):
                column = (number * each.blocks + part) * self.frame.lanes.count
                offset = b.add(b.mul(r, e.i64(self.stride)), e.i64(column))
                found[target.root] = (e.at(self._tiles[position], offset), target)
        return found

    def fill(
        self, index: int, number: int, members: Group, block: Value, row: Value, rows: Value,
        paired: Value, position: int, here: Sources,
    ) -> None:  # fmt: skip
        """Run the micro-kernels of a group for some rows of one block of units."""
        e, b, lanes = self.frame.e, self.frame.e.b, self.frame.lanes
        width = members.vectors * lanes.count
        bf16 = self.frame.program.bf16
        if bf16:
            words = self.frame.program.words[index][members.operands]
            operands = [(words, words.stride)]
        else:
            operands = merged_operands(members, here, self.frame.program.sizes)
        depth = sum(k for _, k in operands)
        packed = self.frame.address(weights_slot(index, number))
        panel = e.at(packed, b.mul(block, e.i64(depth * width)))
        started = any(target.start is not None for target in members.targets)
        if started:
            self._start(members, block, row, rows, paired, position, here)
        with b.if_else(paired) as (one_row, many_rows):
            with one_row:
                done = 0
                following = e.at(panel, e.i64(depth * width))
                for operand, (array, k) in enumerate(operands):
                    begin = e.i64(done * width)
                    kernel = declare_pair(self.frame.module, members.vectors, lanes.double, bf16)
                    b.call(kernel, [
                        e.i64(k), e.at(self.frame.base(array), self.frame.offset(array, row)),
                        e.at(panel, begin), e.at(following, begin), self._tiles[position],
                        e.i64(self.stride), ir.Constant(I32, 1 if operand or started else 0),
                    ])  # fmt: skip
                    done += k
            with many_rows:
                self._row_blocks(members, operands, panel, row, rows, position, started)

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
        self, members: Group, block: Value, row: Value, rows: Value, paired: Value, position: int,
        here: Sources,
    ) -> None:  # fmt: skip
        """Fill a tile with what its chains begin with."""
        e, b, lanes = self.frame.e, self.frame.e.b, self.frame.lanes
        units = self.frame.program.sizes[members.size]
        step = members.blocks * lanes.count
        with e.loop(e.i64(0), b.select(paired, e.i64(2), rows)) as r:
            here_row = b.select(paired, row, b.add(row, r))
            first = b.mul(b.select(paired, b.add(block, r), block), e.i64(step))
            for number, target in enumerate(members.targets):
                for part in range(members.blocks):
                    unit = b.add(first, e.i64(part * lanes.count))
                    mask = self.frame.mask(units, step, unit)
                    value = e.splat(0.0)
                    if target.start is not None:
                        evaluation = Evaluation(self.frame, here_row, unit, mask, here, {})
                        value = evaluation.value(target.start)
                    column = (number * members.blocks + part) * lanes.count
                    offset = b.add(b.mul(r, e.i64(self.stride)), e.i64(column))
                    e.store(value, e.at(self._tiles[position], offset))

    def _row_blocks(
        self, members: Group, operands: list[tuple[Array, int]], panel: Value, row: Value,
        rows: Value, position: int, started: bool,
    ) -> None:  # fmt: skip
        e, b = self.frame.e, self.frame.e.b
        width = members.vectors * self.frame.lanes.count
        line = LINE // self.frame.lanes.bytes
        depth = sum(k for _, k in operands)
        # While the rows of this panel are worked on, the next one is brought near.
        following = e.at(panel, e.i64(depth * width))
        start: Value = e.i64(0)
        for count in ROW_BLOCKS:
            stop = blocks_end(e, start, rows, count)
            with e.loop(start, stop, count) as r:
                passed = b.mul(b.sdiv(r, e.i64(ROW_BLOCKS[0])), e.i64(depth * line))
                tile = e.at(self._tiles[position], b.mul(r, e.i64(self.stride)))
                done = 0
                for operand, (array, k) in enumerate(operands):
                    base, offset = self.frame.base(array), self.frame.offset(array, b.add(row, r))
                    call_by_rows(e, count, members.vectors, [
                        e.i64(k), e.at(base, offset), e.i64(array.stride), e.i64(1),
                        e.at(panel, e.i64(done * width)), e.i64(width),
                        tile, e.i64(self.stride),
                        ir.Constant(I32, 1 if operand or started else 0),
                        e.at(following, b.add(passed, e.i64(done * line))), e.i64(line),
                    ], self.frame.program.bf16)  # fmt: skip
                    done += k
            start = stop


def merged_operands(
    members: Group, here: Sources, sizes: Mapping[str, int]
) -> list[tuple[Array, int]]:
    """Arrays and widths of a group's operands; neighbours in memory count as one."""
    merged: list[tuple[Array, int]] = []
    for operand in members.operands:
        array, k = here[operand], sizes[operand.size]
        if merged:
            last, width = merged[-1]
            same = (last.slot, last.index, last.stride) == (array.slot, array.index, array.stride)
            if same and array.offset == last.offset + width:
                merged[-1] = (last, width + k)
                continue
        merged.append((array, k))
    return merged
