"""The GPU engine against the reference engine, in Triton's interpreter: every cell and option."""

from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, make_call, options_for
from engines.cpu.test_cpu_unusual_cells import CELLS
from engines.gpu.gpu_cases import FORMS, by_engine, compare, moved

import cellwright as cw
from cellwright.engines.gpu import GpuEngine
from cellwright.lang import next_state
from cellwright.plan import StepOptions

NAMES = list(CATALOGUE)
both = pytest.mark.parametrize("form", FORMS)
OPTIONS = [
    "everything", "zoneout, training", "reset to a learnt state", "lengths", "heads", "bf16",
    "recurrent_dropout", "layer_norm",
]  # fmt: skip


@both
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_every_cell_in_float64(number, form):
    shape = Shape(3, 2, 3, (5, 17)[number % 2])
    options = StepOptions(trace=True)
    compare(make_call(CATALOGUE[NAMES[number]], options, shape, seed=number), form, unkept=False)


@both
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_every_cell_with_an_option_in_float32(number, form):
    spec = CATALOGUE[NAMES[number]]
    options = options_for(spec)[OPTIONS[number % len(OPTIONS)]]
    shape = Shape(2, 3, 2, 3)
    call = make_call(spec, options, shape, reverse=number % 3 == 0, stacked=True, seed=number)
    # A last bit that differs may round to the next bfloat16: 2^-8 of a number of order 1.
    tolerance = 2e-2 if options.precision == "bf16" else None
    compare(moved(call, torch.float32), form, tolerance=tolerance)


@both
@pytest.mark.parametrize("option", options_for(CATALOGUE["lstm"]))
def test_every_option(option, form):
    name = "lstm" if len(option) % 2 else "gru_v1"
    options = options_for(CATALOGUE[name])[option]
    tolerance = 2e-2 if option == "bf16" else None
    call = make_call(CATALOGUE[name], options, Shape(3, 2, 3, 4), reverse=len(option) % 3 == 0)
    compare(call, form, unkept=False, tolerance=tolerance)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru", "layer_norm_lstm", "lstm_projection"])
def test_half_precision(name, dtype, form):
    call = make_call(CATALOGUE[name], StepOptions(trace=True), Shape(3, 2, 3, 5), stacked=True)
    compare(moved(call, dtype), form)


@both
def test_states_are_not_rounded_between_steps(form):
    """A state of 1 to which 2^-10 is added would stand still in bfloat16."""

    @cw.cell(state="c")
    def sum_of_inputs(x, c, W):
        return next_state(c=c + W @ x)

    call = moved(make_call(sum_of_inputs, StepOptions(), Shape(64, 1, 1, 1)), torch.bfloat16)
    call.weights[0].fill_(1.0)
    call = replace(
        call, x=torch.full_like(call.x, 2.0**-10), states=[torch.ones_like(call.states[0])]
    )
    result = GpuEngine(form).forward(call, keep=False)
    assert result.states[0].item() == 1.0 + 2.0**-4


@both
@pytest.mark.parametrize("number", range(len(CELLS)), ids=list(CELLS))
def test_unusual_cells(number, form):
    name = list(CELLS)[number]
    options = StepOptions(trace=True, lengths=len(name) % 3 == 0)
    call = make_call(CELLS[name], options, Shape(2, 2, 3, 4), reverse=len(name) % 2 == 0)
    compare(call, form, unkept=False)


@both
@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 1, 1, 1),
        Shape(2, 2, 0, 3),
        Shape(3, 17, 2, 16),
        Shape(2, 1, 3, 33),
        Shape(2, 3, 70, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["lstm", "lstm_projection"])
def test_edges_of_tiles(name, shape, form):
    compare(make_call(CATALOGUE[name], StepOptions(), shape), form, unkept=False)


def test_blocks_of_units_and_of_an_operand():
    """More units than a program computes (32), and than it reads at a time (64)."""
    call = make_call(CATALOGUE["gru_v1"], StepOptions(), Shape(2, 2, 2, 70))
    compare(call, "steps", unkept=False)
    options = StepOptions(layer_norm=True, heads=2)
    compare(make_call(CATALOGUE["lstm"], options, Shape(2, 2, 2, 35)), "steps", unkept=False)


@both
def test_the_same_numbers_again_and_in_parts_of_a_batch(form):
    """Nothing depends on what else is in a batch, nor on the run."""
    engine = GpuEngine(form)
    call = make_call(CATALOGUE["gru_v1"], StepOptions(), Shape(3, 18, 3, 5))
    first, of_first, cotangents = by_engine(engine, call)
    again, of_again, _ = by_engine(engine, call, cotangents)
    for one, other in ((first, again), (of_first, of_again)):
        assert all(torch.equal(one[name], other[name]) for name in one)
    some = replace(call, x=call.x[:, 5:9], states=[each[5:9] for each in call.states])
    part = engine.forward(some, keep=False)
    # The products with x are torch's, which may add in another order for another shape.
    torch.testing.assert_close(part.output, first["output"][:, 5:9], rtol=1e-14, atol=1e-15)


@both
@pytest.mark.parametrize("save", ["states", "checkpoints"])
def test_what_is_computed_again_is_the_same(save, form):
    options = StepOptions(save=save, trace=True)
    call = make_call(CATALOGUE["gru_v1"], options, Shape(7, 2, 3, 5), reverse=save == "states")
    compare(call, form)


@both
def test_the_gradients_of_weights_are_left_out(form):
    engine = GpuEngine(form)
    call = make_call(CATALOGUE["gru"], StepOptions(), Shape(3, 2, 4, 5))
    _, gradients, cotangents = by_engine(engine, call)
    kept = engine.forward(call, keep=True).kept
    found = engine.backward(call, kept, cotangents, need_x=True, need_weights=False)
    assert found.weights == []
    assert torch.equal(found.x, gradients["d x"])


@both
def test_the_gradient_of_x_is_left_out_and_the_others_stay(form):
    engine = GpuEngine(form)
    call = make_call(CATALOGUE["gru"], StepOptions(trace=True), Shape(3, 2, 4, 5))
    _, gradients, cotangents = by_engine(engine, call)
    kept = engine.forward(call, keep=True).kept
    found = engine.backward(call, kept, cotangents, need_x=False)
    assert found.x is None
    for place in call.signature.slices:
        value = found.weights[place.tensor][place.start : place.stop]
        assert torch.equal(value, gradients[f"d {place.parameter}"])


@both
def test_nothing_that_was_given_is_changed_or_returned(form):
    engine, spec = GpuEngine(form), CATALOGUE["elman"]
    call = make_call(spec, options_for(spec)["everything"])
    result = engine.forward(call, keep=True)
    given = [call.x, *call.states, *call.weights, *call.streams, *result.kept]
    before = [each.clone() for each in given]
    _, _, cotangents = by_engine(engine, call)
    gradients = engine.backward(call, result.kept, cotangents, need_x=True)
    for each, copy in zip(given, before, strict=True):
        assert torch.equal(each, copy)
    assert engine.fresh
    found = [result.output, *result.states, *result.trace, *result.kept]
    found += [gradients.x, *gradients.states, *gradients.weights]
    places = [each.untyped_storage().data_ptr() for each in (*found, *given[: -len(result.kept)])]
    assert len(places) == len(set(places))
    assert not any(each._is_view() for each in found)
