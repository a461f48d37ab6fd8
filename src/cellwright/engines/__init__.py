"""Engines carry out plans; the reference engine does so with ordinary torch operations."""

from cellwright.engines import transforms
from cellwright.engines.choice import Choice, choose, engine, get, names
from cellwright.engines.operator import run, run_all, run_stack, stacking
from cellwright.engines.protocol import Call, Cotangents, Engine, Gradients, Result, SideBySide
from cellwright.engines.signature import Signature, Slice, parse

__all__ = [
    "Call", "Choice", "Cotangents", "Engine", "Gradients", "Result", "SideBySide", "Signature",
    "Slice", "choose", "engine", "get", "names", "parse", "run", "run_all", "run_stack",
    "stacking", "transforms",
]  # fmt: skip
