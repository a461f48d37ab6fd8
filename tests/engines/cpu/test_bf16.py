"""Products of bfloat16 numbers with float32 sums: exact chains, the slow twin, other processors."""

from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, make_call, options_for
from engines.cpu.cpu_cases import (
    ENGINE,
    Guards,
    assert_equal,
    by_cpu,
    by_reference,
    poison,
)
from engines.cpu.test_cpu_bits import SHARED, Launches, of_rows, rows_of
from engines.cpu.test_cpu_products import SIZES, add, draw
from engines.test_backward import UNUSUAL
from llvmlite import ir

import cellwright as cw
from cellwright.engines.cpu import bfloat, jit, kernels, matrices, product, sharing, threads
from cellwright.engines.cpu.ops import Lanes
from cellwright.engines.reference import ReferenceEngine
from cellwright.errors import EngineError
from cellwright.lang import next_state
from cellwright.plan import StepOptions

BF16 = StepOptions(precision="bf16")
CELLS = CATALOGUE | UNUSUAL
has_bf16 = pytest.mark.skipif(not jit.target("").bf16, reason="this processor has no AVX512_BF16")


@cw.cell(state="h")
def linear(x, h, W, U, b):
    """Nothing but products."""
    return next_state(h=W @ x + U @ h + b)


def call_of(name, shape, options=BF16, **more):
    spec = linear if name == "linear" else CELLS[name]
    return make_call(spec, options, shape, dtype=torch.float32, **more)


# --- what the numbers are ----------------------------------------------------------------------


def rounded(v):
    return v.bfloat16().double()


def chain(start, left, right):
    """``start[m, n]`` + sum over k of ``left[k, m] * right[k, n]``, term by term in float32.

    A product of two bfloat16 numbers and its sum with a float32 number round in float64 as they
    would in float32 at once: what float64 loses lies beyond the bit on which the rounding turns.
    """
    total = start.double()
    for one, other in zip(rounded(left), rounded(right), strict=True):
        total = (total + one[:, None] * other[None, :]).float().double()
    return total.float()


@has_bf16
@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 1, 1, 1), Shape(3, 2, 1, 7), Shape(2, 7, 7, 33), Shape(2, 3, 33, 1),
        Shape(2, 13, 40, 70), Shape(2, 5, 70, 64), Shape(3, 1, 97, 48),
    ],
    ids=str,
)  # fmt: skip
def test_every_sum_is_one_chain_in_the_order_of_its_terms(shape):
    """The very bits: of outputs, of the gradients of x and states, and of the matrices."""
    call = call_of("linear", shape)
    results, gradients, arriving = by_cpu(call)
    W, U, b = (
        call.weights[next(s.tensor for s in call.signature.slices if s.parameter == name)]
        for name in ("W", "U", "b")
    )
    h, before = call.states[0], []
    for t in range(shape.steps):
        before.append(h)
        start = b.expand(shape.batch, -1)
        h = chain(start, torch.cat([call.x[t], h], 1).T, torch.cat([W, U], 1).T)
        assert torch.equal(results["output"][t], h), f"output at {t}"
    delta = arriving.states[0]
    deltas = []
    for t in reversed(range(shape.steps)):
        d_h = delta + arriving.output[t]
        deltas.insert(0, d_h)
        zeros = torch.zeros(shape.batch, shape.inputs)
        assert torch.equal(gradients["d x"][t], chain(zeros, d_h.T, W)), f"d x at {t}"
        delta = chain(torch.zeros_like(h), d_h.T, U)
    assert torch.equal(gradients["d h"], delta)
    # Over rows and steps, from the last to the first.
    every, x = torch.cat(deltas).flip(0), call.x.flatten(0, 1).flip(0)
    assert torch.equal(gradients["d W"], chain(torch.zeros_like(W), every, x))
    before = torch.cat(before).flip(0)
    assert torch.equal(gradients["d U"], chain(torch.zeros_like(U), every, before))


@has_bf16
def test_numbers_that_are_no_ordinary_ones():
    """Below 2**-126 they count as zero; infinities and NaN go where they go elsewhere."""
    call = call_of("linear", Shape(1, 5, 1, 1))
    one = torch.ones(1, 1)
    weights = [one if each.dim() == 2 else torch.zeros(1) for each in call.weights]
    x = torch.tensor([1e-39, 2.0**-126, float("inf"), float("-inf"), float("nan")])
    call = replace(call, x=x.view(1, 5, 1), states=[torch.zeros(5, 1)], weights=weights)
    found = ENGINE.forward(call, keep=False).output.flatten()
    expected = torch.tensor([0.0, 2.0**-126, float("inf"), float("-inf"), float("nan")])
    assert torch.equal(found[:4], expected[:4])
    assert found[4].isnan()


# --- against the reference engine, and float64 -------------------------------------------------


def apart(found, expected):
    """The difference's norm as a share of the norm."""
    return ((found.double() - expected).norm() / expected.double().norm().clamp_min(1e-30)).item()


def check(call, **how):
    """All values and gradients are the reference engine's.

    Sums in another order differ by about 1e-6. That moves a few operands of later products across
    the middle between two bfloat16 numbers: they then differ by 2**-8 of their size, and a result,
    which adds up many operands, by less.
    """
    results, gradients, arriving = by_cpu(call, **how)
    others, of_others = by_reference(call, arriving)
    for found, expected in ((results, others), (gradients, of_others)):
        for name, value in found.items():
            assert value.isfinite().all(), name
            assert apart(value, expected[name]) < 2**-8, name


@has_bf16
@pytest.mark.parametrize(
    "shape",
    [Shape(1, 3, 7, 33), Shape(3, 1, 5, 7), Shape(3, 5, 33, 33), Shape(4, 13, 41, 70)],
    ids=str,
)
@pytest.mark.parametrize("name", ["lstm", "gru_v1", "lstm_projection"])
def test_values_and_gradients(name, shape):
    check(call_of(name, shape, reverse=shape.batch == 5))


@has_bf16
@pytest.mark.parametrize("name", CELLS)
def test_every_cell(name):
    check(call_of(name, Shape(2, 3, 9, 19), stacked=True), unkept=False)


@has_bf16
@pytest.mark.parametrize("name", ["lstm", "gru_v1"])
@pytest.mark.parametrize("option", ["heads", "layer_norm", "lengths", "everything"])
def test_options(name, option):
    options = replace(options_for(CATALOGUE[name])[option], precision="bf16")
    check(call_of(name, Shape(4, 5, 7, 17), options))


@has_bf16
@pytest.mark.parametrize("name", ["lstm", "gru_v1"])
@pytest.mark.parametrize("hidden", [1, 2])
def test_one_unit_or_two(hidden, name):
    """So few numbers that none crosses a middle: the order of sums alone differs, if it does."""
    call = call_of(name, Shape(1, 1, 1, hidden))
    results, gradients, arriving = by_cpu(call)
    others, of_others = by_reference(call, arriving)
    for found, expected in ((results, others), (gradients, of_others)):
        for key, value in found.items():
            assert apart(value, expected[key]) < 2e-6, key


@has_bf16
@pytest.mark.parametrize("name", ["lstm", "gru", "gru_v1"])
def test_near_float64(name):
    """Of a layer as it is when training begins."""
    torch.manual_seed(0)
    layer = cw.nn.Recurrent(name, 48, 64, precision="bf16")
    exact = cw.nn.Recurrent(name, 48, 64, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x, arriving = torch.randn(20, 8, 48), torch.randn(20, 8, 64)
    found = []
    for each in (layer, exact):
        given = x.to(next(each.parameters()).dtype, copy=True).requires_grad_()
        y, state = each(given)
        y.backward(arriving.to(y.dtype))
        found.append([y.detach(), *state, given.grad, *(p.grad for p in each.parameters())])
    errors = [apart(one.detach(), other.detach()) for one, other in zip(*found, strict=True)]
    assert max(errors) < 1e-2
    assert max(errors) > 1e-4, "nothing was rounded"


# --- the same bits, however it is run ----------------------------------------------------------


@has_bf16
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("name", ["lstm", "gru_v1"])
def test_any_number_of_threads(name, shared, monkeypatch):
    call = call_of(name, Shape(5, 7, 35, 37))
    results, gradients, arriving = by_cpu(call)
    for limit, value in SHARED[shared].items():
        monkeypatch.setattr(sharing, limit, value)
    how = threads.ROWS if shared == "batch" else threads.SHARES
    for team in (2, 3):
        torch.set_num_threads(team)
        launches = Launches(monkeypatch)
        found = by_cpu(call, arriving)
        assert (how, team) in launches.seen
        assert_equal(found[0], results, f"{team} threads share the {shared}")
        assert_equal(found[1], gradients, f"{team} threads share the {shared}")


@has_bf16
@pytest.mark.parametrize("name", ["lstm", "gru_v1", "lstm_projection"])
def test_a_batch_in_parts(name):
    call = call_of(name, Shape(4, 9, 19, 33))
    results, gradients, arriving = by_cpu(call)
    whole = of_rows(call, results, gradients)
    for start, stop in ((0, 1), (1, 3), (3, 9)):
        part, given = rows_of(call, arriving, start, stop)
        found = by_cpu(part, given)
        for key, (value, axis) in of_rows(part, found[0], found[1]).items():
            assert torch.equal(value, whole[key][0].narrow(axis, start, stop - start)), key


@has_bf16
@pytest.mark.parametrize("name", ["elman", "lstm", "lstm_projection"])
def test_products_with_x_before_the_loop_or_in_it(name, monkeypatch):
    call, found, arriving = call_of(name, Shape(4, 5, 19, 18)), [], None
    for fuse in (False, True):
        monkeypatch.setattr(kernels.Kernels, "fuses", lambda self, rows, team, fuse=fuse: fuse)
        results, gradients, arriving = by_cpu(call, arriving)
        found.append((results, gradients))
    assert_equal(found[0][0], found[1][0], "hoisted and fused")
    assert_equal(found[0][1], found[1][1], "hoisted and fused")


@has_bf16
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["lstm", "gru_v1"])
def test_single_steps(name, batch):
    """Steps of one thread and of two: the large layer's units are shared out."""
    torch.manual_seed(0)
    for hidden in (21, 200):
        layer = cw.nn.Recurrent(name, 13, hidden, num_layers=2, precision="bf16")
        x = torch.randn(4, batch, 13)
        with torch.no_grad():
            expected, after = layer(x)
            for team in (1, 2):
                torch.set_num_threads(team)
                state = layer.initial_state(batch)
                for x_t, y_t in zip(x, expected, strict=True):
                    y, state = layer.step(x_t, state)
                    assert torch.equal(y, y_t)
                assert all(map(torch.equal, state, after))


# --- the parts ---------------------------------------------------------------------------------


@has_bf16
@pytest.mark.parametrize("team", [1, 3])
def test_outer_products_of_whole_numbers_are_exact(team):
    """Several jobs at once, of unlike sizes; rows of an initial state among them."""
    torch.set_num_threads(team)
    poison()
    guards, job, expected = Guards(), matrices.Product(False, bf16=True), []
    for m, n, k in [*SIZES, (301, 20, 40), (1100, 20, 40)]:
        left = draw(guards, k, m, m + 1, torch.float32, whole_numbers=True)
        right = draw(guards, k, n, n + 3, torch.float32, whole_numbers=True)
        initial = draw(guards, 1, n, n + 3, torch.float32, whole_numbers=True)
        gradient = guards.zeros(m, n)
        add(job, m, n, k, left, right, gradient, initial, k - 1)
        whole = torch.cat([right[:-1], initial])
        expected.append((gradient, left.double().T @ whole.double(), left, right, initial))
    original, sharing.ALONE_BELOW = sharing.ALONE_BELOW, 0
    try:
        job.run()
    finally:
        sharing.ALONE_BELOW = original
    guards.check()
    for gradient, sums, *_ in expected:
        assert torch.equal(gradient.double(), sums)


@has_bf16
def test_half_the_memory_of_the_weights():
    call = call_of("lstm", Shape(1, 1, 64, 64))
    narrow = kernels.kernels(call.signature.text, False, "").step().packed
    plain = call_of("lstm", Shape(1, 1, 64, 64), StepOptions())
    assert 2 * narrow == kernels.kernels(plain.signature.text, False, "").step().packed


@has_bf16
def test_the_dot_product_is_the_processors():
    for bf16 in (False, True):
        module = ir.Module("micro")
        product._emit_micro(module, 6, 4, Lanes(False), bf16)
        assert ("vdpbf16ps" in jit.assembly(str(module))) == bf16


# --- what is said, and processors without it ---------------------------------------------------


@has_bf16
def test_explain_says_it():
    layer = cw.nn.Recurrent("lstm", 3, 4, precision="bf16")
    found = cw.explain(layer, torch.zeros(2, 1, 3))
    assert found.engine == "cpu"
    assert "bfloat16" in found.reason
    plain = cw.explain(cw.nn.Recurrent("lstm", 3, 4), torch.zeros(2, 1, 3))
    assert "bfloat16" not in plain.reason


def test_float64_is_left_to_the_reference_engine():
    """It rounds the operands and adds in float64, which this engine has no instruction for."""
    layer = cw.nn.Recurrent("lstm", 3, 4, precision="bf16", dtype=torch.float64)
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    found = cw.explain(layer, x)
    assert found.engine == "reference"
    assert "not cpu: its products of bfloat16 numbers have float32 sums" in found.reason
    assert "bfloat16" in found.reason.split("; ")[-1]
    with cw.engine("cpu"), pytest.raises(EngineError, match="float32 sums"):
        layer(x)
    assert layer(x)[0].dtype == torch.float64


def test_convolutions_are_left_to_the_reference_engine():
    layer = cw.nn.ConvRecurrent("lstm", 2, 3, kernel_size=3, precision="bf16")
    found = cw.explain(layer, torch.zeros(2, 1, 2, 4, 4))
    assert found.engine == "reference"
    assert "not cpu: it has no convolutions of bfloat16 numbers" in found.reason


@pytest.fixture
def without(monkeypatch):
    """A processor without the instructions, about which nothing has been said yet."""
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "avx2")
    monkeypatch.setattr(kernels, "_warned", False)
    kernels.kernels.cache_clear()
    yield
    kernels.kernels.cache_clear()


def test_without_the_instructions_float32_runs_and_one_warning_says_so(without, recwarn):
    assert not bfloat.is_available()
    for name in ("lstm", "gru_v1"):
        call = call_of(name, Shape(3, 5, 7, 9))
        plain = replace(call, signature=replace(call.signature, options=StepOptions()))
        results, gradients, arriving = by_cpu(call)
        found = by_cpu(plain, arriving)
        assert_equal(found[0], results, "float32")
        assert_equal(found[1], gradients, "float32")
    said = [str(each.message) for each in recwarn]
    assert said == [kernels.NO_BF16]


@pytest.mark.filterwarnings("ignore:precision='bf16' runs in float32")
def test_without_the_instructions_explain_says_so_and_steps_run_in_float32(without):
    layer = cw.nn.Recurrent("lstm", 3, 4, precision="bf16")
    found = cw.explain(layer, torch.zeros(2, 1, 3))
    assert found.engine == "cpu"
    assert found.reason.endswith(kernels.NO_BF16)
    plain = cw.nn.Recurrent("lstm", 3, 4)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 3)
    with torch.no_grad():
        y, state = layer.step(x, layer.initial_state(1))
        expected, after = plain.step(x, plain.initial_state(1))
    assert torch.equal(y, expected)
    assert all(map(torch.equal, state, after))


def test_the_reference_engine_rounds_on_every_processor(without, recwarn):
    call = call_of("lstm", Shape(2, 3, 4, 5))
    plain = replace(call, signature=replace(call.signature, options=StepOptions()))
    engine = ReferenceEngine()
    narrow, full = (engine.forward(each, keep=False).output for each in (call, plain))
    assert not torch.equal(narrow, full)
    assert not len(recwarn)
