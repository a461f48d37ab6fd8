"""The elementary functions as they are emitted: within 3 units in the last place, everywhere."""

import ctypes
import math
import os
from functools import lru_cache
from unittest import mock

import mpmath
import numpy as np
import pytest
from llvmlite import ir

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.functions import LARGEST_ANGLE, OPERATIONS
from cellwright.engines.cpu.ops import I64, POINTER, Emitter, Lanes
from cellwright.ir import TABLE

ULPS = 3.0  # what the engine promises
ARITY = {name: TABLE[name].arity for name in OPERATIONS}
DTYPES = [np.float32, np.float64]
both = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


@lru_cache(maxsize=100)
def compiled(name, double, limit):
    """A loop that applies one operation to arrays; ``where`` chooses by the sign of its first."""
    with mock.patch.dict(os.environ, CELLWRIGHT_CPU_FEATURES=limit):
        return emitted(name, double)


def emitted(name, double):
    lanes = Lanes(double)
    module = ir.Module("functions")
    arguments = [POINTER] * (ARITY[name] + 1) + [I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "apply")
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    *given, result, count = function.args
    with e.loop(e.i64(0), count, lanes.count) as index:
        operands = [e.load(e.at(each, index)) for each in given]
        if name == "where":
            operands[0] = e.b.fcmp_ordered(">", operands[0], e.splat(0.0))
        value = OPERATIONS[name](e, *operands)
        if value.type == lanes.mask:
            value = e.b.select(value, e.splat(1.0), e.splat(0.0))
        e.store(value, e.at(result, index))
    e.b.ret_void()
    code = jit.compile_ir(str(module))
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (ARITY[name] + 1), ctypes.c_int64)
    return code, kind(code.address("apply"))


def apply(name, *values, limit=""):
    """The operation on numpy arrays."""
    dtype, count = values[0].dtype, len(values[0])
    room = -(-count // 16) * 16
    arrays = [np.zeros(room, dtype) for _ in range(len(values) + 1)]
    for array, value in zip(arrays, values, strict=False):
        array[:count] = value
    _, run = compiled(name, dtype == np.float64, limit)
    run(*(array.ctypes.data for array in arrays), room)
    return arrays[-1][:count]


def assert_same(found, expected, given):
    """The same numbers; NaN is NaN, and zeros have signs."""
    both_nan = np.isnan(found) & np.isnan(expected)
    alike = (found == expected) & (np.signbit(found) == np.signbit(expected))
    wrong = np.flatnonzero(~(both_nan | alike))
    shown = [([float(v[i]) for v in given], float(found[i]), float(expected[i])) for i in wrong[:5]]
    assert not len(wrong), f"(given, found, expected): {shown}"


def angular(function, x):
    """Of angles that were float32; NaN where they are beyond the range."""
    return np.where(np.abs(x) <= LARGEST_ANGLE["float32"], function(x), np.nan)


EXACT = {
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sin": lambda x: angular(np.sin, x),
    "cos": lambda x: angular(np.cos, x),
    "sigmoid": lambda x: np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "log_sigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
}
EXACT_MP = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "sqrt": mpmath.sqrt,
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "tanh": mpmath.tanh,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: max(x, 0) + mpmath.log1p(mpmath.exp(-abs(x))),
    "log_sigmoid": lambda x: min(x, 0) - mpmath.log1p(mpmath.exp(-abs(x))),
}
FUNCTIONS = list(EXACT)


def single_values():
    """Every 1,021st float32 of both signs, and all near places where something changes."""
    everywhere = np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32)
    places = [0.0, 0.625, math.sqrt(0.5), 1.0, 2.0, 9.0, 10.0, 17.0, 87.3, 88.7, 89.0, 103.9, 104.0]
    near = [
        np.arange(-500, 500) + int(np.float32(place).view(np.uint32)) for place in places if place
    ]
    near = np.concatenate([*near, np.arange(500), np.arange(0x7F7FFFFF - 500, 0x7F800001)])
    near = near.astype(np.uint32)
    return np.concatenate([everywhere, near, near | np.uint32(1 << 31)]).view(np.float32)


def units_apart(found, exact):
    """How many units in the last place of float32 lie between a value and the exact one."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
        # Below the normal numbers a unit stays the same.
        unit = np.maximum(np.spacing(np.abs(rounded)).astype(np.float64), 2.0**-149)
        apart = np.abs(found.astype(np.float64) - exact) / unit
    apart[(found == rounded) | (np.isnan(found) & np.isnan(rounded))] = 0.0
    apart[np.isnan(apart)] = np.inf
    return apart


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_over_the_whole_range(name):
    x = single_values()
    found = apply(name, x)
    with np.errstate(all="ignore"):
        expected = EXACT[name](x.astype(np.float64))
    apart = units_apart(found, expected)
    worst = int(np.argmax(apart))
    assert apart[worst] <= ULPS, f"{name}({x[worst]!r}) = {found[worst]!r}, not {expected[worst]!r}"


def double_values(name):
    """Some thousands over all orders of magnitude, and near where something changes."""
    draws = np.random.default_rng(7)
    parts = [draws.standard_normal(500) * scale for scale in (1e-8, 1e-3, 0.3, 1.0, 10.0, 300.0)]
    parts += [np.exp(draws.uniform(-744, 709, 2000)) * draws.choice([-1.0, 1.0], 2000)]
    parts += [1.0 + draws.standard_normal(300) * 1e-4, draws.uniform(-745.2, -707.0, 300)]
    parts += [draws.uniform(-0.8, 0.8, 1000), draws.uniform(700.0, 710.0, 200)]
    x = np.concatenate(parts)
    if name in ("sin", "cos"):
        # Near zeros of both, where the distance to a multiple of pi / 2 is all that counts.
        quarters = draws.integers(1, 600_000, 1000) * (math.pi / 2)
        parts += [quarters, quarters * (1 + draws.standard_normal(1000) * 1e-12)]
        x = np.concatenate(parts)
        return x[np.abs(x) <= LARGEST_ANGLE["float64"]]
    return np.abs(x) if name in ("log", "rsqrt", "sqrt") else x


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_against_many_digits(name):
    """mpmath with 150 bits; double has 53."""
    x = double_values(name)
    found = apply(name, x)
    with mpmath.workprec(150):
        for given, value in zip(x, found, strict=True):
            exact = EXACT_MP[name](mpmath.mpf(float(given)))
            rounded = float(exact)
            if value == rounded:
                continue
            assert math.isfinite(value), f"{name}({given!r}) = {value!r}, not {rounded!r}"
            apart = abs(mpmath.mpf(float(value)) - exact) / max(math.ulp(rounded), 5e-324)
            assert apart <= ULPS, f"{name}({given!r}) = {value!r}, not {rounded!r}"


inf, nan = math.inf, math.nan
LARGE = 1e30
RIGHT = {  # of 0, -0, inf, -inf, NaN, 1e30, -1e30
    "exp": [1.0, 1.0, inf, 0.0, nan, inf, 0.0],
    "log": [-inf, -inf, inf, nan, nan, math.log(LARGE), nan],
    "sqrt": [0.0, -0.0, inf, nan, nan, 1e15, nan],
    "rsqrt": [inf, -inf, 0.0, nan, nan, 1e-15, nan],
    "tanh": [0.0, -0.0, 1.0, -1.0, nan, 1.0, -1.0],
    "sigmoid": [0.5, 0.5, 1.0, 0.0, nan, 1.0, 0.0],
    "softplus": [math.log(2), math.log(2), inf, 0.0, nan, LARGE, 0.0],
    "log_sigmoid": [-math.log(2), -math.log(2), 0.0, -inf, nan, 0.0, -LARGE],
    "sin": [0.0, -0.0, nan, nan, nan, nan, nan],
    "cos": [1.0, 1.0, nan, nan, nan, nan, nan],
    "relu": [0.0, 0.0, inf, 0.0, nan, LARGE, 0.0],
    "abs": [0.0, 0.0, inf, inf, nan, LARGE, LARGE],
    "neg": [-0.0, 0.0, -inf, inf, nan, -LARGE, LARGE],
    "square": [0.0, 0.0, inf, inf, nan, 1e60, 1e60],
}


@both
@pytest.mark.parametrize("name", RIGHT)
def test_special_values(name, dtype):
    x = np.array([0.0, -0.0, inf, -inf, nan, LARGE, -LARGE], dtype)
    with np.errstate(over="ignore"):
        expected = np.array(RIGHT[name], dtype)
    found = apply(name, x)
    inexact = np.isfinite(expected) & (expected != 0) & (np.abs(expected) != 1)
    # A number that is not special may be off like any other.
    unit = np.spacing(np.abs(expected[inexact]))
    assert (np.abs(found[inexact] - expected[inexact]) <= ULPS * unit).all()
    if name == "log_sigmoid":  # 0 from below is 0, of either sign
        found, expected = np.abs(found), np.abs(expected)
    assert_same(found[~inexact], expected[~inexact], [x[~inexact]])


@both
def test_numbers_below_the_normal_ones(dtype):
    """They are neither flushed to zero nor slow roads to NaN."""
    smallest = np.finfo(dtype).smallest_subnormal
    x = np.array([smallest, -smallest, 3 * smallest, np.finfo(dtype).tiny / 3], dtype)
    assert_same(apply("tanh", x), x, [x])  # tanh(v) is v there, to the last bit
    assert_same(apply("sin", x), x, [x])
    assert_same(apply("cos", x), np.ones_like(x), [x])
    assert_same(apply("add", x, x), x + x, [x, x])
    assert_same(apply("mul", x, np.full_like(x, 0.5)), x * dtype(0.5), [x])
    assert_same(apply("exp", x), np.ones_like(x), [x])
    assert_same(apply("sigmoid", x), np.full_like(x, 0.5), [x])
    positive = np.abs(x)
    logarithm = np.log(positive.astype(np.longdouble)).astype(dtype)
    np.testing.assert_array_max_ulp(apply("log", positive), logarithm, 3)
    results = apply("exp", np.array([np.log(smallest) + 0.6], dtype))
    assert 0 < results[0] < np.finfo(dtype).tiny


@both
def test_the_far_tails_of_sigmoid(dtype):
    """Log-likelihoods live there: no unit is lost to 1 - sigmoid(-x), and none to overflow."""
    lowest = -103.0 if dtype == np.float32 else -744.0
    x = np.linspace(lowest, -20.0, 3000, dtype=dtype)
    found = apply("sigmoid", x)
    assert (found > 0).all()
    assert (np.diff(found) >= 0).all()
    exact = np.exp(x.astype(np.longdouble))  # 1 + exp(x) is 1 to 9 digits: corrected for
    exact = exact / (1 + exact)
    unit = np.maximum(np.spacing(exact.astype(dtype)), np.finfo(dtype).smallest_subnormal)
    assert (np.abs(found.astype(np.longdouble) - exact) <= ULPS * unit.astype(np.longdouble)).all()
    beyond = np.array([lowest - 10.0, -1e4, -1e30], dtype)
    assert_same(apply("sigmoid", beyond), np.zeros_like(beyond), [beyond])
    assert_same(apply("sigmoid", -x[x < -40]), np.ones_like(x[x < -40]), [x])


@both
def test_angles_near_the_zeros_of_sine_and_cosine(dtype):
    """The number nearest to each of many multiples of pi / 2: the rest has to have all its bits."""
    limit = LARGEST_ANGLE[np.dtype(dtype).name]
    quarters = np.unique(np.geomspace(1, limit / 1.5708, 3000).astype(int))
    with mpmath.workprec(300):
        x = np.array([float(mpmath.pi / 2 * int(n)) for n in quarters], dtype)
        for name in ("sin", "cos"):
            for given, value in zip(x, apply(name, x), strict=True):
                exact = EXACT_MP[name](mpmath.mpf(float(given)))
                unit = np.spacing(np.abs(dtype(float(exact))))
                assert abs(mpmath.mpf(float(value)) - exact) <= ULPS * unit


@both
def test_angles_end_where_they_are_said_to(dtype):
    limit = dtype(LARGEST_ANGLE[np.dtype(dtype).name])
    x = np.array([limit, -limit, np.nextafter(limit, dtype(inf)), -np.nextafter(limit, dtype(inf))])
    for name in ("sin", "cos"):
        assert np.isfinite(apply(name, x)).tolist() == [True, True, False, False]


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
}


def pairs(dtype):
    """Every special value with every other, and some ordinary ones."""
    tiny, smallest = np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal
    special = [0.0, inf, nan, smallest, tiny, 1.0, 1.5, LARGE, np.finfo(dtype).max]
    values = np.array([sign * v for v in special for sign in (1, -1)], dtype)
    a, b = (each.ravel() for each in np.meshgrid(values, values))
    draws = np.random.default_rng(3).standard_normal((2, 400)).astype(dtype)
    return np.concatenate([a, draws[0]]), np.concatenate([b, draws[1]])


@both
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_and_comparisons_are_exact(name, dtype):
    a, b = pairs(dtype)
    with np.errstate(all="ignore"):
        expected = BINARY[name](a, b).astype(dtype)
    assert_same(apply(name, a, b), expected, [a, b])


@both
def test_the_greater_and_the_lesser(dtype):
    """NaN if either is; +0 is greater than -0 (IEEE 754-2019)."""
    a, b = pairs(dtype)
    a_greater = (a > b) | ((a == b) & ~np.signbit(a))
    either = np.isnan(a) | np.isnan(b)
    greater = np.where(either, dtype(nan), np.where(a_greater, a, b))
    lesser = np.where(either, dtype(nan), np.where(a_greater, b, a))
    assert_same(apply("maximum", a, b), greater, [a, b])
    assert_same(apply("minimum", a, b), lesser, [a, b])


@both
def test_choice_takes_one_side_only(dtype):
    a, b = pairs(dtype)
    condition = np.resize(np.array([1.0, -1.0, 0.0, nan], dtype), len(a))
    chosen = apply("where", condition, a, b)
    assert_same(chosen, np.where(condition > 0, a, b), [condition, a, b])


def test_every_pointwise_operator_has_code():
    assert set(OPERATIONS) == {name for name, row in TABLE.items() if row.kind == "pointwise"}


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lane_does_not_know_its_neighbours(name, dtype):
    x = np.linspace(0.01, 30.0, 64, dtype=dtype)
    x[5], x[20] = nan, inf
    whole = apply(name, x)
    for shift in (1, 3, 7):
        assert_same(np.roll(apply(name, np.roll(x, shift)), -shift), whole, [x])


@pytest.mark.skipif(jit.target("").width < 64, reason="this processor has no AVX-512")
@both
@pytest.mark.parametrize("name", OPERATIONS)
def test_narrower_registers_yield_the_same_bits(name, dtype):
    draws = np.random.default_rng(5)
    if dtype == np.float32:
        patterns = draws.integers(0, 2**32, (3, 20000), dtype=np.uint64).astype(np.uint32)
    else:
        patterns = draws.integers(0, 2**64, (3, 20000), dtype=np.uint64)
    values = [*patterns.view(dtype)[: ARITY[name]]]
    ordinary = [draws.standard_normal(20000).astype(dtype) * 10 for _ in values]
    # exp has numbers of every size here, denormal ones too
    whole_range = np.linspace(*((-110, 95) if dtype == np.float32 else (-750, 715)), 20000)
    for given in (values, ordinary, [whole_range.astype(dtype)] * len(values)):
        wide, narrow = apply(name, *given), apply(name, *given, limit=jit.AVX2)
        assert_same(narrow, wide, given)


def test_the_measure_counts_units():
    """The comparison itself."""
    for exact in (1.0, 1e-40, 3e38, 1e-30):
        start = np.float32(exact)
        unit = max(float(np.spacing(start)), 2.0**-149)
        for count in (0, 1, 4, -4):
            value = np.array([float(start) + count * unit], np.float32)
            assert units_apart(value, np.array([float(start)])) == [abs(count)]
    special = np.array([nan, inf, 1.0, -inf], np.float32)
    assert (units_apart(special, np.array([1.0, 1.0, nan, inf])) == inf).all()
    assert (units_apart(special, special.astype(np.float64)) == 0).all()
    with pytest.raises(AssertionError):
        assert_same(np.array([0.0]), np.array([-0.0]), [np.array([0.0])])
