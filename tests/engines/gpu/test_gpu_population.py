"""Populations on the GPU engine: every member as it is alone, for results and for gradients."""

from dataclasses import replace

import pytest
import torch
from engines.cases import (
    CATALOGUE,
    Shape,
    assert_same,
    draw_cotangents,
    make_call,
    options_for,
)
from engines.cpu.test_cpu_population import population_of
from engines.gpu.gpu_cases import FORMS, compare_members, moved, of_members

import cellwright as cw
from cellwright.engines import Cotangents
from cellwright.engines.gpu import GpuEngine
from cellwright.engines.gpu.loops import Loop
from cellwright.plan import StepOptions

MEMBERS = 3
SMALL = Shape(2, 2, 3, 4)
both = pytest.mark.parametrize("form", FORMS)


@both
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("lstm", "everything"),
        ("gru_v1", "heads"),
        ("layer_norm_lstm", "zoneout, training"),
        ("lstm_projection", "reset to a learnt state"),
    ],
)
def test_members_are_what_they_are_alone(name, option, form):
    spec = CATALOGUE[name]
    call = make_call(spec, options_for(spec)[option], SMALL, reverse=len(option) % 2 == 0)
    compare_members(population_of(call, MEMBERS), form)


@pytest.mark.parametrize(
    ("dtype", "form"), [(torch.float32, "resident"), (torch.bfloat16, "steps")], ids=str
)
def test_in_other_formats(dtype, form):
    """Values in working memory too: they have members in the dtype of the arithmetic."""
    call = make_call(CATALOGUE["gru_v1"], StepOptions(trace=True), SMALL, stacked=True)
    compare_members(moved(population_of(call, MEMBERS), dtype), form)


@both
def test_values_of_parameters_alone_and_more_rows_than_a_tile(form):
    @cw.cell(state="h")
    def leaky(x, h, W, U, v):
        keep = cw.sigmoid(v.decay)
        return cw.next_state(h=keep * h + (1 - keep) * cw.tanh(W @ x + U @ h))

    compare_members(population_of(make_call(leaky, None, Shape(2, 67, 2, 3)), 2), form)


@pytest.mark.parametrize(("save", "form"), [("states", "steps"), ("checkpoints", "resident")])
def test_what_is_computed_again(save, form):
    options = StepOptions(save=save, trace=True)
    call = make_call(CATALOGUE["gru"], options, Shape(5, 2, 3, 4), reverse=save == "states")
    compare_members(population_of(call, 2), form)


@pytest.mark.parametrize(
    ("shared", "form"),
    [("x", "steps"), ("states", "resident"), ("weights", "steps"), ("streams", "resident"),
     ("all", "resident"), ("all", "steps")],
)  # fmt: skip
def test_what_members_share_lies_in_memory_once(shared, form):
    options = StepOptions(reset=True, recurrent_dropout=0.4)
    population = population_of(make_call(CATALOGUE["lstm"], options, SMALL, stacked=True), MEMBERS)
    for part in ("x", "states", "weights", "streams") if shared == "all" else (shared,):
        held = getattr(population, part)
        same = [each[:1].expand(each.shape) for each in ([held] if part == "x" else held)]
        population = replace(population, **{part: same[0] if part == "x" else same})
    compare_members(population, form)


@pytest.mark.parametrize(
    ("turned", "form"), [("members", "resident"), ("batch", "steps"), ("units", "steps")]
)
def test_tensors_may_lie_in_memory_in_any_order(turned, form):
    population = population_of(make_call(CATALOGUE["gru"], None, SMALL), MEMBERS)

    def other(each):
        axis = {"members": 0, "batch": 1, "units": each.dim() - 1}[turned]
        return each.movedim(axis, -2).contiguous().movedim(-2, axis)

    another = replace(
        population, x=other(population.x), states=[*map(other, population.states)],
        weights=[*map(other, population.weights)],
    )  # fmt: skip
    expected = of_members(GpuEngine(form), population)
    found = of_members(GpuEngine(form), another, expected[2])
    assert_same(found[0], expected[0], 1e-14, turned)
    assert_same(found[1], expected[1], 1e-14, turned)


def test_gradients_that_are_the_same_for_all():
    form = "resident"
    population = population_of(make_call(CATALOGUE["lstm"], None, SMALL), MEMBERS)
    result = GpuEngine(form).forward(population, keep=False)
    ones = Cotangents(
        torch.ones((), dtype=torch.float64).expand_as(result.output),
        [torch.zeros((), dtype=torch.float64).expand_as(each) for each in result.states],
        [],
    )
    compare_members(population, form, ones)


def test_only_what_is_asked_for_and_nothing_changed():
    engine = GpuEngine("steps")
    population = population_of(make_call(CATALOGUE["lstm"], StepOptions(reset=True), SMALL), 2)
    given = [population.x, *population.states, *population.weights, *population.streams]
    before = [each.clone() for each in given]
    result = engine.forward(population, keep=True)
    cotangents = draw_cotangents(result)
    whole = engine.backward(population, result.kept, cotangents, need_x=True)
    part = engine.backward(population, result.kept, cotangents, need_x=False, need_weights=False)
    assert part.x is None and part.weights == []
    assert all(map(torch.equal, part.states, whole.states))
    assert all(map(torch.equal, given, before))
    found = [result.output, *result.states, whole.x, *whole.states, *whole.weights]
    assert not any(each._is_view() for each in found)


# --- through torch.func --------------------------------------------------------------------------


def ensemble(count, **options):
    layers = [cw.nn.LSTM(3, 4, dtype=torch.float64, **options) for _ in range(count)]
    weights, _ = torch.func.stack_module_state(layers)
    return layers, {name: value.detach() for name, value in weights.items()}


@pytest.mark.parametrize(("count", "form"), [(0, "steps"), (1, "resident"), (2, "steps")])
def test_an_ensemble_of_layers_in_both_directions(count, form):
    torch.manual_seed(0)
    layers, weights = ensemble(2, bidirectional=True)
    weights = {name: value[:count] for name, value in weights.items()}
    x = torch.randn(2, 2, 3, dtype=torch.float64)

    def loss(own, x):
        return torch.func.functional_call(layers[0], own, (x,))[0].square().sum()

    with cw.engine("gpu", form=form):
        found = torch.func.vmap(torch.func.grad(loss), (0, None))(weights, x)
    for number in range(count):
        with cw.engine("reference"):
            expected = torch.func.grad(loss)({n: v[number] for n, v in weights.items()}, x)
        for name, value in expected.items():
            torch.testing.assert_close(found[name][number], value, rtol=1e-11, atol=1e-12)
    assert all(value.shape == weights[name].shape for name, value in found.items())


@pytest.fixture
def launched(monkeypatch):
    """The calls whose loops are run."""
    found, original = [], Loop.run

    def run(loop, call, arrays):
        found.append(call)
        return original(loop, call, arrays)

    monkeypatch.setattr(Loop, "run", run)
    return found


@pytest.mark.parametrize("train", [False, True])
def test_a_population_is_one_launch(train, launched):
    """However many members there are; training takes one more for the gradient."""
    layers, weights = ensemble(5)
    weights = {name: value.requires_grad_(train) for name, value in weights.items()}
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    with cw.engine("gpu"):
        y = torch.func.vmap(lambda own: torch.func.functional_call(layers[0], own, (x,))[0])(
            weights
        )
        if train:
            y.sum().backward()
    assert [call.population for call in launched] == [5] * (1 + train)


def test_the_same_weights_are_a_batch(launched):
    (layer,), _ = ensemble(1)
    with cw.engine("gpu"):
        torch.func.vmap(lambda x: layer(x)[0])(torch.randn(4, 2, 3, 3, dtype=torch.float64))
    (call,) = launched
    assert call.population is None
    assert call.x.shape == (2, 12, 3)


def test_explain_tells_the_population():
    layer = cw.nn.LSTM(3, 4)
    told = []

    class Explained(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            told.append(cw.explain(self.layer, x))
            return self.layer(x)[0]

    module = Explained()
    weights, _ = torch.func.stack_module_state([module] * 3)
    with cw.engine("gpu", form="steps"):
        torch.func.vmap(lambda own: torch.func.functional_call(module, own, torch.zeros(2, 1, 3)))(
            weights
        )
    assert told[0].engine == "gpu"
    assert told[0].form.startswith("steps")
    assert "a population: 3 sets of weights" in told[0].reason
