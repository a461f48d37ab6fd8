"""The recurrence as an operator of torch: registered rightly, and a good citizen."""

from dataclasses import replace

import pytest
import torch
from engines.cases import (
    CATALOGUE,
    Shape,
    assert_same,
    by_autograd,
    by_the_plan,
    draw_cotangents,
    make_call,
    options_for,
    results_of,
)
from engines.test_backward import UNUSUAL

from cellwright.engines import run
from cellwright.plan import StepOptions

SMALL = Shape(3, 2, 3, 4)


def arguments(call, *, keep=True):
    """The operator's arguments, everything that is a number with a gradient."""

    def leaf(v):
        return v.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    return (
        leaf(call.x), [*map(leaf, call.states)], [*map(leaf, call.weights)], list(call.streams),
        call.signature.text, call.reverse, keep, "reference",
    )  # fmt: skip


def turned(call):
    """The same call with x and states in another order in memory."""
    x = call.x.transpose(0, 1).contiguous().transpose(0, 1)
    return replace(call, x=x, states=[each.T.contiguous().T for each in call.states])


EVERYTHING = options_for(CATALOGUE["lstm"])["everything"]
CALLS = {
    "plain": lambda: make_call(CATALOGUE["lstm"], None, SMALL),
    "everything": lambda: make_call(CATALOGUE["lstm"], EVERYTHING, SMALL, reverse=True),
    "a comparison is saved": lambda: make_call(UNUSUAL["chosen_by_a_product"], None, SMALL),
    "numbers are traced": lambda: make_call(
        UNUSUAL["watched_are_numbers_and_states"], StepOptions(trace=True), SMALL
    ),
    "another order in memory": lambda: turned(make_call(CATALOGUE["gru_v1"], None, SMALL)),
}


@pytest.mark.parametrize("which", CALLS)
def test_the_operator_is_registered_as_torch_asks(which):
    """Schema, fake kernel (shapes, dtypes, strides), autograd, and ahead-of-time tracing."""
    operator = torch.ops.cellwright.recurrence.default
    found = torch.library.opcheck(operator, arguments(CALLS[which]()))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("which", CALLS)
def test_the_gradient_operator_is_registered_as_torch_asks(which):
    call = CALLS[which]()
    x, states, weights, streams, signature, reverse, _, engine = arguments(call)
    outputs = torch.ops.cellwright.recurrence(
        x, states, weights, streams, signature, reverse, True, engine
    )
    trace = len(call.signature.plan.forward.trace)
    ends = 1 + len(states)
    kept = [each.detach() for each in outputs[ends + trace :]]
    d_output, *rest = (torch.randn_like(each) for each in outputs[: ends + trace])
    operator = torch.ops.cellwright.recurrence_backward.default
    given = (
        d_output, rest[: len(states)], rest[len(states) :], x.detach(),
        [each.detach() for each in states], [each.detach() for each in weights], streams, kept,
        signature, reverse, True, engine,
    )  # fmt: skip
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    found = torch.library.opcheck(operator, given, test_utils=checks)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["lstm", "slstm", "layer_norm_lstm", "mingru"])
def test_the_operator_yields_what_the_engine_does(name):
    call = make_call(CATALOGUE[name], StepOptions(trace=True), SMALL)
    results, gradients, cotangents = by_the_plan(call)
    others, of_others = by_autograd(call, cotangents, run)
    assert_same(others, results, 0.0)
    assert_same(of_others, gradients, 0.0)


@pytest.mark.parametrize("name", ["becomes_a_parameter", "exchange", "one_value_for_two"])
@pytest.mark.parametrize("batch", [1, 2])
def test_outputs_lie_in_memory_of_their_own(name, batch):
    call = make_call(UNUSUAL[name], StepOptions(trace=True), Shape(2, batch, 2, 3))
    result = run(call)
    given = [call.x, *call.states, *call.weights]
    places = [
        each.untyped_storage().data_ptr()
        for each in (result.output, *result.states, *result.trace, *given)
    ]
    assert len(places) == len(set(places))


def test_nothing_is_kept_without_gradients():
    call = make_call(CATALOGUE["lstm"], None, SMALL)
    results = 1 + len(call.states)
    for keep, count in ((False, results), (True, results + 2 + 4)):
        outputs = torch.ops.cellwright.recurrence(*arguments(call, keep=keep))
        assert results <= len(outputs) <= count
        assert (len(outputs) > results) == keep
    x = call.x.clone().requires_grad_()
    with torch.no_grad():
        assert not run(replace(call, x=x)).output.requires_grad
    assert run(replace(call, x=x)).output.requires_grad


@pytest.mark.parametrize("part", ["output", "states", "trace"])
def test_only_part_of_the_results_may_be_used(part):
    """What is not used counts as a gradient of zero."""
    call = make_call(CATALOGUE["lstm"], StepOptions(trace=True), SMALL)
    x = call.x.clone().requires_grad_()
    result = run(replace(call, x=x))
    used = getattr(result, part)
    used = used if part == "output" else used[-1]
    (found,) = torch.autograd.grad(used.square().sum(), [x])
    zero = draw_cotangents(result)
    zero = replace(
        zero,
        output=zero.output * 0,
        states=[v * 0 for v in zero.states],
        trace=[v * 0 for v in zero.trace],
    )
    arriving = 2 * used.detach()
    if part == "output":
        zero = replace(zero, output=arriving)
    else:
        zero = replace(zero, **{part: [*getattr(zero, part)[:-1], arriving]})
    _, gradients, _ = by_the_plan(call, zero)
    assert torch.equal(found, gradients["d x"])


def test_backward_may_run_twice():
    call = make_call(CATALOGUE["gru"], None, SMALL)
    x = call.x.clone().requires_grad_()
    total = run(replace(call, x=x)).output.sum()
    (first,) = torch.autograd.grad(total, [x], retain_graph=True)
    (second,) = torch.autograd.grad(total, [x])
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, [x])


def test_a_weight_that_changes_before_backward_is_noticed():
    call = make_call(CATALOGUE["lstm"], None, SMALL)
    weights = [each.clone().requires_grad_() for each in call.weights]
    total = run(replace(call, weights=weights)).output.sum()
    with torch.no_grad():
        weights[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_under_torch_func_the_numbers_are_the_same():
    call = make_call(CATALOGUE["lstm"], StepOptions(trace=True), SMALL)
    expected = results_of(run(call), call)

    def inside(x):
        found = results_of(run(replace(call, x=x)), call)
        return found["output"].sum(), found

    _, (_, found) = torch.func.grad_and_value(inside, has_aux=True)(call.x)
    assert_same(found, expected, 0.0)


def test_a_copy_on_the_meta_device_has_the_same_shapes():
    call = make_call(CATALOGUE["lstm_projection"], StepOptions(trace=True), SMALL)

    def meta(tensors):
        return [each.to("meta") for each in tensors]

    abstract = replace(
        call, x=call.x.to("meta"), states=meta(call.states), weights=meta(call.weights)
    )
    found, expected = results_of(run(abstract), call), results_of(run(call), call)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        assert found[name].device.type == "meta"
