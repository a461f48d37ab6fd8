"""Register-blocked matrix products: the kernels under every ``@``.

One micro-kernel computes a tile of ``rows`` x ``vectors`` sums that stay in registers:

    for k in range(K):
        for each vector v: b[v] = B[k][v]
        for each row r:    c[r][:] = fma(broadcast A[r][k], b[:], c[r][:])

A single row is too little to keep a processor busy; its kernel takes two panels of weights, and the
rows of its tile are the row's results for the one and the other.

Every sum is one chain of fused multiply-adds over k = 0, 1, 2, ..., begun at zero or at what the
tile held, so its bits depend neither on the tile's shape nor on who computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from llvmlite import ir

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.ops import I32, I64, POINTER, Emitter, Lanes, Value

ROW_BLOCKS = (6, 4, 3, 2, 1)
VECTORS = 4  # of a panel: 64 columns of float32
K_BLOCK = 512
LINE = 64  # bytes of memory that are fetched together

MICRO_ARGUMENTS = (I64, POINTER, I64, I64, POINTER, I64, POINTER, I64, I32, POINTER)
"""K, A, A's row stride, A's k stride, B, B's k stride, C, C's row stride, accumulate, ahead.

From ``ahead`` on, one line of memory a k is brought near: what will be multiplied next.
"""


def micro_name(rows: int, vectors: int, double: bool) -> str:
    """Name of the micro-kernel for a tile, on the processor that code is being made for."""
    return f"cellwright_micro{_variant(double)}_{rows}x{vectors}"


def declare_micro(module: ir.Module, rows: int, vectors: int, double: bool) -> ir.Function:
    """The micro-kernel as an external function of ``module``."""
    name = micro_name(rows, vectors, double)
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(ir.VoidType(), MICRO_ARGUMENTS), name)
    return found


Operands = Iterator[tuple[int, Value, list[Value]]]
"""Row of the tile, the factor for it, and the vectors that it multiplies."""

PAIR_ARGUMENTS = (I64, POINTER, POINTER, POINTER, POINTER, I64, I32)
"""K, A, first B, second B, C, C's row stride, accumulate."""


def pair_name(vectors: int, double: bool) -> str:
    """Name of the kernel for one row and two panels."""
    return f"cellwright_pair{_variant(double)}_{vectors}"


def _variant(double: bool) -> str:
    limit = jit.features_limit()
    return f"_{limit}" * bool(limit) + ("_f64" if double else "_f32")


def declare_pair(module: ir.Module, vectors: int, double: bool) -> ir.Function:
    """The kernel for one row and two panels as an external function of ``module``."""
    name = pair_name(vectors, double)
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(ir.VoidType(), PAIR_ARGUMENTS), name)
    return found


def _emit_micro(module: ir.Module, rows: int, vectors: int, lanes: Lanes) -> None:
    function = declare_micro(module, rows, vectors, lanes.double)
    k_count, a, a_row, a_k, b_base, b_k, c, c_row, accumulate, ahead = function.args
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    b = e.b

    def operands(k: Value) -> Operands:
        row, column = b.mul(k, b_k), b.mul(k, a_k)
        e.prefetch(e.at(ahead, b.mul(k, e.i64(LINE // lanes.bytes))))
        loaded = [e.load(e.at(b_base, b.add(row, e.i64(v * lanes.count)))) for v in range(vectors)]
        for r in range(rows):
            address = e.at(a, b.add(b.mul(a_row, e.i64(r)), column))
            yield r, e.broadcast(e.load(address, lanes.element)), loaded

    _emit_tile(e, function, rows, vectors, k_count, c, c_row, accumulate, operands)


def _emit_pair(module: ir.Module, vectors: int, lanes: Lanes) -> None:
    function = declare_pair(module, vectors, lanes.double)
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

    _emit_tile(e, function, 2, vectors, k_count, c, c_row, accumulate, operands)


def _emit_tile(
    e: Emitter, function: ir.Function, rows: int, vectors: int, k_count: Value, c: Value,
    c_row: Value, accumulate: Value, operands: Callable[[Value], Operands],
) -> None:  # fmt: skip
    """The loop over k with a tile of sums in registers."""
    b, lanes, entry = e.b, e.lanes, e.b.block
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
            sums[r][v].add_incoming(e.fma(factor, loaded[v], sums[r][v]), body)
    k.add_incoming(b.add(k, e.i64(1)), body)
    b.branch(head)
    b.position_at_end(end)
    for r in range(rows):
        for v in range(vectors):
            e.store(sums[r][v], tile[r][v])
    b.ret_void()


@lru_cache(maxsize=8)
def _micro_kernels(double: bool, limit: str) -> jit.Code:
    module = ir.Module("cellwright_micro")
    for rows in ROW_BLOCKS:
        for vectors in range(1, VECTORS + 1):
            _emit_micro(module, rows, vectors, Lanes(double))
    for vectors in range(1, VECTORS + 1):
        _emit_pair(module, vectors, Lanes(double))
    code = jit.compile_ir(str(module), limit)
    made = [each.name for each in module.functions if not each.is_declaration]
    jit.bind_symbols({name: code.address(name) for name in made})
    return code


def provide(double: bool) -> None:
    """Compile the micro-kernels, if need be, so that other modules can call them by name."""
    _micro_kernels(double, jit.features_limit())


def call_by_rows(e: Emitter, rows: int, vectors: int, arguments: list[Value]) -> None:
    """Call the micro-kernel of a tile."""
    e.b.call(declare_micro(e.module, rows, vectors, e.lanes.double), arguments)


OUTER_ARGUMENTS = (
    "m", "n", "k", "a", "a_k", "b", "b_k", "c", "c_row", "other", "other_from", "other_to", "shift"
)  # fmt: skip


def emit_outer(double: bool) -> str:
    """``run``: for each of some jobs, C[m][n] += sum over k of A[k][m] * B[k][n].

    The gradients of matrices: k runs over all steps and rows. B is packed here, block by block,
    into panels of 64 columns with zeros behind the last. Where B holds states before each step,
    the rows ``other_from`` to ``other_to`` are the initial state, at ``other``, and the rest of B
    is shifted by ``shift`` rows. The arguments are the number of jobs, then ``OUTER_ARGUMENTS`` of
    each; a thread takes its share of every job's rows.
    """
    lanes = Lanes(double)
    module = ir.Module("cellwright_outer")
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])
    function = ir.Function(module, kind, "run")
    arguments, _, _, share, shares = function.args
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    tile = e.scratch(max(ROW_BLOCKS) * VECTORS * lanes.count)
    panel = e.scratch(K_BLOCK * VECTORS * lanes.count)
    jobs = e.load(arguments, I64, 8)
    with e.loop(e.i64(0), jobs) as job:
        start = e.b.add(e.i64(1), e.b.mul(job, e.i64(len(OUTER_ARGUMENTS))))
        given = {
            name: e.load(
                e.b.gep(arguments, [e.b.add(start, e.i64(place))], source_etype=I64), I64, 8
            )
            for place, name in enumerate(OUTER_ARGUMENTS)
        }
        _emit_job(e, given, share, shares, tile, panel)
    e.b.ret_void()
    return str(module)


def _emit_job(
    e: Emitter, given: dict[str, Value], share: Value, shares: Value, tile: Value, panel: Value
) -> None:
    b, lanes = e.b, e.lanes
    n_count, k_count, a_k, b_k, c_row = (given[name] for name in ("n", "k", "a_k", "b_k", "c_row"))
    a, b_base, c, other = (b.inttoptr(given[name], POINTER) for name in ("a", "b", "c", "other"))
    m_from = b.sdiv(b.mul(share, given["m"]), shares)
    m_to = b.sdiv(b.mul(b.add(share, e.i64(1)), given["m"]), shares)
    again = ir.Constant(I32, 1)
    width = e.i64(VECTORS * lanes.count)
    with e.loop(e.i64(0), k_count, K_BLOCK) as k_from:
        left = b.sub(k_count, k_from)
        k_here = b.select(b.icmp_signed("<", left, e.i64(K_BLOCK)), left, e.i64(K_BLOCK))
        with e.loop(e.i64(0), n_count, width) as n_from:
            columns = b.sub(n_count, n_from)
            with e.loop(e.i64(0), k_here) as k_inside:
                k = b.add(k_from, k_inside)
                after = b.icmp_signed(">=", k, given["other_from"])
                initial = b.and_(after, b.icmp_signed("<", k, given["other_to"]))
                row = b.select(initial, b.sub(k, given["other_from"]), b.add(k, given["shift"]))
                rows = b.select(initial, other, b_base)
                source = e.at(rows, b.add(b.mul(row, b_k), n_from))
                into = e.at(panel, b.mul(k_inside, width))
                for v in range(VECTORS):
                    start = e.i64(v * lanes.count)
                    mask = e.lanes_below(b.sub(columns, start))
                    e.store(e.masked_load(e.at(source, start), mask), e.at(into, start))
            _rows_of_tiles(
                e,
                m_from,
                m_to,
                n_from,
                columns,
                k_from,
                k_here,
                a,
                a_k,
                c,
                c_row,
                again,
                panel,
                tile,
            )


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


def _rows_of_tiles(
    e: Emitter, m_from: Value, m_to: Value, n_from: Value, columns: Value, k_from: Value,
    k_here: Value, a: Value, a_k: Value, c: Value, c_row: Value, again: Value, panel: Value,
    tile: Value,
) -> None:  # fmt: skip
    """All rows m of one panel, in blocks of six and what is left."""
    b, lanes = e.b, e.lanes
    width = VECTORS * lanes.count
    start: Value = m_from
    for rows in ROW_BLOCKS:
        stop = blocks_end(e, start, m_to, rows)
        with e.loop(start, stop, rows) as m:
            left = e.at(a, b.add(b.mul(k_from, a_k), m))
            target = e.at(c, b.add(b.mul(m, c_row), n_from))
            whole = b.icmp_signed(">=", columns, e.i64(width))
            with b.if_else(whole) as (inside, edge):
                with inside:
                    call_by_rows(e, rows, VECTORS, [
                        k_here, left, e.i64(1), a_k, panel, e.i64(width),
                        target, c_row, again, panel,
                    ])  # fmt: skip
                with edge:
                    _edge_tile(e, rows, columns, [
                        k_here, left, e.i64(1), a_k, panel, e.i64(width),
                        tile, e.i64(width), again, panel,
                    ], target, c_row)  # fmt: skip
        start = stop


def _edge_tile(
    e: Emitter, rows: int, columns: Value, arguments: list[Value], target: Value, c_row: Value
) -> None:
    """The last panel: through a tile in memory, only as many vectors as there are columns."""
    b, lanes = e.b, e.lanes
    tile, width = arguments[6], VECTORS * lanes.count
    for r in range(rows):
        for v in range(VECTORS):
            mask = e.lanes_below(b.sub(columns, e.i64(v * lanes.count)))
            source = e.at(target, b.add(b.mul(c_row, e.i64(r)), e.i64(v * lanes.count)))
            e.store(e.masked_load(source, mask), e.at(tile, e.i64(r * width + v * lanes.count)))
    for vectors in range(1, VECTORS + 1):
        fits = b.icmp_signed("<=", columns, e.i64(vectors * lanes.count))
        needed = b.icmp_signed(">", columns, e.i64((vectors - 1) * lanes.count))
        with b.if_then(b.and_(fits, needed)):
            call_by_rows(e, rows, vectors, arguments)
    for r in range(rows):
        for v in range(VECTORS):
            mask = e.lanes_below(b.sub(columns, e.i64(v * lanes.count)))
            value = e.load(e.at(tile, e.i64(r * width + v * lanes.count)))
            place = e.at(target, b.add(b.mul(c_row, e.i64(r)), e.i64(v * lanes.count)))
            e.masked_store(value, place, mask)
