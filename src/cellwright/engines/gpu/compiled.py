"""What emitted kernels are wrapped in to be compiled for a GPU; see also ``interpreted``."""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Numbers that change from call to call: no kernel is compiled again for a batch or a length.
NUMBERS = ("rows", "steps", "first", "stride", "t", "parity", "begins")

function = triton.jit


def kernel(source):
    """A kernel that is launched as ``kernel[grid](...)``."""
    arguments = source.__code__.co_varnames[: source.__code__.co_argcount]
    distances = [each for each in arguments if each.startswith("by_")]
    return triton.jit(source, do_not_specialize=[*NUMBERS, *distances])


@triton.jit
def bf16(x):
    """``x`` rounded to bfloat16."""
    return x.to(tl.bfloat16)
