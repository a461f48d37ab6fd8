"""Puts weights into the order in which the micro-kernels read them.

A panel holds the weights of one block of units: for each column k of the operands, one after the
other, the vectors of all targets. Units behind the last are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from llvmlite import ir
from torch import Tensor

from cellwright.engines.cpu.ops import I32, I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.targets import Group
from cellwright.ir import Matrix, Node

ARGUMENTS = (
    "source", "unit_stride", "k_stride", "units", "k_count", "target", "step", "block_stride",
    "panel_row", "blocks",
)  # fmt: skip


@dataclass(frozen=True)
class Copy:
    """One matrix of one target: where its weights go.

    Attributes:
        parameter: its name.
        matrix: its type.
        transposed: the product is with the transposed matrix.
        units, depth: rows and columns of the (transposed) matrix.
        begin: first element in the packed memory.
        step: units of a block.
        block_stride, panel_row: elements from block to block, and from k to k.
        blocks: number of blocks.
    """

    parameter: str
    matrix: Matrix
    transposed: bool
    units: int
    depth: int
    begin: int
    step: int
    block_stride: int
    panel_row: int
    blocks: int


def plan_copies(
    groups: Sequence[Group], sizes: Mapping[str, int], lanes: int
) -> tuple[list[Copy], list[int], int]:
    """The copies for some groups, where each group's weights begin, and elements in all."""
    copies: list[Copy] = []
    begins: list[int] = []
    end = 0
    for members in groups:
        begins.append(end)
        units = sizes[members.size]
        step = members.blocks * lanes
        blocks = -(-units // step)
        widths = [sizes[operand.size] for operand in members.operands]
        row = len(members.targets) * step
        for number, target in enumerate(members.targets):
            start = 0
            for each, width in zip(target.products, widths, strict=True):
                copies.append(
                    _copy(each, units, width, end + start * row + number * step, step,
                          sum(widths) * row, row, blocks)
                )  # fmt: skip
                start += width
        end += blocks * sum(widths) * row
    return copies, begins, end


def _copy(
    each: Node,
    units: int,
    width: int,
    begin: int,
    step: int,
    block_stride: int,
    row: int,
    blocks: int,
) -> Copy:
    parameter = each.inputs[0]
    return Copy(
        str(parameter.attribute("name")), parameter.matrix, each.op == "matvec_transposed",
        units, width, begin, step, block_stride, row, blocks,
    )  # fmt: skip


def dense(weight: Tensor, start: int, copy: Copy) -> Tensor:
    """The block-diagonal matrix that begins at a row of ``weight``, with its zeros."""
    rows = copy.depth if copy.transposed else copy.units
    return torch.block_diag(*weight[start : start + rows].chunk(copy.matrix.blocks))


def emit_pack(double: bool) -> str:
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
            _emit_block(e, given, block)
    b.ret_void()
    return str(module)


def _emit_block(e: Emitter, given: dict[str, Value], block: Value) -> None:
    """One block of units of one matrix, unit by unit."""
    b = e.b
    source, target = (b.inttoptr(given[name], POINTER) for name in ("source", "target"))
    into = e.at(target, b.mul(block, given["block_stride"]))
    first = b.mul(block, given["step"])
    contiguous = b.icmp_signed("==", given["unit_stride"], e.i64(1))
    room = b.icmp_signed("<=", b.add(first, given["step"]), given["units"])
    with b.if_else(b.and_(contiguous, room)) as (by_vectors, one_by_one):
        with by_vectors, e.loop(e.i64(0), given["k_count"]) as k:
            row = e.at(source, b.add(b.mul(k, given["k_stride"]), first))
            place = e.at(into, b.mul(k, given["panel_row"]))
            with e.loop(e.i64(0), given["step"], e.lanes.count) as lane:
                e.store(e.load(e.at(row, lane)), e.at(place, lane))
        with one_by_one, e.loop(e.i64(0), given["step"], e.lanes.count) as lane:
            _emit_lanes(e, given, b.add(first, lane), source, e.at(into, lane))


def _emit_lanes(
    e: Emitter, given: dict[str, Value], first: Value, source: Value, into: Value
) -> None:
    """As many units as there are lanes, of a matrix whose units do not lie side by side."""
    b, lanes = e.b, e.lanes
    room = b.icmp_signed("<=", b.add(first, e.i64(lanes.count)), given["units"])
    by_rows = b.icmp_signed("==", given["k_stride"], e.i64(1))
    squares = b.sub(given["k_count"], b.srem(given["k_count"], e.i64(lanes.count)))
    squares = b.select(b.and_(room, by_rows), squares, e.i64(0))
    with e.loop(e.i64(0), squares, lanes.count) as k:
        rows = []
        for number in range(lanes.count):
            unit = b.add(first, e.i64(number))
            rows.append(e.load(e.at(source, b.add(b.mul(unit, given["unit_stride"]), k))))
        for number, column in enumerate(transposed(e, rows)):
            place = b.mul(b.add(k, e.i64(number)), given["panel_row"])
            e.store(column, e.at(into, place))
    with e.loop(e.i64(0), e.i64(lanes.count)) as lane:
        _emit_unit(e, given, b.add(first, lane), squares, source, e.at(into, lane))


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
    e: Emitter, given: dict[str, Value], unit: Value, k_from: Value, source: Value, into: Value
) -> None:
    """The columns from ``k_from`` of one unit, or zeros behind the last unit."""
    b, element = e.b, e.lanes.element
    with b.if_else(b.icmp_signed("<", unit, given["units"])) as (real, padding):
        with real:
            row = e.at(source, b.mul(unit, given["unit_stride"]))
            with e.loop(k_from, given["k_count"]) as k:
                value = e.load(e.at(row, b.mul(k, given["k_stride"])), element)
                e.store(value, e.at(into, b.mul(k, given["panel_row"])))
        with padding, e.loop(e.i64(0), given["k_count"]) as k:
            e.store(ir.Constant(element, 0.0), e.at(into, b.mul(k, given["panel_row"])))
