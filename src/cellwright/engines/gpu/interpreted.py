"""What emitted kernels are wrapped in to be run by Triton's interpreter; see also ``compiled``."""

# mypy: disable-error-code="no-untyped-def"

import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

kernel = InterpretedFunction


def function(source):
    """The function as it is: inside an interpreted kernel, Triton's operations are numpy's."""
    return source


def bf16(x):
    """``x`` rounded to bfloat16, held in float32.

    numpy has no bfloat16: the interpreter would cut off what is to be rounded, and multiply the
    bits of numbers instead of the numbers.
    """
    x = x.to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 32767 + ((bits >> 16) & 1)) & -65536
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), float("nan"))
