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

HOPPER = 232_448
"""Bytes of shared memory that one program may have on an H100; taken for the interpreter."""

ROOM = 4 / 3
"""Shared memory that a resident loop may need, as a share of its weights' bytes.

Compiled for an H100, loops with 128 KiB of weights take 1.16 times as much, those with 160 KiB
1.13 times. Which form is faster near the limit has not been measured on a GPU.
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


@lru_cache(maxsize=64)
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have."""
    if device.type != "cuda":
        return HOPPER
    from triton.runtime import driver

    return int(driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


@lru_cache(maxsize=512)
def choose(text: str, dtype: torch.dtype, shared: int) -> Form:
    """The form in which a signature's loops run on tensors of that dtype.

    Args:
        text: of the signature.
        dtype: of the tensors.
        shared: bytes of shared memory that a program may have.
    """
    signature = parse(text)
    loops = [
        programs.forward(signature, keep=True),
        planned.backward(signature, need_x=True).loop,
    ]
    largest = max(weight_bytes(signature, each, dtype) for each in loops)
    heads = min(programs.heads_of(signature, each) for each in loops)
    of = "the recurrent weights of a head" if heads > 1 else "the recurrent weights"
    limit = int(shared / ROOM)
    size = f"{of} take {-(-largest // 1024)} KiB, and {limit // 1024} KiB can stay on chip"
    if largest <= limit:
        return Form(RESIDENT, f"{size}: a program holds them through all steps")
    return Form(STEPS, f"{size}: at each step, programs share the units out")
