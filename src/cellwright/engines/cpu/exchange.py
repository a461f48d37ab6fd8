"""Exchanges rows and columns of tables of numbers: channels first to channels last, and back."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from llvmlite import ir
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.images import Images
from cellwright.engines.cpu.ops import I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.packing import transposed
from cellwright.engines.cpu.program import ENTRY
from cellwright.engines.cpu.sharing import POINTWISE_ALONE_BELOW

ARGUMENTS = ("source", "target", "rows", "columns")


def emit_exchange(double: bool) -> str:
    """``run``: target[t, c, r] = source[t, r, c] for some tables t, in squares of lanes."""
    module = ir.Module("cellwright_exchange")
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])
    function = ir.Function(module, kind, ENTRY)
    arguments, first, end, _, _ = function.args
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), Lanes(double))
    b, count = e.b, e.lanes.count
    source, target, rows, columns = (
        e.load(b.gep(arguments, [e.i64(place)], source_etype=I64), I64, 8)
        for place in range(len(ARGUMENTS))
    )
    source, target = b.inttoptr(source, POINTER), b.inttoptr(target, POINTER)
    with e.loop(first, end) as table:
        skipped = b.mul(table, b.mul(rows, columns))
        there, here = e.at(source, skipped), e.at(target, skipped)
        with e.loop(e.i64(0), columns, count) as column, e.loop(e.i64(0), rows, count) as row:
            _emit_square(e, there, here, row, column, rows, columns)
    b.ret_void()
    return str(module)


def _emit_square(
    e: Emitter, source: Value, target: Value, row: Value, column: Value, rows: Value, columns: Value
) -> None:
    """One square, or the part of it that is inside the table."""
    b, count = e.b, e.lanes.count

    def inside(place: Value, extent: Value) -> Value:
        return b.icmp_signed("<=", b.add(place, e.i64(count)), extent)

    def room(number: int, place: Value, extent: Value, along: Value) -> Value:
        """The lanes of line ``number`` that are inside: none where the line is not."""
        is_line = b.icmp_signed("<", b.add(place, e.i64(number)), extent)
        return e.lanes_below(b.select(is_line, along, e.i64(0)))

    def lines(base: Value, place: Value, other: Value, length: Value) -> list[Value]:
        return [
            e.at(base, b.add(b.mul(b.add(place, e.i64(number)), length), other))
            for number in range(count)
        ]

    loads = lines(source, row, column, columns)
    stores = lines(target, column, row, rows)
    whole = b.and_(inside(row, rows), inside(column, columns))
    with b.if_else(whole) as (full, part):
        with full:
            values = transposed(e, [e.load(place) for place in loads])
            for value, place in zip(values, stores, strict=True):
                e.store(value, place)
        with part:
            left = b.sub(columns, column)
            masks = [room(number, row, rows, left) for number in range(count)]
            values = transposed(e, [*map(e.masked_load, loads, masks)])
            left = b.sub(rows, row)
            for number, (value, place) in enumerate(zip(values, stores, strict=True)):
                e.masked_store(value, place, room(number, column, columns, left))


@lru_cache(maxsize=8)
def _compiled(double: bool, limit: str) -> tuple[jit.Code, int]:
    code = jit.compile_ir(emit_exchange(double), limit)
    return code, code.address(ENTRY)


def exchange(source: Tensor, target: Tensor, tables: int, rows: int, columns: int) -> None:
    """Write (tables, rows, columns) into ``target`` as (tables, columns, rows).

    Args:
        source, target: contiguous, float32 or float64.
    """
    _, address = _compiled(source.dtype == torch.float64, jit.features_limit())
    arguments = (ctypes.c_int64 * len(ARGUMENTS))(
        source.data_ptr(), target.data_ptr(), rows, columns
    )
    team = threads.count() if source.numel() >= POINTWISE_ALONE_BELOW else 1
    threads.launch(address, ctypes.addressof(arguments), tables, threads.ROWS, team)


class ExchangedImages(Images):
    """Images whose channels are moved by :func:`exchange`."""

    def in_order(self, value: Tensor, turned: Tensor, axis: int, *, last: bool) -> Tensor:
        if not (value.is_contiguous() and value.is_floating_point()):
            return super().in_order(value, turned, axis, last=last)
        moved = torch.empty(turned.shape, dtype=value.dtype)
        lead, channels = value.shape[:axis].numel(), value.shape[axis if last else -1]
        positions = value.numel() // max(lead * channels, 1)
        rows, columns = (channels, positions) if last else (positions, channels)
        exchange(value, moved, lead, rows, columns)
        return moved
