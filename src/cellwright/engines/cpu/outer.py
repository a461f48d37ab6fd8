"""Products over all steps and rows: the gradients of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llvmlite import ir

from cellwright.engines.cpu import bfloat
from cellwright.engines.cpu.ops import I32, I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.product import LINE, ROW_BLOCKS, VECTORS, blocks_end, call_by_rows

K_BLOCK = 192
"""Elements of A and of B, along k, that are worked on together: a panel of B, and the lines that a
tile reads of A, then fit the processor's first cache."""

M_BLOCK = 1024
"""Columns of A that meet the panels of B one after the other: so much of A stays in a processor's
own cache meanwhile, and a panel is packed for enough of them."""

LEFT_ROWS = 96  # of A that are packed together, a multiple of the tallest tile
PACK_ROWS = 16
"""Rows of C whose products take about as long as packing B for them."""

HEAD = ("jobs", "places", "packed")
"""Arguments before those of the jobs: their number, that of all of their places, and the address
of :func:`left_elements` elements of memory."""

OUTER_ARGUMENTS = (
    "m", "n", "k", "a", "a_k", "b", "b_k", "c", "c_row", "other", "other_from", "before",
    "adds",
)  # fmt: skip


def emit_outer(double: bool, bf16: bool = False) -> str:
    """``run``: for each of some jobs, C[m][n] += sum over k of A[k][m] * B[k][n].

    Where a job does not add, its sums begin at zero, whatever lies in C.

    The gradients of matrices: k runs over steps and rows, from the last to the first if the
    strides are negative. B is packed here, block by block, into panels of 64 columns with zeros
    behind the last. Where B holds states before each step, the rows from ``other_from`` on are the
    initial state, at ``other``. The arguments are ``HEAD``, then ``OUTER_ARGUMENTS`` of each job.

    The threads share out the places of all jobs in one row, cut between rows of C: a thread has
    few jobs, and packs B for those alone. A job has so many ``places``, and ``before`` it are
    those of others.

    For factors in bfloat16 A is packed too, for k has to come in pairs.
    """
    lanes = Lanes(double)
    module = ir.Module("cellwright_outer")
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])
    function = ir.Function(module, kind, "run")
    arguments, _, _, share, shares = function.args
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    b = e.b
    tile = e.scratch(max(ROW_BLOCKS) * VECTORS * lanes.count)
    panel = e.scratch(K_BLOCK * VECTORS * lanes.count)

    def argument(place: Value) -> Value:
        return e.load(b.gep(arguments, [place], source_etype=I64), I64, 8)

    jobs, count, packed = (argument(e.i64(place)) for place in range(len(HEAD)))
    own = e.at(b.inttoptr(packed, POINTER), b.mul(share, e.i64(left_elements(1, True))))
    first = b.sdiv(b.mul(share, count), shares)
    end = b.sdiv(b.mul(b.add(share, e.i64(1)), count), shares)
    with e.loop(e.i64(0), jobs) as job:
        start = b.add(e.i64(len(HEAD)), b.mul(job, e.i64(len(OUTER_ARGUMENTS))))
        given = {
            name: argument(b.add(start, e.i64(place))) for place, name in enumerate(OUTER_ARGUMENTS)
        }
        m_from, m_to = (_row_of(e, given, place) for place in (first, end))
        _emit_job(e, given, m_from, m_to, own, tile, panel, bf16)
    b.ret_void()
    return str(module)


def places(m: int, n: int) -> int:
    """Places of a job: for each of its sums, and for packing, where it begins."""
    return (m + PACK_ROWS) * n


def left_elements(team: int, bf16: bool) -> int:
    """Elements of memory for packed parts of A; where it is not packed, none."""
    return (M_BLOCK + LEFT_ROWS) * K_BLOCK * team if bf16 else 0


def _row_of(e: Emitter, given: dict[str, Value], place: Value) -> Value:
    """The row of C that a place among those of all jobs is in; only the end is within a tile."""
    b, tallest = e.b, e.i64(ROW_BLOCKS[0])
    row = b.sub(b.sdiv(b.sub(place, given["before"]), given["n"]), e.i64(PACK_ROWS))
    row = b.select(b.icmp_signed("<", row, e.i64(0)), e.i64(0), row)
    inside = b.icmp_signed("<", row, given["m"])
    return b.select(inside, b.mul(b.sdiv(row, tallest), tallest), given["m"])


def _emit_job(
    e: Emitter, given: dict[str, Value], m_from: Value, m_to: Value, packed: Value, tile: Value,
    panel: Value, bf16: bool,
) -> None:  # fmt: skip
    b = e.b
    k_count, a_k = given["k"], given["a_k"]
    a = b.inttoptr(given["a"], POINTER)
    terms = K_BLOCK * bfloat.PER_WORD if bf16 else K_BLOCK
    with e.loop(e.i64(0), k_count, terms) as k_from, e.loop(m_from, m_to, M_BLOCK) as m:
        k_here = _least(b, b.sub(k_count, k_from), e.i64(terms))
        m_stop = _least(b, m_to, b.add(m, e.i64(M_BLOCK)))
        left = e.at(a, b.mul(k_from, a_k))
        if bf16:
            _pack_left(e, left, a_k, m, m_stop, k_here, packed)
            left, a_k = packed, e.i64(LEFT_ROWS)
        _emit_block(e, given, (m, m_stop), (k_from, k_here), left, a_k, tile, panel, bf16)


def _emit_block(
    e: Emitter, given: dict[str, Value], m: tuple[Value, Value], k: tuple[Value, Value],
    left: Value, left_k: Value, tile: Value, panel: Value, bf16: bool,
) -> None:  # fmt: skip
    """All columns of C for some of its rows, ``m``, and some terms ``k``, panel by panel."""
    b, lanes = e.b, e.lanes
    (m_from, m_to), (k_from, k_here) = m, k
    n_count, c_row = given["n"], given["c_row"]
    elements = bfloat.words_of(e, k_here) if bf16 else k_here
    later = b.icmp_signed("!=", b.or_(k_from, given["adds"]), e.i64(0))
    done: Value = e.i64(0)
    for vectors, end in _panels(e, n_count):
        with e.loop(done, end, vectors * lanes.count) as n_from:
            columns = b.sub(n_count, n_from)
            _pack_right(e, given, k_from, k_here, elements, n_from, columns, vectors, panel, bf16)
            product = partial(_rows_of_tiles, e, n_from=n_from, columns=columns,
                              elements=elements, left_k=left_k, c=b.inttoptr(given["c"], POINTER),
                              c_row=c_row, panel=panel, tile=tile, vectors=vectors,
                              again=b.zext(later, I32), bf16=bf16)  # fmt: skip
            if bf16:
                with e.loop(m_from, m_to, LEFT_ROWS) as block:
                    stop = _least(b, m_to, b.add(block, e.i64(LEFT_ROWS)))
                    begin = b.mul(b.sub(block, m_from), e.i64(K_BLOCK))
                    product(block, stop, left=e.at(left, b.sub(begin, block)))
            else:
                product(m_from, m_to, left=left)
        done = end


def _panels(e: Emitter, columns: Value) -> Iterator[tuple[int, Value]]:
    """How many vectors wide panels are, and up to which column, from the first.

    Few columns left over would keep the processor waiting for its sums: nine vectors are three
    panels of three rather than two of four and one.
    """
    b, count = e.b, e.lanes.count
    vectors = b.sdiv(b.add(columns, e.i64(count - 1)), e.i64(count))
    threes = b.and_(b.sub(e.i64(0), vectors), e.i64(3))  # what makes a multiple of four
    fours = b.sdiv(b.sub(vectors, b.mul(threes, e.i64(3))), e.i64(4))
    few = b.icmp_signed("<", vectors, b.mul(threes, e.i64(3)))
    fours = b.select(few, e.i64(0), fours)
    threes = b.select(few, b.sdiv(vectors, e.i64(3)), threes)
    wide = b.mul(fours, e.i64(4))
    narrow = b.add(wide, b.mul(threes, e.i64(3)))
    yield 4, b.mul(wide, e.i64(count))
    yield 3, b.mul(narrow, e.i64(count))
    yield 2, b.mul(vectors, e.i64(count))


def _pack_right(
    e: Emitter, given: dict[str, Value], k_from: Value, k_here: Value, elements: Value,
    n_from: Value, columns: Value, vectors: int, panel: Value, bf16: bool,
) -> None:  # fmt: skip
    """A panel of B, or its words, with zeros behind the last column.

    What will be packed next is brought near: the columns that follow, or the first ones of the
    terms that follow.
    """
    b, lanes = e.b, e.lanes
    per_word = bfloat.PER_WORD if bf16 else 1
    following = b.add(n_from, e.i64(vectors * lanes.count))
    more = b.icmp_signed("<", following, given["n"])
    with e.loop(e.i64(0), elements) as place:
        first = b.add(k_from, b.mul(place, e.i64(per_word)))
        rows = [b.add(first, e.i64(number)) for number in range(per_word)]
        with b.if_else(more) as (beside, below):
            with beside:
                for row in rows:
                    _prefetch(e, e.at(_right_row(e, given, row), following), vectors)
            with below:
                for row in rows:
                    term = b.add(row, e.i64(per_word * K_BLOCK))
                    _prefetch(e, _right_row(e, given, term), VECTORS)
        for v in range(vectors):
            start = e.i64(v * lanes.count)
            mask = e.lanes_below(b.sub(columns, start))

            def right(k: Value, start: Value = start, mask: Value = mask) -> Value:
                row = _right_row(e, given, b.add(k_from, k))
                return e.masked_load(e.at(row, b.add(n_from, start)), mask)

            value = bfloat.across(e, place, k_here, right) if bf16 else right(place)
            into = b.add(b.mul(place, e.i64(vectors * lanes.count)), start)
            e.store(value, e.at(panel, into))


def _prefetch(e: Emitter, place: Value, vectors: int) -> None:
    """Bring some vectors near."""
    for line in range(vectors * e.lanes.count * e.lanes.bytes // LINE):
        e.prefetch(e.at(place, e.i64(line * LINE // e.lanes.bytes)))


def _least(b: ir.IRBuilder, one: Value, other: Value) -> Value:
    return b.select(b.icmp_signed("<", one, other), one, other)


def _right_row(e: Emitter, given: dict[str, Value], k: Value) -> Value:
    """Address of row ``k`` of B, which may be one of the initial state."""
    b = e.b
    initial = b.icmp_signed(">=", k, given["other_from"])
    row = b.select(initial, b.sub(k, given["other_from"]), k)
    other, rows = (b.inttoptr(given[name], POINTER) for name in ("other", "b"))
    return e.at(b.select(initial, other, rows), b.mul(row, given["b_k"]))


def _pack_left(
    e: Emitter, left: Value, a_k: Value, m_from: Value, m_to: Value, k_here: Value, packed: Value
) -> None:
    """Words of a thread's part of A, in blocks of ``LEFT_ROWS`` columns."""
    b, lanes = e.b, e.lanes
    words = bfloat.words_of(e, k_here)
    with e.loop(e.i64(0), words) as word, e.loop(m_from, m_to, LEFT_ROWS) as block:
        begin = b.mul(b.sub(block, m_from), e.i64(K_BLOCK))
        into = e.at(packed, b.add(begin, b.mul(word, e.i64(LEFT_ROWS))))
        with e.loop(e.i64(0), e.i64(LEFT_ROWS), lanes.count) as column:
            m = b.add(block, column)
            mask = e.lanes_below(b.sub(m_to, m))

            def terms(k: Value, m: Value = m, mask: Value = mask) -> Value:
                return e.masked_load(e.at(left, b.add(b.mul(k, a_k), m)), mask)

            e.store(bfloat.across(e, word, k_here, terms), e.at(into, column))


def _rows_of_tiles(
    e: Emitter, m_from: Value, m_to: Value, *, n_from: Value, columns: Value, elements: Value,
    left: Value, left_k: Value, c: Value, c_row: Value, panel: Value, tile: Value, vectors: int,
    again: Value, bf16: bool,
) -> None:  # fmt: skip
    """All rows m of one panel, in blocks of six and what is left; ``again`` adds to C."""
    b, lanes = e.b, e.lanes
    width = vectors * lanes.count
    start: Value = m_from
    for rows in ROW_BLOCKS:
        stop = blocks_end(e, start, m_to, rows)
        with e.loop(start, stop, rows) as m:
            rows_left = e.at(left, m)
            # A is read across its rows, which no processor foresees: the next line of each.
            ahead = e.at(rows_left, e.i64(LINE // lanes.bytes))
            target = e.at(c, b.add(b.mul(m, c_row), n_from))
            whole = b.icmp_signed(">=", columns, e.i64(width))
            with b.if_else(whole) as (inside, edge):
                with inside:
                    call_by_rows(e, rows, vectors, [
                        elements, rows_left, e.i64(1), left_k, panel, e.i64(width),
                        target, c_row, again, ahead, left_k,
                    ], bf16)  # fmt: skip
                with edge:
                    _edge_tile(e, rows, vectors, columns, [
                        elements, rows_left, e.i64(1), left_k, panel, e.i64(width),
                        tile, e.i64(width), again, ahead, left_k,
                    ], target, c_row, bf16)  # fmt: skip
        start = stop


def _edge_tile(
    e: Emitter, rows: int, widest: int, columns: Value, arguments: list[Value], target: Value,
    c_row: Value, bf16: bool,
) -> None:  # fmt: skip
    """The last panel: through a tile in memory, only as many vectors as there are columns."""
    b, lanes = e.b, e.lanes
    tile, width = arguments[6], widest * lanes.count
    for r in range(rows):
        for v in range(widest):
            mask = e.lanes_below(b.sub(columns, e.i64(v * lanes.count)))
            source = e.at(target, b.add(b.mul(c_row, e.i64(r)), e.i64(v * lanes.count)))
            e.store(e.masked_load(source, mask), e.at(tile, e.i64(r * width + v * lanes.count)))
    for vectors in range(1, widest + 1):
        fits = b.icmp_signed("<=", columns, e.i64(vectors * lanes.count))
        needed = b.icmp_signed(">", columns, e.i64((vectors - 1) * lanes.count))
        with b.if_then(b.and_(fits, needed)):
            call_by_rows(e, rows, vectors, arguments, bf16)
    for r in range(rows):
        for v in range(widest):
            mask = e.lanes_below(b.sub(columns, e.i64(v * lanes.count)))
            value = e.load(e.at(tile, e.i64(r * width + v * lanes.count)))
            place = e.at(target, b.add(b.mul(c_row, e.i64(r)), e.i64(v * lanes.count)))
            e.masked_store(value, place, mask)
