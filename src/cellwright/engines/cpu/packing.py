"""Puts weights into the order in which the micro-kernels read them.

A panel holds the weights of one block of units: for each column k of the operands, one after the
other, the vectors of all targets. Units behind the last are zeros. Where factors are bfloat16
numbers, two columns that follow each other in an operand are one of words (see ``bfloat.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from llvmlite import ir
from torch import Tensor

from cellwright.engines.cpu import bfloat
from cellwright.engines.cpu.ops import I32, I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.targets import Group, Panels
from cellwright.ir import Matrix, Node

ARGUMENTS = (
    "source", "unit_stride", "k_stride", "units", "k_count", "target", "step", "block_stride",
    "panel_row", "blocks",
)  # fmt: skip


@dataclass(frozen=True)
class Copy:
    """Some units of one matrix of one target: where their weights go.

    Attributes:
        parameter: its name.
        matrix: its type.
        transposed: the product is with the transposed matrix.
        rows: of the matrix, whole and not transposed.
        first, units: of the (transposed) matrix, for panels of one width.
        depth: columns of the (transposed) matrix.
        begin: first element in the packed memory.
        step: units of a block.
        block_stride, panel_row: elements from block to block, and from one k, or word, to the next.
        blocks: number of blocks.
    """

    parameter: str
    matrix: Matrix
    transposed: bool
    rows: int
    first: int
    units: int
    depth: int
    begin: int
    step: int
    block_stride: int
    panel_row: int
    blocks: int


def row_counts(members: Group, sizes: Mapping[str, int], bf16: bool) -> dict[Node, int]:
    """Rows of a group's panels for each operand: columns of a matrix, or words of them."""
    return {
        each: bfloat.words(sizes[each.size]) if bf16 else sizes[each.size]
        for each in members.operands
    }


def plan_copies(
    groups: Sequence[Group], sizes: Mapping[str, int], lanes: int, bf16: bool
) -> tuple[list[Copy], list[int], int]:
    """The copies for some groups, where each group's weights begin, and elements in all."""
    copies: list[Copy] = []
    begins: list[int] = []
    end = 0
    for members in groups:
        begins.append(end)
        rows = row_counts(members, sizes, bf16)
        per_vector = members.per_vector(rows) * lanes
        for panels in members.panels:
            begin = end + panels.first * per_vector
            for segment in members.segments:
                row = segment.width * panels.blocks * lanes
                for operand, products in zip(segment.operands, segment.products, strict=True):
                    for number, product in enumerate(products):
                        start = begin + number * panels.blocks * lanes
                        copies.append(
                            _copy(product, sizes, members.size, panels, lanes, start,
                                  panels.blocks * per_vector, row)
                        )  # fmt: skip
                    begin += rows[operand] * row
        end += per_vector * sum(panels.blocks * panels.count for panels in members.panels)
    return copies, begins, end


def _copy(
    product: Node, sizes: Mapping[str, int], size: str, panels: Panels, lanes: int, begin: int,
    block_stride: int, row: int,
) -> Copy:  # fmt: skip
    parameter, operand = product.inputs
    transposed = product.op == "matvec_transposed"
    first, step = panels.first * lanes, panels.blocks * lanes
    units, depth = sizes[size], sizes[operand.size]
    return Copy(
        str(parameter.attribute("name")), parameter.matrix, transposed,
        depth if transposed else units, first, min(units - first, panels.count * step), depth,
        begin, step, block_stride, row, panels.count,
    )  # fmt: skip


def dense(weight: Tensor, start: int, copy: Copy) -> Tensor:
    """The block-diagonal matrix that begins at a row of ``weight``, with its zeros.

    In front there may be an axis of members.
    """
    blocks = weight.narrow(-2, start, copy.rows).unflatten(-2, (copy.matrix.blocks, -1))
    return torch.diag_embed(blocks.movedim(-3, -1), dim1=-4, dim2=-2).flatten(-4, -3).flatten(-2)


def emit_pack(double: bool, bf16: bool = False) -> str:
    """``run``: carries out copies; arguments: their number, then ``ARGUMENTS`` of each."""
    module = ir.Module("cellwright_pack")
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])
    function = ir.Function(module, kind, "run")
    arguments, _, _, share, shares = function.args
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), Lanes(double))
    b = e.b
    count = e.load(arguments, I64, 8)
    with e.loop(e.i64(0), count) as job:
        start = b.add(e.i64(1), b.mul(job, e.i64(len(ARGUMENTS))))
        given = {
            name: e.load(b.gep(arguments, [b.add(start, e.i64(place))], source_etype=I64), I64, 8)
            for place, name in enumerate(ARGUMENTS)
        }
        first = b.sdiv(b.mul(share, given["blocks"]), shares)
        end = b.sdiv(b.mul(b.add(share, e.i64(1)), given["blocks"]), shares)
        with e.loop(first, end) as block:
            _emit_block(e, given, block, bf16)
    b.ret_void()
    return str(module)


Load = Callable[[Value], Value]
"""Loads column k of one unit, or of a vector of units."""


def _panel_rows(e: Emitter, k_count: Value, bf16: bool) -> Value:
    """Rows of a panel for so many columns."""
    return bfloat.words_of(e, k_count) if bf16 else k_count


def _column(e: Emitter, given: dict[str, Value], row: Value, load: Load, bf16: bool) -> Value:
    """What stands in row ``row`` of a panel."""
    return bfloat.across(e, row, given["k_count"], load) if bf16 else load(row)


def _emit_block(e: Emitter, given: dict[str, Value], block: Value, bf16: bool) -> None:
    """One block of units of one matrix, unit by unit."""
    b = e.b
    rows = _panel_rows(e, given["k_count"], bf16)
    source, target = (b.inttoptr(given[name], POINTER) for name in ("source", "target"))
    into = e.at(target, b.mul(block, given["block_stride"]))
    first = b.mul(block, given["step"])
    contiguous = b.icmp_signed("==", given["unit_stride"], e.i64(1))
    room = b.icmp_signed("<=", b.add(first, given["step"]), given["units"])
    with b.if_else(b.and_(contiguous, room)) as (by_vectors, one_by_one):
        with by_vectors, e.loop(e.i64(0), rows) as row:
            place = e.at(into, b.mul(row, given["panel_row"]))
            with e.loop(e.i64(0), given["step"], e.lanes.count) as lane:

                def load(k: Value) -> Value:
                    unit = b.add(first, lane)
                    return e.load(e.at(source, b.add(b.mul(k, given["k_stride"]), unit)))

                e.store(_column(e, given, row, load, bf16), e.at(place, lane))
        with one_by_one, e.loop(e.i64(0), given["step"], e.lanes.count) as lane:
            _emit_lanes(e, given, b.add(first, lane), source, e.at(into, lane), bf16)


def _emit_lanes(
    e: Emitter, given: dict[str, Value], first: Value, source: Value, into: Value, bf16: bool
) -> None:
    """As many units as there are lanes, of a matrix whose units do not lie side by side."""
    b, lanes = e.b, e.lanes
    room = b.icmp_signed("<=", b.add(first, e.i64(lanes.count)), given["units"])
    by_rows = b.icmp_signed("==", given["k_stride"], e.i64(1))
    per_row = bfloat.PER_WORD if bf16 else 1
    squares = b.sdiv(given["k_count"], e.i64(lanes.count * per_row))
    squares = b.select(b.and_(room, by_rows), b.mul(squares, e.i64(lanes.count)), e.i64(0))
    with e.loop(e.i64(0), squares, lanes.count) as row:
        units = []
        for number in range(lanes.count):
            unit = b.add(first, e.i64(number))
            along = b.add(b.mul(unit, given["unit_stride"]), b.mul(row, e.i64(per_row)))
            parts = [
                e.load(e.at(source, b.add(along, e.i64(part * lanes.count))))
                for part in range(per_row)
            ]
            units.append(bfloat.along(e, *parts) if bf16 else parts[0])
        for number, column in enumerate(transposed(e, units)):
            place = b.mul(b.add(row, e.i64(number)), given["panel_row"])
            e.store(column, e.at(into, place))
    with e.loop(e.i64(0), e.i64(lanes.count)) as lane:
        _emit_unit(e, given, b.add(first, lane), squares, source, e.at(into, lane), bf16)


def transposed(e: Emitter, rows: list[Value]) -> list[Value]:
    """A square of lanes, its rows and columns exchanged, in steps of 1, 2, 4, ..."""
    count = e.lanes.count
    kind = ir.VectorType(I32, count)
    distance = 1
    while distance < count:
        low = [c if not c & distance else count + c - distance for c in range(count)]
        high = [c + distance if not c & distance else count + c for c in range(count)]
        fresh = list(rows)
        for number in range(count):
            if not number & distance:
                pair = rows[number], rows[number + distance]
                fresh[number] = e.b.shuffle_vector(*pair, ir.Constant(kind, low))
                fresh[number + distance] = e.b.shuffle_vector(*pair, ir.Constant(kind, high))
        rows = fresh
        distance *= 2
    return rows


def _emit_unit(
    e: Emitter, given: dict[str, Value], unit: Value, row_from: Value, source: Value, into: Value,
    bf16: bool,
) -> None:  # fmt: skip
    """The panel's rows from ``row_from`` for one unit, or zeros behind the last unit."""
    b, element = e.b, e.lanes.element
    rows = _panel_rows(e, given["k_count"], bf16)
    with b.if_else(b.icmp_signed("<", unit, given["units"])) as (real, padding):
        with real:
            own = e.at(source, b.mul(unit, given["unit_stride"]))

            def load(k: Value) -> Value:
                return e.load(e.at(own, b.mul(k, given["k_stride"])), element)

            with e.loop(row_from, rows) as row:
                value = _column(e, given, row, load, bf16)
                e.store(value, e.at(into, b.mul(row, given["panel_row"])))
        with padding, e.loop(e.i64(0), rows) as row:
            e.store(ir.Constant(element, 0.0), e.at(into, b.mul(row, given["panel_row"])))
