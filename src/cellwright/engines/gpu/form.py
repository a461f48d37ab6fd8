"""The choice between the two forms of a loop, made from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from cellwright.engines.cpu import programs as planned
from cellwright.engines.cpu.program import Program
from cellwright.engines.gpu import programs
from cellwright.engines.gpu.frame import padded
from cellwright.engines.signature import Signature, parse
from cellwright.ir import Node

RESIDENT, STEPS = "resident", "steps"
FORMS = (RESIDENT, STEPS)

RESIDENT_BYTES = 128 * 1024
"""Weights of one head, with their padding, that a program may hold on chip.

A multiprocessor of the generations since 2020 has 164 KiB or more of shared memory and 256 KiB of
registers. The figure is an estimate: it has not been measured on a GPU.
"""


@dataclass(frozen=True)
class Form:
    """A form and the reason why it was chosen."""

    name: str
    reason: str


def weight_bytes(signature: Signature, program: Program, dtype: torch.dtype) -> int:
    """Bytes of the matrices that a program of one head multiplies with, padded."""
    heads = programs.heads_of(signature, program)
    width = 2 if signature.options.precision == "bf16" else dtype.itemsize
    products: dict[tuple[str, Node], int] = {}
    for stage in program.stages:
        for each in stage.products:
            sides = (program.sizes[n.size] // heads for n in (each, each.inputs[1]))
            rows, columns = map(padded, sides)
            products[each.op, each.inputs[0]] = rows * columns * width
    return sum(products.values())


@lru_cache(maxsize=512)
def choose(text: str, dtype: torch.dtype) -> Form:
    """The form in which a signature's loops run on tensors of that dtype."""
    signature = parse(text)
    loops = [
        programs.forward(signature, keep=True),
        planned.backward(signature, need_x=True).loop,
    ]
    largest = max(weight_bytes(signature, each, dtype) for each in loops)
    heads = min(programs.heads_of(signature, each) for each in loops)
    of = "a head's recurrent weights" if heads > 1 else "the recurrent weights"
    size = f"{of} take {largest / 1024:,.0f} KiB on chip"
    if largest <= RESIDENT_BYTES:
        return Form(RESIDENT, f"{size}, so a program holds them through all steps")
    limit = f"more than {RESIDENT_BYTES // 1024} KiB"
    return Form(STEPS, f"{size}, {limit}, so each step shares the units out among programs")
