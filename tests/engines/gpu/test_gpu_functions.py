"""The elementary functions as kernels call them: within 3 units in the last place.

The interpreter rounds where a GPU multiplies and adds at once, so it is the worse of the two.
"""

from functools import lru_cache

import mpmath
import numpy as np
import pytest
import torch
from engines.cpu.test_cpu_functions import EXACT, EXACT_MP, single_values, units_apart
from hypothesis import given
from hypothesis import strategies as st

from cellwright.engines.gpu import load, text
from cellwright.engines.gpu.values import OPERATIONS, SAME
from cellwright.ir import TABLE

ULPS = 3.0
FUNCTIONS = [name for name in EXACT if name not in ("sqrt", "rsqrt")]  # Triton's own
BLOCK = 1 << 18


@lru_cache(maxsize=20)
def kernel(name, arity=1):
    """A kernel that applies a function to arrays."""
    body = text.Text()
    body.line("place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)")
    names = [f"at_{number}" for number in range(arity)]
    loads = ", ".join(f"tl.load({each} + place, mask=place < rows, other=1)" for each in names)
    body.line(f"tl.store(at_result + place, {name}({loads}), mask=place < rows)")
    made = text.kernel("apply", [*names, "at_result"], ["rows"], body)
    return load.load(text.module([made], [name], interpreted=True)).apply


def apply(name, *values):
    """A function of tensors."""
    result = torch.empty_like(values[0])
    count = len(result)
    with np.errstate(all="ignore"):
        kernel(name, len(values))[(-(-count // BLOCK),)](
            *values, result, count, BLOCK=min(BLOCK, 1 << (count - 1).bit_length()), PRECISION=""
        )
    return result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_over_the_whole_range(name):
    x = np.ascontiguousarray(single_values()[::5])
    found = apply(name, torch.from_numpy(x)).numpy()
    with np.errstate(all="ignore"):
        expected = EXACT[name](x.astype(np.float64))
    apart = units_apart(found, expected)
    worst = int(np.argmax(apart))
    assert apart[worst] <= ULPS, f"{name}({x[worst]!r}) = {found[worst]!r}, not {expected[worst]!r}"


@pytest.mark.parametrize("name", FUNCTIONS)
@given(x=st.floats(-700, 700) | st.floats(-1e-3, 1e-3))
def test_float64(name, x):
    if name == "log":
        x = abs(x) + 1e-300
    with mpmath.workdps(40):
        exact = EXACT_MP[name](mpmath.mpf(x))
        found = apply(name, torch.full((2,), x, dtype=torch.float64))[0].item()
        assert abs(found - exact) <= ULPS * max(np.spacing(abs(float(exact))), 2.0**-1074)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extrema_pass_nan_on(name):
    values = [0.0, -1.5, 2.0, float("inf"), -float("inf"), float("nan")]
    pairs = [(a, b) for a in values for b in values]
    a, b = (torch.tensor(each) for each in zip(*pairs, strict=True))
    found, expected = apply(name, a, b), getattr(torch, name)(a, b)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_relu_passes_nan_on():
    x = torch.tensor([-1.0, 0.0, 2.0, float("nan"), float("inf"), -float("inf")])
    torch.testing.assert_close(apply("relu", x), torch.relu(x), rtol=0, atol=0, equal_nan=True)


def test_rounding_to_bfloat16_is_torchs():
    """Of normal numbers and NaN: the interpreter's own conversion of denormal ones is not."""
    body = text.Text()
    body.line("place = tl.arange(0, BLOCK)")
    body.line("tl.store(at_y + place, bf16(tl.load(at_x + place)))")
    made = text.kernel("apply", ["at_x", "at_y"], [], body)
    run = load.load(text.module([made], [], interpreted=True)).apply
    bits = torch.randint(-(2**31), 2**31, (1 << 16,), generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int32).view(torch.float32)
    x = torch.where(x.abs() < 2.0**-126, 1.0 + 2.0**-8, x)
    y = torch.empty(x.shape, dtype=torch.bfloat16)
    run[1,](x, y, BLOCK=1 << 16, PRECISION="")
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_every_operator_is_known():
    """What is neither a leaf, nor a product or a sum, has its text in Triton."""
    known = {*OPERATIONS, *SAME, "sqrt", "rsqrt"}
    assert known == {name for name, row in TABLE.items() if row.kind == "pointwise"}
