"""The language of cells: ``@cell``, the functions, and the traced :class:`CellSpec`."""

from cellwright.lang.functions import (
    abs,
    cos,
    exp,
    layer_norm,
    log,
    log_sigmoid,
    maximum,
    mean,
    minimum,
    relu,
    sigmoid,
    sin,
    softplus,
    sqrt,
    square,
    tanh,
    where,
)
from cellwright.lang.spec import CellSpec, ParameterSpec, StateSpec
from cellwright.lang.trace import cell, next_state

__all__ = [
    "CellSpec", "ParameterSpec", "StateSpec", "abs", "cell", "cos", "exp", "layer_norm", "log",
    "log_sigmoid", "maximum", "mean", "minimum", "next_state", "relu", "sigmoid", "sin", "softplus",
    "sqrt", "square", "tanh", "where",
]  # fmt: skip
