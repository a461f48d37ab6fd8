"""Cells that are unlike those of the catalogue: each has something that none of them has."""

import pytest
import torch
from engines.cases import Shape, assert_same, make_call, options_for
from engines.cpu.cpu_cases import by_cpu, by_reference, cast
from engines.cpu.test_cpu_cells import compare
from engines.test_backward import UNUSUAL
from hypothesis import given, settings
from lang.programs import cell_of, programs

import cellwright as cw
from cellwright.lang import (
    abs,
    cos,
    exp,
    layer_norm,
    log,
    log_sigmoid,
    maximum,
    mean,
    minimum,
    next_state,
    relu,
    sigmoid,
    sin,
    softplus,
    sqrt,
    square,
    tanh,
    where,
)
from cellwright.plan import StepOptions

# As in test_backward.py: up to ten functions deep, a mean inside a mean, slopes of 1e4 at most.
RANDOM = 1e-10


def more_cells():
    """Cells, each with something of interest to code."""
    # Comparisons: kept as bytes for the backward pass, between stages, before the loop.

    @cw.cell(state="h")
    def number_a_row_decides(x, h, W, U):
        return next_state(h=where(mean(h) > 0.1, tanh(U @ h + W @ x), 0.5 * h))

    @cw.cell(state="h")
    def decision_for_a_later_stage(x, h, W, U, V):
        a = U @ h + W @ x
        return next_state(h=where(a > 0, tanh(V @ tanh(a)), 0.5 * h))

    @cw.cell(state="h")
    def row_decides_for_a_later_stage(x, h, W, U, V):
        a = U @ h + W @ x
        return next_state(h=where(mean(a) > 0, tanh(V @ tanh(a)), 0.5 * h))

    @cw.cell(state="h")
    def input_decides(x, h, W, U):
        return next_state(h=where(W.a @ x > W.b @ x, tanh(U @ h), 0.5 * h))

    @cw.cell(state="h")
    def parameters_decide(x, h, W, U, a, b):
        return next_state(h=where(a > b, tanh(U @ h + W @ x), 0.5 * h))

    @cw.cell(state="h")
    def mean_of_parameters_decides(x, h, W, U, a):
        return next_state(h=where(mean(a) > 0, tanh(U @ h + W @ x), 0.5 * h))

    @cw.cell(state="h")
    def five_relations(x, h, W, U):
        a, b = W @ x, U @ h
        both = where(a < b, 1.0, 0.5) * where(a <= b, 0.9, 1.1) * where(a >= 0.3 * b, 1.0, 0.8)
        return next_state(h=tanh(both * (a + b)) * where(mean(b) > mean(a), 1.0, 0.7))

    @cw.cell(state="h")
    def ties(x, h, W, U):
        a = W @ x + U @ h
        return next_state(h=tanh(maximum(a, a * 1.0) + minimum(relu(a), relu(a) * 1.0) + relu(h)))

    # Values of parameters alone, and of one number for all units.

    @cw.cell(state="h")
    def means_of_parameters(x, h, W, U, a, b):
        m = mean(a)
        return next_state(h=tanh(m * (W @ x) + U @ h * mean(exp(b))), watch={"m": m})

    @cw.cell(state="h")
    def centred_product_of_parameters(x, h, W, U, A, a):
        k = A @ sigmoid(a)
        return next_state(h=tanh((k - mean(k)) * h + W @ x + U @ h), watch={"k": k})

    @cw.cell(state="h")
    def constants_watched(x, h, W, b):
        watch = {"seven": h * 0 + 7.0, "m": mean(h), "b": b, "g": W @ x, "n": sigmoid(b)}
        return next_state(h=tanh(W @ x + h), watch=watch)

    @cw.cell(state="h")
    def means_of_means(x, h, W, U):
        m = mean(square(h - mean(h)))
        return next_state(h=tanh((U @ h + W @ x) / sqrt(m + 0.5) + m), watch={"m": m})

    # States: handed on, exchanged, from parameters, of unlike size.

    @cw.cell(state=("h", "c"))
    def a_state_unchanged(x, h, c, W, U):
        return next_state(h=tanh(W @ x + U @ h + c), c=c)

    @cw.cell(state=("h", "c"))
    def a_state_from_parameters(x, h, c, W, U, b):
        return next_state(h=tanh(W @ x + U @ h + c), c=b)

    @cw.cell(state={"h": "first", "m": "second", "k": "hidden"})
    def three_sizes(x, h, m, k, W, A, B, C, D):
        k = tanh(W.k @ x + A.k @ h + B.k @ m)
        m = sigmoid(A.m @ h + C @ k)
        return next_state(h=tanh(D @ k + A.h @ h) * mean(m), m=m, k=k)

    # Products: of x through products, one matrix again and again, more than a panel has room for.

    @cw.cell(state="h")
    def products_of_products_of_x(x, h, W, U, A):
        return next_state(h=tanh(A @ tanh(A @ tanh(W @ x)) + U @ h))

    @cw.cell(state="h")
    def normalised_input(x, h, W, U, g):
        return next_state(h=tanh(layer_norm(W @ x) * g + U @ h))

    @cw.cell(state="h")
    def seven_gates(x, h, W, U, b):
        v = [sigmoid(getattr(W, n) @ x + getattr(U, n) @ h + getattr(b, n)) for n in "abcdefg"]
        return next_state(h=tanh(v[0] * v[1] + v[2] * v[3] - v[4] * h + v[5] * v[6]))

    @cw.cell(state="h")
    def one_matrix_four_times(x, h, W, U):
        a = tanh(U @ h + W @ x)
        b = tanh(U @ a + W @ x)
        return next_state(h=tanh(U @ b + U @ (a * b)))

    @cw.cell(state="h")
    def every_function(x, h, W, U, b):
        a = W @ x + U @ h + b
        n = softplus(a) * log_sigmoid(-h) + log(1.5 + tanh(a)) + exp(tanh(h)) - abs(a) / 3
        return next_state(h=tanh(n + sqrt(1.0 + square(a)) - relu(a)) * sin(3 * a) + cos(h))

    return {spec.name: spec for spec in locals().values() if isinstance(spec, cw.CellSpec)}


MORE = more_cells()
CELLS = UNUSUAL | MORE
SHAPE = Shape(5, 3, 4, 9)


@pytest.mark.parametrize("name", CELLS)
def test_unusual_cells(name):
    options = StepOptions(trace=True, lengths=len(name) % 3 == 0)
    for shape in (SHAPE, Shape(1, 1, 4, 9), Shape(4, 7, 4, 9)):
        compare(make_call(CELLS[name], options, shape, reverse=len(name) % 2 == 0))


ALL_AT_ONCE = [
    "number_a_row_decides", "row_decides_for_a_later_stage", "input_decides", "parameters_decide",
    "centred_product_of_parameters", "matrix_on_parameters_and_in_the_loop", "three_sizes",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL_AT_ONCE)
def test_unusual_cells_with_everything(name):
    call = make_call(CELLS[name], options_for(CELLS[name])["everything"], Shape(4, 3, 3, 5))
    compare(cast(call, torch.float32) if len(name) % 2 else call, unkept=False)


@settings(max_examples=8)
@given(programs())
def test_random_cells(program):
    call = make_call(cell_of(program), StepOptions(trace=True), Shape(2, 3, 3, 9))
    results, gradients, cotangents = by_cpu(call, unkept=False)
    expected, of_reference = by_reference(call, cotangents)
    assert_same(results, expected, RANDOM, "result")
    assert_same(gradients, of_reference, RANDOM, "gradient")
