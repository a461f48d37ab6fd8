"""cellwright: recurrent cells, written as equations, run at native speed.

What the language needs is loaded at once; the layers, and torch with them, when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cellwright.errors import (
    CellError,
    CellwrightError,
    CheckpointError,
    DataError,
    EngineError,
    InputError,
    UsageError,
)
from cellwright.lang import (
    CellSpec,
    abs,
    cell,
    cos,
    exp,
    layer_norm,
    log,
    log_sigmoid,
    maximum,
    mean,
    minimum,
    next_state,
    relu,
    sigmoid,
    sin,
    softplus,
    sqrt,
    square,
    tanh,
    where,
)

if TYPE_CHECKING:
    from cellwright import cells, nn
    from cellwright.engines import engine
    from cellwright.nn import accelerate, explain

__version__ = "0.1.0"

_LATER = {
    "accelerate": "cellwright.nn",
    "cells": "cellwright.cells",
    "engine": "cellwright.engines",
    "explain": "cellwright.nn",
    "nn": "cellwright.nn",
}

__all__ = [
    "CellError", "CellSpec", "CellwrightError", "CheckpointError", "DataError", "EngineError",
    "InputError", "UsageError", "abs", "accelerate", "cell", "cells", "cos", "engine", "exp",
    "explain", "layer_norm", "log", "log_sigmoid", "maximum", "mean", "minimum", "next_state", "nn",
    "relu", "sigmoid", "sin", "softplus", "sqrt", "square", "tanh", "where",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'cellwright' has no attribute {name!r}")
    module = importlib.import_module(_LATER[name])
    value = module if _LATER[name] == f"cellwright.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
