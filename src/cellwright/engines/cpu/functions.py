"""Elementary functions, lane by lane: the same polynomials on every processor.

Each is within 3 units in the last place of the exact value over the whole range, right at zeros,
infinities, NaN and for denormal numbers; sin and cos up to `LARGEST_ANGLE`, and NaN beyond it. No
fast-math: what is written is what is computed.
Polynomials and rational functions are those of S. L. Moshier's Cephes library (exp, log, sin, cos);
exp in double precision is the Taylor series, which is enough on its reduced range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.ops import Emitter, Value

_EXP_SINGLE = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip
_EXP_DOUBLE = tuple(1.0 / math.factorial(k) for k in range(13, 1, -1))
_LOG_SINGLE = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LOG_DOUBLE_P = (
    1.01875663804580931796e-4, 4.97494994976747001425e-1, 4.70579119878881725854e0,
    1.44989225341610930846e1, 1.79368678507819816313e1, 7.70838733755885391666e0,
)  # fmt: skip
_LOG_DOUBLE_Q = (
    1.0, 1.12873587189167450590e1, 4.52279145837532221105e1, 8.29875266912776603211e1,
    7.11544750618563894466e1, 2.31251620126765340583e1,
)  # fmt: skip
_SIN_SINGLE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS_SINGLE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN_DOUBLE = (
    1.58962301576546568060e-10, -2.50507477628578072866e-8, 2.75573136213857245213e-6,
    -1.98412698295895385996e-4, 8.33333333332211858878e-3, -1.66666666666666307295e-1,
)  # fmt: skip
_COS_DOUBLE = (
    -1.13585365213876817300e-11, 2.08757008419747316778e-9, -2.75573141792967388112e-7,
    2.48015872888517045348e-5, -1.38888888888730564116e-3, 4.16666666666665929218e-2,
)  # fmt: skip
# A quarter of a turn in four parts: three so short that their products with the number of
# quarters are exact, and the rest.
_QUARTER_SINGLE = (
    1.5703125, 4.8351287841796875e-4, 3.1385570764541626e-7, 6.07710062827671e-11,
)  # fmt: skip
_QUARTER_DOUBLE = (
    1.5707963267341256, 6.07710049817245e-11, 8.333742917250222e-20, 1.2706558760139879e-29,
)  # fmt: skip

WIDEST = 64
"""Bytes of the vector registers of processors that can scale by powers of two at once."""

LARGEST_ANGLE = {"float32": 8192.0, "float64": 1e6}
"""The largest angle whose sine and cosine are computed, by number format."""


def _polynomial(e: Emitter, x: Value, coefficients: tuple[float, ...]) -> Value:
    """Horner's rule, highest power first."""
    result = e.splat(coefficients[0])
    for each in coefficients[1:]:
        result = e.fma(result, x, e.splat(each))
    return result


def _in_pairs(e: Emitter, x: Value, square: Value, coefficients: tuple[float, ...]) -> Value:
    """The same by pairs, which do not wait for each other; an even number of coefficients."""
    pairs = [
        e.fma(e.splat(first), x, e.splat(second))
        for first, second in zip(coefficients[::2], coefficients[1::2], strict=True)
    ]
    result = pairs[0]
    for each in pairs[1:]:
        result = e.fma(result, square, each)
    return result


def _abs(e: Emitter, x: Value) -> Value:
    return e.vector_call("llvm.fabs", x)


def _less(e: Emitter, a: Value, b: Value) -> Value:
    return e.b.fcmp_ordered("<", a, b)


def exp(e: Emitter, x: Value) -> Value:
    """2^n * polynomial of the rest, n the nearest whole number to x / log 2."""
    high = e.splat(710.0 if e.lanes.double else 89.0)
    return _exp_below(e, e.b.select(_less(e, high, x), high, x))


def _exp_below(e: Emitter, x: Value) -> Value:
    """The same for x that is not so large that its power of two has no number."""
    b, double = e.b, e.lanes.double
    low = e.splat(-746.0 if double else -104.0)
    n, whole, rest = _reduce(e, b.select(_less(e, x, low), low, x))
    square = b.fmul(rest, rest)
    series = _in_pairs(e, rest, square, _EXP_DOUBLE if double else _EXP_SINGLE)
    value = e.fma(square, series, rest)
    value = b.fadd(value, e.splat(1.0))
    if _scales():
        return e.scaled(value, n)
    # In two steps: 2^n itself may be too small or too large for the format.
    half = b.ashr(whole, e.integers(1))
    return b.fmul(b.fmul(value, _power(e, half)), _power(e, b.sub(whole, half)))


def _scales() -> bool:
    """Whether the processor multiplies by a power of two, rounding once as the two steps do."""
    return jit.target(jit.features_limit()).width == WIDEST


def _reduce(e: Emitter, x: Value) -> tuple[Value, Value, Value]:
    """x = n log 2 + rest: n as a number and as an integer, and the rest."""
    n, whole = _nearest_whole(e, x, 1.4426950408889634)
    if e.lanes.double:
        rest = e.fma(n, e.splat(-6.93145751953125e-1), x)
        rest = e.fma(n, e.splat(-1.42860682030941723212e-6), rest)
    else:
        rest = e.fma(n, e.splat(-0.693359375), x)
        rest = e.fma(n, e.splat(2.12194440e-4), rest)
    return n, whole, rest


def _nearest_whole(e: Emitter, x: Value, factor: float) -> tuple[Value, Value]:
    """The whole number nearest to x * factor, as a number and as an integer."""
    b = e.b
    # Adding 1.5 * 2^52 (2^23) leaves it in the lowest bits.
    shifter = e.splat(6755399441055744.0 if e.lanes.double else 12582912.0)
    shifted = e.fma(x, e.splat(factor), shifter)
    whole = b.sub(b.bitcast(shifted, e.lanes.integers), b.bitcast(shifter, e.lanes.integers))
    return b.fsub(shifted, shifter), whole


def _power(e: Emitter, n: Value) -> Value:
    """2^n for exponents of normal numbers."""
    bias, shift = (1023, 52) if e.lanes.double else (127, 23)
    bits = e.b.shl(e.b.add(n, e.integers(bias)), e.integers(shift))
    return e.b.bitcast(bits, e.lanes.vector)


def sigmoid(e: Emitter, x: Value) -> Value:
    """exp(-|x|) / (1 + exp(-|x|)) below zero, 1 / (1 + exp(-|x|)) above."""
    tail = _exp_below(e, e.b.fneg(_abs(e, x)))
    above = e.b.select(_less(e, x, e.splat(0.0)), tail, e.splat(1.0))
    return e.b.fdiv(above, e.b.fadd(tail, e.splat(1.0)))


def tanh(e: Emitter, x: Value) -> Value:
    """(exp(2|x|) - 1) / (exp(2|x|) + 1) by way of expm1, exact near zero; the sign is put back."""
    b = e.b
    a = _abs(e, x)
    growth = expm1_of_double(e, a)
    return e.vector_call("llvm.copysign", b.fdiv(growth, b.fadd(growth, e.splat(2.0))), x)


def expm1_of_double(e: Emitter, a: Value) -> Value:
    """exp(2a) - 1 for a >= 0, up to where tanh(a) is 1: 2^n * (exp(rest) - 1) + (2^n - 1)."""
    b, double = e.b, e.lanes.double
    limit = e.splat(22.0 if double else 10.0)
    a = b.select(_less(e, limit, a), limit, a)
    n, whole, rest = _reduce(e, b.fadd(a, a))
    square = b.fmul(rest, rest)
    series = _in_pairs(e, rest, square, _EXP_DOUBLE if double else _EXP_SINGLE)
    less_one = e.fma(square, series, rest)
    power = e.scaled(e.splat(1.0), n) if _scales() else _power(e, whole)
    return e.fma(power, less_one, b.fsub(power, e.splat(1.0)))


def log(e: Emitter, x: Value) -> Value:
    """Exponent * log 2 + a polynomial of the fraction."""
    b, double = e.b, e.lanes.double
    smallest, lift, bits_up = (2.2250738585072014e-308, 2.0**54, 54) if double else (
        1.1754943508222875e-38, 2.0**25, 25)  # fmt: skip
    denormal = _less(e, x, e.splat(smallest))
    scaled = b.select(denormal, b.fmul(x, e.splat(lift)), x)
    bits = b.bitcast(scaled, e.lanes.integers)
    shift, mask, half, bias = (
        (52, (1 << 52) - 1, 1022 << 52, 1022) if double else (23, (1 << 23) - 1, 126 << 23, 126)
    )
    exponent = b.sub(b.lshr(bits, e.integers(shift)), e.integers(bias))
    exponent = b.sub(exponent, b.select(denormal, e.integers(bits_up), e.integers(0)))
    fraction = b.bitcast(
        b.or_(b.and_(bits, e.integers(mask)), e.integers(half)), e.lanes.vector
    )  # in [0.5, 1)
    small = _less(e, fraction, e.splat(0.70710678118654752440))
    exponent = b.sub(exponent, b.select(small, e.integers(1), e.integers(0)))
    m = b.fsub(b.select(small, b.fadd(fraction, fraction), fraction), e.splat(1.0))
    power = b.sitofp(exponent, e.lanes.vector)
    z = b.fmul(m, m)
    if double:
        top = b.fmul(z, _polynomial(e, m, _LOG_DOUBLE_P))
        y = b.fmul(m, b.fdiv(top, _polynomial(e, m, _LOG_DOUBLE_Q)))
        y = e.fma(power, e.splat(-2.121944400546905827679e-4), y)
    else:
        y = b.fmul(b.fmul(m, z), _polynomial(e, m, _LOG_SINGLE))
        y = e.fma(power, e.splat(-2.12194440e-4), y)
    y = e.fma(z, e.splat(-0.5), y)
    value = e.fma(power, e.splat(0.693359375), b.fadd(m, y))
    infinity, nan = e.splat(math.inf), e.splat(math.nan)
    value = b.select(b.fcmp_ordered("==", x, infinity), infinity, value)
    value = b.select(b.fcmp_ordered("==", x, e.splat(0.0)), e.splat(-math.inf), value)
    return b.select(b.fcmp_unordered("<", x, e.splat(0.0)), nan, value)


def sin(e: Emitter, x: Value) -> Value:
    """Sine of |x|; the sign is put back."""
    value = _quarters_on(e, _abs(e, x), 0)
    top = e.b.and_(e.b.bitcast(x, e.lanes.integers), e.integers(-_top_bit(e)))
    return e.b.bitcast(e.b.xor(e.b.bitcast(value, e.lanes.integers), top), e.lanes.vector)


def cos(e: Emitter, x: Value) -> Value:
    """Sine of |x| and a quarter of a turn."""
    return _quarters_on(e, _abs(e, x), 1)


def _top_bit(e: Emitter) -> int:
    return 1 << (63 if e.lanes.double else 31)


def _quarters_on(e: Emitter, a: Value, quarters: int) -> Value:
    """sin(a + quarters * pi / 2) for a >= 0, of the rest that the nearest quarter leaves."""
    b, double = e.b, e.lanes.double
    n, whole = _nearest_whole(e, a, 0.63661977236758134308)
    rest = a
    for part in _QUARTER_DOUBLE if double else _QUARTER_SINGLE:
        rest = e.fma(n, e.splat(-part), rest)
    z = b.fmul(rest, rest)
    sine = e.fma(b.fmul(rest, z), _polynomial(e, z, _SIN_DOUBLE if double else _SIN_SINGLE), rest)
    cosine = e.fma(z, e.splat(-0.5), e.splat(1.0))
    cosine = e.fma(b.fmul(z, z), _polynomial(e, z, _COS_DOUBLE if double else _COS_SINGLE), cosine)
    whole = b.add(whole, e.integers(quarters))
    odd = b.icmp_signed("==", b.and_(whole, e.integers(1)), e.integers(1))
    value = b.select(odd, cosine, sine)
    behind = b.icmp_signed("==", b.and_(whole, e.integers(2)), e.integers(2))
    value = b.select(behind, b.fneg(value), value)
    known = b.fcmp_ordered("<=", a, e.splat(LARGEST_ANGLE["float64" if double else "float32"]))
    return b.select(known, value, e.splat(math.nan))


def _log1p(e: Emitter, x: Value) -> Value:
    """log(1 + x) for x in [0, 1], with what rounding 1 + x lost put back."""
    one = e.splat(1.0)
    total = e.b.fadd(one, x)
    lost = e.b.fsub(x, e.b.fsub(total, one))
    return e.b.fadd(log(e, total), e.b.fdiv(lost, total))


def softplus(e: Emitter, x: Value) -> Value:
    """max(x, 0) + log1p(exp(-|x|))."""
    positive = e.b.select(_less(e, e.splat(0.0), x), x, e.splat(0.0))
    return e.b.fadd(positive, _log1p(e, _exp_below(e, e.b.fneg(_abs(e, x)))))


def log_sigmoid(e: Emitter, x: Value) -> Value:
    """min(x, 0) - log1p(exp(-|x|))."""
    negative = e.b.select(_less(e, x, e.splat(0.0)), x, e.splat(0.0))
    return e.b.fsub(negative, _log1p(e, _exp_below(e, e.b.fneg(_abs(e, x)))))


def _compare(relation: str) -> Callable[..., Value]:
    return lambda e, a, b: e.b.fcmp_ordered(relation, a, b)


OPERATIONS: Mapping[str, Callable[..., Value]] = {
    "add": lambda e, a, b: e.b.fadd(a, b),
    "sub": lambda e, a, b: e.b.fsub(a, b),
    "mul": lambda e, a, b: e.b.fmul(a, b),
    "div": lambda e, a, b: e.b.fdiv(a, b),
    "neg": lambda e, a: e.b.fneg(a),
    "fma": lambda e, a, b, c: e.fma(a, b, c),
    "square": lambda e, a: e.b.fmul(a, a),
    "sqrt": lambda e, a: e.vector_call("llvm.sqrt", a),
    "rsqrt": lambda e, a: e.b.fdiv(e.splat(1.0), e.vector_call("llvm.sqrt", a)),
    "abs": _abs,
    "maximum": lambda e, a, b: e.vector_call("llvm.maximum", a, b),
    "minimum": lambda e, a, b: e.vector_call("llvm.minimum", a, b),
    "relu": lambda e, a: e.vector_call("llvm.maximum", a, e.splat(0.0)),
    "exp": exp,
    "log": log,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "sin": sin,
    "cos": cos,
    "softplus": softplus,
    "log_sigmoid": log_sigmoid,
    "less": _compare("<"),
    "less_equal": _compare("<="),
    "greater": _compare(">"),
    "greater_equal": _compare(">="),
    "equal": _compare("=="),
    "where": lambda e, c, a, b: e.b.select(c, a, b),
    "expand": lambda e, a: a,
}
"""What each pointwise operator of the table is in LLVM's instructions."""
