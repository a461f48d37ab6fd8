"""bfloat16 factors of products, two to a word of 32 bits.

A word holds two factors that follow each other along k, the first in its upper half. The
processor's dot product adds to a float32 sum the product of the upper halves, then that of the
lower halves, each by a fused multiply-add that rounds to the nearest, ties to even. So a sum of
such products is one chain in the order of its terms, as everywhere else. Numbers of less than
2**-126 count as zero, be they factors or sums.

Numbers become factors by rounding to the nearest, ties to even. Where k is odd, the last word's
lower half is zero.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.ops import I32, Emitter, Value

PER_WORD = 2


class _Bfloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


_BFLOAT = _Bfloat()
_I16 = ir.IntType(16)


def words(k: int) -> int:
    """Words of ``k`` factors."""
    return -(-k // PER_WORD)


def words_of(e: Emitter, k: Value) -> Value:
    """Words of ``k`` factors, where only the running code knows k."""
    return e.b.sdiv(e.b.add(k, e.i64(PER_WORD - 1)), e.i64(PER_WORD))


def is_available() -> bool:
    """Whether the processor has the dot product, and may use it."""
    return jit.target(jit.features_limit()).bf16


def dot(e: Emitter, a: Value, b: Value, total: Value) -> Value:
    """``total`` + the products of the words' halves, lane by lane."""
    kind = ir.VectorType(_BFLOAT, e.lanes.count * PER_WORD)
    factors = [e.b.bitcast(each, kind) for each in (a, b)]
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    return e.intrinsic(name, e.lanes.vector, [total, *factors])


def joined(e: Emitter, first: Value, second: Value) -> Value:
    """Words of two vectors' numbers, lane by lane; or the one word of two numbers."""
    b, kind = e.b, first.type

    def like(element: ir.Type) -> ir.Type:
        is_vector = isinstance(kind, ir.VectorType)
        return ir.VectorType(element, kind.count) if is_vector else element

    def rounded(numbers: Value) -> Value:
        halves = b.bitcast(b.fptrunc(numbers, like(_BFLOAT)), like(_I16))
        return b.zext(halves, like(I32))

    sixteen = ir.Constant(like(I32), [16] * kind.count if isinstance(kind, ir.VectorType) else 16)
    upper = b.shl(rounded(first), sixteen)
    return b.bitcast(b.or_(upper, rounded(second)), kind)


def along(e: Emitter, low: Value, high: Value) -> Value:
    """Words of the numbers of two vectors that follow each other in memory."""
    kind = ir.VectorType(I32, e.lanes.count)
    first, second = (
        e.b.shuffle_vector(
            low, high, ir.Constant(kind, [PER_WORD * lane + half for lane in range(kind.count)])
        )
        for half in range(PER_WORD)
    )
    return joined(e, first, second)


def across(e: Emitter, word: Value, count: Value, load: Callable[[Value], Value]) -> Value:
    """The words number ``word`` of some chains of ``count`` terms.

    Args:
        e: the emitter.
        word: its number in the chains.
        count: of the terms of each.
        load: yields the terms of a number, one of each chain.
    """
    b = e.b
    first = b.mul(word, e.i64(PER_WORD))
    second = b.add(first, e.i64(1))
    there = b.icmp_signed("<", second, count)
    head = load(first)
    tail = load(b.select(there, second, first))
    return joined(e, head, b.select(there, tail, ir.Constant(head.type, None)))
