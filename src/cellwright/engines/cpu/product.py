"""Register-blocked matrix products: the kernels under every ``@``.

One micro-kernel computes a tile of ``rows`` x ``vectors`` sums that stay in registers:

    for k in range(K):
        for each vector v: b[v] = B[k][v]
        for each row r:    c[r][:] = fma(broadcast A[r][k], b[:], c[r][:])

A single row is too little to keep a processor busy; its kernel takes two panels of weights, and the
rows of its tile are the row's results for the one and the other.

Every sum is one chain of fused multiply-adds over k = 0, 1, 2, ..., begun at zero or at what the
tile held, so its bits depend neither on the tile's shape nor on who computes it.

Where factors are bfloat16 numbers, A and B hold words of two (see ``bfloat.py``): k counts words,
and each step is two of the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

from llvmlite import ir

from cellwright.engines.cpu import bfloat, jit
from cellwright.engines.cpu.ops import I32, I64, POINTER, Emitter, Lanes, Value

ROW_BLOCKS = (6, 4, 3, 2, 1)
VECTORS = 4  # of a panel: 64 columns of float32
LINE = 64  # bytes of memory that are fetched together

MICRO_ARGUMENTS = (I64, POINTER, I64, I64, POINTER, I64, POINTER, I64, I32, POINTER, I64)
"""K, A, A's row stride, A's k stride, B, B's k stride, C, C's row stride, accumulate, ahead, its k
stride.

At ``ahead``, one line of memory a k is brought near: what will be multiplied next.
"""


def micro_name(rows: int, vectors: int, double: bool, bf16: bool = False) -> str:
    """Name of the micro-kernel for a tile, on the processor that code is being made for."""
    return f"cellwright_micro{_variant(double, bf16)}_{rows}x{vectors}"


def declare_micro(
    module: ir.Module, rows: int, vectors: int, double: bool, bf16: bool = False
) -> ir.Function:
    """The micro-kernel as an external function of ``module``."""
    name = micro_name(rows, vectors, double, bf16)
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(ir.VoidType(), MICRO_ARGUMENTS), name)
    return found


Operands = Iterator[tuple[int, Value, list[Value]]]
"""Row of the tile, the factor for it, and the vectors that it multiplies."""

PAIR_ARGUMENTS = (I64, POINTER, POINTER, POINTER, POINTER, I64, I32)
"""K, A, first B, second B, C, C's row stride, accumulate."""


def pair_name(vectors: int, double: bool, bf16: bool = False) -> str:
    """Name of the kernel for one row and two panels."""
    return f"cellwright_pair{_variant(double, bf16)}_{vectors}"


def _variant(double: bool, bf16: bool) -> str:
    limit = jit.features_limit()
    factors = "bf16" if bf16 else "f64" if double else "f32"
    return f"_{limit}" * bool(limit) + f"_{factors}"


def declare_pair(module: ir.Module, vectors: int, double: bool, bf16: bool = False) -> ir.Function:
    """The kernel for one row and two panels as an external function of ``module``."""
    name = pair_name(vectors, double, bf16)
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(ir.VoidType(), PAIR_ARGUMENTS), name)
    return found


def _emit_micro(module: ir.Module, rows: int, vectors: int, lanes: Lanes, bf16: bool) -> None:
    function = declare_micro(module, rows, vectors, lanes.double, bf16)
    k_count, a, a_row, a_k, b_base, b_k, c, c_row, accumulate, ahead, ahead_k = function.args
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    b = e.b

    def operands(k: Value) -> Operands:
        row, column = b.mul(k, b_k), b.mul(k, a_k)
        e.prefetch(e.at(ahead, b.mul(k, ahead_k)))
        loaded = [e.load(e.at(b_base, b.add(row, e.i64(v * lanes.count)))) for v in range(vectors)]
        for r in range(rows):
            address = e.at(a, b.add(b.mul(a_row, e.i64(r)), column))
            yield r, e.broadcast(e.load(address, lanes.element)), loaded

    _emit_tile(e, function, rows, vectors, k_count, c, c_row, accumulate, operands, bf16)


def _emit_pair(module: ir.Module, vectors: int, lanes: Lanes, bf16: bool) -> None:
    function = declare_pair(module, vectors, lanes.double, bf16)
    k_count, a, first, second, c, c_row, accumulate = function.args
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    b = e.b

    def operands(k: Value) -> Operands:
        factor = e.broadcast(e.load(e.at(a, k), lanes.element))
        row = b.mul(k, e.i64(vectors * lanes.count))
        for r, panel in enumerate((first, second)):
            yield (
                r,
                factor,
                [e.load(e.at(panel, b.add(row, e.i64(v * lanes.count)))) for v in range(vectors)],
            )

    _emit_tile(e, function, 2, vectors, k_count, c, c_row, accumulate, operands, bf16)


def _emit_tile(
    e: Emitter, function: ir.Function, rows: int, vectors: int, k_count: Value, c: Value,
    c_row: Value, accumulate: Value, operands: Callable[[Value], Operands], bf16: bool,
) -> None:  # fmt: skip
    """The loop over k with a tile of sums in registers."""
    b, lanes, entry = e.b, e.lanes, e.b.block
    multiply_add = partial(bfloat.dot, e) if bf16 else e.fma
    tile = [
        [e.at(c, b.add(b.mul(c_row, e.i64(r)), e.i64(v * lanes.count))) for v in range(vectors)]
        for r in range(rows)
    ]
    fresh = b.icmp_signed("==", accumulate, ir.Constant(I32, 0))
    load_block, head, end = (function.append_basic_block(n) for n in ("load", "head", "end"))
    b.cbranch(fresh, head, load_block)
    b.position_at_end(load_block)
    held = [[e.load(address) for address in row] for row in tile]
    b.branch(head)
    body = function.append_basic_block("body")
    b.position_at_end(head)
    k = b.phi(I64, "k")
    sums = [[b.phi(lanes.vector) for _ in range(vectors)] for _ in range(rows)]
    k.add_incoming(e.i64(0), entry)
    k.add_incoming(e.i64(0), load_block)
    for r in range(rows):
        for v in range(vectors):
            sums[r][v].add_incoming(e.splat(0.0), entry)
            sums[r][v].add_incoming(held[r][v], load_block)
    b.cbranch(b.icmp_signed("<", k, k_count), body, end)
    b.position_at_end(body)
    for r, factor, loaded in operands(k):
        for v in range(vectors):
            sums[r][v].add_incoming(multiply_add(factor, loaded[v], sums[r][v]), body)
    k.add_incoming(b.add(k, e.i64(1)), body)
    b.branch(head)
    b.position_at_end(end)
    for r in range(rows):
        for v in range(vectors):
            e.store(sums[r][v], tile[r][v])
    b.ret_void()


@lru_cache(maxsize=8)
def _micro_kernels(double: bool, bf16: bool, limit: str) -> jit.Code:
    module = ir.Module("cellwright_micro")
    for rows in ROW_BLOCKS:
        for vectors in range(1, VECTORS + 1):
            _emit_micro(module, rows, vectors, Lanes(double), bf16)
    for vectors in range(1, VECTORS + 1):
        _emit_pair(module, vectors, Lanes(double), bf16)
    code = jit.compile_ir(str(module), limit)
    made = [each.name for each in module.functions if not each.is_declaration]
    jit.bind_symbols({name: code.address(name) for name in made})
    return code


def provide(double: bool, bf16: bool = False) -> None:
    """Compile the micro-kernels, if need be, so that other modules can call them by name."""
    _micro_kernels(double, bf16, jit.features_limit())


def call_by_rows(e: Emitter, rows: int, vectors: int, arguments: list[Value], bf16: bool) -> None:
    """Call the micro-kernel of a tile."""
    e.b.call(declare_micro(e.module, rows, vectors, e.lanes.double, bf16), arguments)


def blocks_end(e: Emitter, start: Value, end: Value, rows: int) -> Value:
    """Where the blocks of so many rows end between two rows, the larger blocks coming first.

    One or two rows alone would be slow, so the last of the largest blocks is left to smaller
    ones if it leaves no more: 8 rows are 4 and 4 rather than 6 and 2.
    """
    b = e.b
    left = b.sub(end, start)
    count = b.sdiv(left, e.i64(rows))
    if rows == ROW_BLOCKS[0]:
        rest = b.srem(left, e.i64(rows))
        few = b.and_(b.icmp_signed(">", rest, e.i64(0)), b.icmp_signed("<", rest, e.i64(3)))
        fewer = b.and_(few, b.icmp_signed(">", count, e.i64(0)))
        count = b.sub(count, b.zext(fewer, I64))
    return b.add(start, b.mul(count, e.i64(rows)))
