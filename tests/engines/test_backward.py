"""The plan's own gradients against torch's autograd, for every cell, option and odd size."""

from dataclasses import replace

import pytest
import torch
from engines.cases import (
    CATALOGUE,
    SHAPES,
    Shape,
    assert_same,
    by_autograd,
    by_the_plan,
    draw_cotangents,
    make_call,
    options_for,
)
from engines.plain import plain_loop
from hypothesis import given, settings
from lang.programs import cell_of, programs

import cellwright as cw
from cellwright.engines import Cotangents
from cellwright.engines.reference import ReferenceEngine, differentiable
from cellwright.lang import mean, next_state, sigmoid, square, tanh, where
from cellwright.plan import StepOptions

# Sums of some tens of products in another order, over at most five steps: 1e-16 grows by
# less than 1e3. assert_same takes it relative to the largest number of each tensor.
FLOAT64 = 1e-12
EVERY_OPTION = [name for name in options_for(CATALOGUE["lstm"]) if name != "bf16"]  # see test_bf16


def check(call, tolerance=FLOAT64):
    """Three ways: the plan with its gradients, the plan under autograd, and a plain loop."""
    results, gradients, cotangents = by_the_plan(call)
    others, torchs = by_autograd(call, cotangents)
    assert_same(results, others, 0.0, "forward")  # the same operations: the same bits
    assert_same(gradients, torchs, tolerance, "derived and torch's")
    plainly, of_plain = by_autograd(call, cotangents, plain_loop)
    assert_same(results, plainly, tolerance, "plan and loop")
    assert_same(gradients, of_plain, tolerance, "plan's and loop's")


@pytest.mark.parametrize("option", EVERY_OPTION)
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_cell_with_every_option(name, option):
    spec = CATALOGUE[name]
    options = options_for(spec)[option]
    odd = len(name) % 2 == 1
    check(make_call(spec, options, SHAPES["odd"], reverse=odd, stacked=not odd, seed=len(name)))


@pytest.mark.parametrize("size", [size for size in SHAPES if size != "odd"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_cell_at_the_smallest_sizes(name, size):
    spec = CATALOGUE[name]
    check(make_call(spec, StepOptions(trace=True), SHAPES[size], seed=3))
    check(make_call(spec, options_for(spec)["everything"], SHAPES[size], reverse=True, seed=4))


@pytest.mark.parametrize("name", ["peephole_lstm", "gru_v1", "lstm_projection", "layer_norm_lstm"])
def test_a_truncated_gradient_beside_every_other_option(name):
    options = replace(options_for(CATALOGUE[name])["everything"], gradient="truncated")
    check(make_call(CATALOGUE[name], options, SHAPES["odd"], seed=5))


@settings(max_examples=50)
@given(programs())
def test_random_cells(program):
    spec = cell_of(program)
    # Up to ten functions deep, a mean inside a mean: slopes multiply to 1e4 at most.
    check(make_call(spec, StepOptions(trace=True), Shape(2, 2, 3, 4)), 1e-10)
    check(make_call(spec, options_for(spec)["everything"], Shape(2, 2, 3, 2)), 1e-10)


@pytest.mark.parametrize("name", ["lstm", "gru_v1", "lstm_projection", "layer_norm_lstm", "slstm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bf16(name, dtype):
    """Products of rounded numbers.

    In the forward pass the plan and the loop round the same numbers. In the backward pass the
    plan also rounds the gradient that a product reads, which torch's autograd does not:
    each rounding is off by 2**-9, some tens of them add up over four steps.
    """
    call = make_call(CATALOGUE[name], StepOptions(precision="bf16"), SHAPES["odd"], dtype=dtype)
    results, gradients, cotangents = by_the_plan(call)
    plainly, of_plain = by_autograd(call, cotangents, plain_loop)
    # A last bit that differs may round to the next bfloat16: 2**-8 of a number of order 1.
    assert_same(results, plainly, 1e-2, "bf16")
    assert_same(gradients, of_plain, 5e-2, "bf16")
    exact = make_call(CATALOGUE[name], StepOptions(), SHAPES["odd"], dtype=dtype)
    unrounded, _, _ = by_the_plan(exact, cotangents)
    apart = (unrounded["output"] - results["output"]).abs().max()
    assert 1e-5 < apart < 5e-2, "bf16 is neither without effect nor far off"


@pytest.mark.parametrize("name", ["lstm", "gru", "rhn", "minlstm"])
def test_float32(name):
    call = make_call(CATALOGUE[name], StepOptions(trace=True), SHAPES["odd"], dtype=torch.float32)
    check(call, 1e-4)  # as FLOAT64, with 6e-8 in place of 1e-16


@pytest.mark.parametrize("name", CATALOGUE)
def test_gradients_are_linear_in_what_arrives(name):
    """Each of output, final states and traces has its own way back; they add up."""
    call = make_call(CATALOGUE[name], StepOptions(trace=True), Shape(3, 2, 3, 4))
    _, whole, cotangents = by_the_plan(call)
    empty = Cotangents(
        cotangents.output * 0, [v * 0 for v in cotangents.states], [v * 0 for v in cotangents.trace]
    )
    parts = [
        by_the_plan(call, replace(empty, **{field: getattr(cotangents, field)}))[1]
        for field in ("output", "states", "trace")
    ]
    assert all(any(value.any() for value in part.values()) for part in parts)
    assert_same({k: sum(part[k] for part in parts) for k in whole}, whole, FLOAT64)


def test_need_x_is_heeded():
    call = make_call(CATALOGUE["lstm"])
    engine = ReferenceEngine()
    result = engine.forward(call, keep=True)
    found = engine.backward(call, result.kept, draw_cotangents(result), need_x=False)
    assert found.x is None
    assert engine.forward(call, keep=False).kept == []


def test_nothing_that_was_given_is_changed():
    spec = CATALOGUE["layer_norm_lstm"]
    call = make_call(spec, options_for(spec)["everything"])
    given_tensors = [call.x, *call.states, *call.weights, *call.streams]
    before = [each.clone() for each in given_tensors]
    by_the_plan(call)
    for each, copy in zip(given_tensors, before, strict=True):
        assert torch.equal(each, copy)


def test_memory_order_does_not_matter():
    call = make_call(CATALOGUE["gru_v1"], StepOptions(trace=True), SHAPES["odd"])
    turned = replace(
        call,
        x=call.x.transpose(0, 2).contiguous().transpose(0, 2),
        states=[each.T.contiguous().T for each in call.states],
        weights=[torch.stack([each, each], dim=-1)[..., 0] for each in call.weights],
    )
    assert not turned.x.is_contiguous()
    assert not turned.weights[0].is_contiguous()
    results, gradients, cotangents = by_the_plan(call)
    others, of_others, _ = by_the_plan(turned, cotangents)
    assert_same(results, others, FLOAT64)
    assert_same(gradients, of_others, FLOAT64)


# --- cells that are unlike those of the catalogue ----------------------------------------------


def unusual():
    """Cells, each with something that none of the catalogue has."""

    @cw.cell(state="h")
    def mean_of_a_product(x, h, W, U):
        return next_state(h=tanh(W @ x + h * mean(U @ h)))

    @cw.cell(state="h")
    def mean_of_what_is_centred(x, h, W, U):
        return next_state(h=tanh(W @ x + U @ h + mean(abs(h) - mean(h))))

    @cw.cell(state="h")
    def product_of_parameters(x, h, W, U, A, a):
        return next_state(h=tanh(W @ x + U @ h + A @ sigmoid(a)))

    @cw.cell(state="h")
    def two_products_of_parameters(x, h, W, A, B, a):
        return next_state(h=tanh(W @ x + h + A @ tanh(B @ a)))

    @cw.cell(state="h")
    def matrix_used_twice(x, h, W, U):
        return next_state(h=tanh(W @ x + U @ tanh(U @ h)))

    @cw.cell(state="h")
    def matrix_before_and_in_the_loop(x, h, W, U):
        return next_state(h=tanh(U @ tanh(W @ x) + U @ h))

    @cw.cell(state="h")
    def matrix_on_parameters_and_in_the_loop(x, h, W, U, a):
        return next_state(h=tanh(U @ tanh(a) + U @ h + W @ x))

    @cw.cell(state="h")
    def becomes_a_parameter(x, h, W, b):
        return next_state(h=b, watch={"g": W @ x + h})

    @cw.cell(state="h")
    def follows_from_parameters(x, h, W, b):
        return next_state(h=sigmoid(b), watch={"g": W @ x + h})

    @cw.cell(state=("h", "c"))
    def exchange(x, h, c, W):
        return next_state(h=c, c=h, watch={"g": W @ x})

    @cw.cell(state=("h", "c"))
    def one_value_for_two(x, h, c, W):
        new = tanh(W @ x + h * c)
        return next_state(h=new, c=new)

    @cw.cell(state=("h", "c"))
    def watched_are_numbers_and_states(x, h, c, W):
        m = mean(c)
        new = tanh(W @ x + h * m)
        watch = {"m": m, "before": h, "same": new, "one": m * 0 + 1}
        return next_state(h=new, c=c * 0.5 + 0.1, watch=watch)

    @cw.cell(state="h")
    def state_not_read(x, h, W):
        return next_state(h=tanh(W @ x))

    @cw.cell(state="h")
    def input_not_read(x, h, U):
        return next_state(h=tanh(U @ h))

    @cw.cell(state="h")
    def input_watched_only(x, h, U, W):
        return next_state(h=tanh(U @ h), watch={"g": W @ x})

    @cw.cell(state="h")
    def chosen_by_a_product(x, h, W, U, V):
        n = tanh(W @ x + U @ h)
        return next_state(h=where(V @ h > W @ x, n, 0.5 * h))

    @cw.cell(state="h")
    def chosen_by_the_input(x, h, W, U):
        return next_state(h=where(W @ x > 0, tanh(U @ h), 0.5 * h))

    @cw.cell(state="h")
    def chosen_by_a_number_a_row(x, h, W, U):
        return next_state(h=where(mean(h) > mean(W @ x), tanh(U @ h + W @ x), 0.5 * h))

    @cw.cell(state={"h": "small", "c": "hidden"})
    def unlike_sizes(x, h, c, W, A, B, b):
        c = tanh(W @ x + A @ h + c * mean(square(h)))
        return next_state(h=tanh(B @ c + b) + h, c=c)

    return {spec.name: spec for spec in list(locals().values()) if isinstance(spec, cw.CellSpec)}


UNUSUAL = unusual()


@pytest.mark.parametrize("option", ["plain", "trace", "lengths", "layer_norm", "everything"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_cells(name, option):
    spec = UNUSUAL[name]
    check(make_call(spec, options_for(spec)[option], Shape(3, 2, 3, 4)))
    check(make_call(spec, options_for(spec)[option], Shape(2, 1, 1, 3), stacked=True))


def test_twins_are_told_apart_when_they_differ():
    """The comparison itself: a gradient with one wrong number does not pass."""
    call = make_call(CATALOGUE["lstm"])
    _, gradients, cotangents = by_the_plan(call)
    _, torchs = by_autograd(call, cotangents, differentiable)
    gradients["d U.f"] = gradients["d U.f"].clone()
    gradients["d U.f"][0, 0] += 1e-9
    with pytest.raises(AssertionError, match=r"d U\.f"):
        assert_same(gradients, torchs, FLOAT64)
