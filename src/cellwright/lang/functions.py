"""The functions that equations are written with."""

from __future__ import annotations

from typing import Any, overload

from cellwright.lang.symbols import Symbol, as_symbol, fail, pointwise, reduction


def sigmoid(v: Any) -> Symbol:
    r"""Logistic function, 1 / (1 + exp(-v)), in (0, 1)."""
    return pointwise("sigmoid", v)


def tanh(v: Any) -> Symbol:
    """Hyperbolic tangent, in (-1, 1)."""
    return pointwise("tanh", v)


def relu(v: Any) -> Symbol:
    """max(v, 0); its derivative at 0 is 0."""
    return pointwise("relu", v)


def exp(v: Any) -> Symbol:
    """Exponential function."""
    return pointwise("exp", v)


def log(v: Any) -> Symbol:
    """Natural logarithm."""
    return pointwise("log", v)


def sin(v: Any) -> Symbol:
    """Sine of an angle in radians.

    Compiled code knows it for angles up to 8,192 in float32 and 1,000,000 in float64; beyond,
    either way from zero, the result is NaN.
    """
    return pointwise("sin", v)


def cos(v: Any) -> Symbol:
    """Cosine of an angle in radians; for which angles, see `sin`."""
    return pointwise("cos", v)


def log_sigmoid(v: Any) -> Symbol:
    """log(sigmoid(v)), exact for large negative ``v`` too."""
    return pointwise("log_sigmoid", v)


def softplus(v: Any) -> Symbol:
    """log(1 + exp(v)), without overflow."""
    return pointwise("softplus", v)


def sqrt(v: Any) -> Symbol:
    """Square root."""
    return pointwise("sqrt", v)


def abs(v: Any) -> Symbol:
    """Absolute value; its derivative at 0 is 0."""
    return pointwise("abs", v)


def square(v: Any) -> Symbol:
    """v * v."""
    return pointwise("square", v)


def maximum(a: Any, b: Any) -> Symbol:
    """The greater of two values, unit by unit; where they tie, each gets half the gradient."""
    return pointwise("maximum", a, b)


def minimum(a: Any, b: Any) -> Symbol:
    """The lesser of two values, unit by unit; where they tie, each gets half the gradient."""
    return pointwise("minimum", a, b)


def where(condition: Any, chosen: Any, otherwise: Any) -> Symbol:
    """``chosen`` where the condition (such as ``a > b``) holds, else ``otherwise``."""
    return pointwise("where", condition, chosen, otherwise)


def mean(v: Any) -> Symbol:
    """Mean over the units of a row: one number, which broadcasts."""
    return reduction("mean", v)


@overload
def layer_norm(v: Any, /, *, eps: float = ...) -> Symbol: ...
@overload
def layer_norm(v: Any, w: Any, /, *more: Any, eps: float = ...) -> tuple[Symbol, ...]: ...
def layer_norm(*vectors: Any, eps: float = 1e-5) -> Symbol | tuple[Symbol, ...]:
    """Normalise over units: (v - mean) / sqrt(variance + eps), without gain and shift.

    Several vectors are normalised together, as if they were one long vector, and come back
    as a tuple: the four gates of a layer-normalised LSTM share their statistics that way.
    Source: Ba, Kiros & Hinton 2016.
    """
    if not vectors:
        fail("layer_norm needs a vector")
    operands = tuple(as_symbol(each) for each in vectors)
    size = operands[0].size
    for each in operands:
        if each.boolean or each.size.is_one:
            fail("layer_norm needs vectors, not single numbers or comparisons")
        if not size.join(each.size):
            fail(f"layer_norm of vectors of unlike sizes: {size} and {each.size}")
    if not (isinstance(eps, (int, float)) and eps > 0):
        fail(f"layer_norm's eps has to be a positive number, not {eps!r}")
    results = tuple(
        Symbol("layer_norm", operands, size=size, index=index, eps=float(eps))
        for index in range(len(operands))
    )
    return results[0] if len(results) == 1 else results


__all__ = [
    "abs", "cos", "exp", "layer_norm", "log", "log_sigmoid", "maximum", "mean", "minimum", "relu",
    "sigmoid", "sin", "softplus", "sqrt", "square", "tanh", "where",
]  # fmt: skip
