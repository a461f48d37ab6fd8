"""Gradients of every cell against finite differences, and second derivatives."""

from dataclasses import replace

import pytest
import torch
from engines.cases import (
    CATALOGUE,
    Shape,
    assert_same,
    draw_cotangents,
    generator,
    gradients_of,
    make_call,
)
from engines.plain import plain_loop
from engines.test_backward import UNUSUAL

from cellwright.engines import run
from cellwright.plan import StepOptions

TRACED = StepOptions(trace=True)


def leaves_of(call):
    """Input, initial states and weights."""
    return [call.x, *call.states, *call.weights]


def with_leaves(call, tensors):
    """The same call on other tensors."""
    x, *rest = tensors
    count = len(call.states)
    return replace(call, x=x, states=rest[:count], weights=rest[count:])


def loss(call, runner=run):
    """A weighted sum of outputs, final states and traces, each number with a weight of its own."""
    result = runner(call)
    weights = draw_cotangents(result, seed=21)
    outputs = [result.output, *result.states, *result.trace]
    given = [weights.output, *weights.states, *weights.trace]
    return sum((o * w).sum() for o, w in zip(outputs, given, strict=True))


def check_by_differences(call):
    tensors = [each.detach().clone().requires_grad_() for each in leaves_of(call)]
    # Step 1e-6 on a sum of some hundred numbers of order 1: curvature leaves 1e-10,
    # rounding 1e-14 / 1e-6 = 1e-8.
    assert torch.autograd.gradcheck(
        lambda *given: loss(with_leaves(call, given)), tensors, eps=1e-6, atol=1e-7, rtol=1e-6
    )


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_cell_against_finite_differences(name):
    check_by_differences(make_call(CATALOGUE[name], TRACED, Shape(3, 2, 1, 3), seed=5))


@pytest.mark.parametrize("name", CATALOGUE)
def test_one_step_of_one_sequence(name):
    check_by_differences(make_call(CATALOGUE[name], TRACED, Shape(1, 1, 3, 2), seed=6))


@pytest.mark.parametrize("name", CATALOGUE)
def test_from_the_end_to_the_beginning_one_sequence(name):
    call = make_call(CATALOGUE[name], StepOptions(), Shape(3, 1, 2, 1), reverse=True, seed=7)
    check_by_differences(call)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_cells(name):
    check_by_differences(make_call(UNUSUAL[name], TRACED, Shape(2, 2, 2, 3), seed=8))


@pytest.mark.parametrize(
    "options",
    [
        StepOptions(heads=3),
        StepOptions(layer_norm=True, reset=True, learn_initial_state=True),
        StepOptions(lengths=True, recurrent_dropout=True, trace=True),
        StepOptions(zoneout=(("h", 0.3), ("c", 0.6)), training=True),
        StepOptions(zoneout=(("c", 0.6),)),
    ],
    ids=["heads", "layer_norm, reset", "lengths, dropout", "zoneout, training", "zoneout"],
)
def test_options_against_finite_differences(options):
    hidden = 1 if options.heads > 1 else 2
    check_by_differences(make_call(CATALOGUE["lstm"], options, Shape(3, 2, 2, hidden), seed=9))


# --- second derivatives ------------------------------------------------------------------------


def second_derivatives(call, runner):
    """Gradients of a weighted sum of gradients, with respect to everything."""
    tensors = [each.detach().clone().requires_grad_() for each in leaves_of(call)]
    value = loss(with_leaves(call, tensors), runner)
    first = torch.autograd.grad(value, tensors, create_graph=True, materialize_grads=True)
    draws = generator(31)
    total = sum((g * torch.randn(g.shape, generator=draws, dtype=g.dtype)).sum() for g in first)
    second = torch.autograd.grad(total, tensors, materialize_grads=True)
    count = 1 + len(call.states)
    return [gradients_of(g[0], g[1:count], g[count:], call) for g in (first, second)]


@pytest.mark.parametrize("name", CATALOGUE)
def test_second_derivatives_of_every_cell(name):
    call = make_call(CATALOGUE[name], TRACED, Shape(3, 2, 3, 3), seed=11)
    first, second = second_derivatives(call, run)
    expected_first, expected_second = second_derivatives(call, plain_loop)
    # As for first derivatives, with one more product of slopes.
    assert_same(first, expected_first, 1e-12)
    assert_same(second, expected_second, 1e-11)
    assert any(value.any() for value in second.values())


@pytest.mark.parametrize("name", ["elman", "gru_v1", "lstm_projection", "sru"])
def test_second_derivatives_against_finite_differences(name):
    call = make_call(CATALOGUE[name], StepOptions(), Shape(2, 1, 1, 2), seed=12)
    tensors = [each.detach().clone().requires_grad_() for each in leaves_of(call)]
    # As above; first derivatives are sums of more terms.
    assert torch.autograd.gradgradcheck(
        lambda *given: loss(with_leaves(call, given)), tensors, eps=1e-6, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("wanted", ["x", "states", "weights"])
def test_second_derivatives_of_part_of_the_arguments(wanted):
    """What does not need a gradient gets none, and the others' are the same."""
    call = make_call(CATALOGUE["lstm"], StepOptions(), Shape(2, 2, 2, 3))
    parts = {"x": [call.x], "states": list(call.states), "weights": list(call.weights)}
    found = []
    for runner in (run, plain_loop):
        tensors = {name: [t.detach().clone() for t in part] for name, part in parts.items()}
        for each in tensors[wanted]:
            each.requires_grad_()
        copy = replace(
            call, x=tensors["x"][0], states=tensors["states"], weights=tensors["weights"]
        )
        first = torch.autograd.grad(loss(copy, runner), tensors[wanted], create_graph=True)
        total = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(total, tensors[wanted]))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)  # as above


def test_second_derivatives_with_respect_to_what_arrives():
    """A vector-Jacobian product is linear in the vector; its derivative is the Jacobian."""
    call = make_call(CATALOGUE["gru"], StepOptions(), Shape(2, 2, 2, 3))
    x = call.x.clone().requires_grad_()
    vector = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(run(replace(call, x=x)).output, [x], [vector], create_graph=True)
    (found,) = torch.autograd.grad(first.sum(), [vector])

    def output(given):
        return run(replace(call, x=given)).output

    expected = torch.func.jacrev(output)(x.detach()).sum((3, 4, 5))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # as above


def test_third_derivatives_are_right_or_refused():
    call = make_call(CATALOGUE["elman"], StepOptions(), Shape(2, 1, 1, 1))

    def value(x, runner):
        return runner(replace(call, x=x)).output.sum()

    def third(runner):
        x = call.x.clone().requires_grad_()
        grad = value(x, runner)
        for _ in range(3):
            (grad,) = torch.autograd.grad(grad.sum(), [x], create_graph=True)
        return grad.detach()

    expected = third(plain_loop)
    assert expected.abs().max() > 1e-3
    try:
        found = third(run)
    except (RuntimeError, NotImplementedError) as error:
        assert "grad" in str(error) or "derivative" in str(error)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
