"""What the recurrences of a layer are to an engine: built once, and kept by the layer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cellwright.engines import Signature
from cellwright.nn import layout
from cellwright.plan import StepOptions, build

if TYPE_CHECKING:
    from cellwright.nn.stack import RecurrentStack

PREFIX = "_signature_"
"""First part of the attributes in which a layer keeps its signatures."""


def attribute(layer: int, options: StepOptions) -> str:
    """A name for the attribute that holds a layer's signature under these options."""
    return f"{PREFIX}{layer}_{hashlib.sha256(repr(options).encode()).hexdigest()[:16]}"


def make(stack: RecurrentStack, layer: int, options: StepOptions) -> Signature:
    """The signature of one layer of a stack under these options."""
    sizes, stored = stack.layer_sizes(layer), stack.stored()
    plan = build(stack.cell, options)
    rows = {p.name: p.shape(sizes)[0] for each in stored for p in each.members}
    found = Signature(
        stack.cell,
        options,
        tuple(sorted(sizes.items())),
        layout.slices(stored, plan.parameters, rows),
        stack.spatial,
    )
    for evaluated_once in ("plan", "text", "size"):
        getattr(found, evaluated_once)
    return found
