"""The GPU engine against the reference engine where ``@`` is a convolution."""

import re
from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, options_for
from engines.cpu.spatial_cases import make_spatial_call
from engines.cpu.test_cpu_spatial import leaky_gates
from engines.gpu.gpu_cases import by_engine, compare, moved
from engines.gpu.test_gpu_compiled import compiled
from engines.test_backward import UNUSUAL

import cellwright as cw
from cellwright import engines
from cellwright.engines.gpu import GpuEngine, listing
from cellwright.engines.gpu import form as forms
from cellwright.engines.gpu.loops import Way
from cellwright.engines.gpu.spatial import SpatialLoops
from cellwright.errors import EngineError
from cellwright.lang import next_state
from cellwright.plan import StepOptions

SMALL = Shape(2, 2, 2, 3)
SPACE = {"space": (2, 3)}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("peephole_lstm", "everything"),
        ("gru", "zoneout, training"),
        ("gru_v1", "heads"),
        ("layer_norm_lstm", "trace"),
        ("lstm_projection", "lengths"),
        ("elman", "bf16"),
    ],
)
def test_cells_and_options(name, option):
    spec = CATALOGUE[name]
    call = make_spatial_call(
        spec, options_for(spec)[option], SMALL, reverse=len(option) % 2 == 0, **SPACE
    )
    # A last bit that differs may round to the next bfloat16: 2^-8 of a number of order 1.
    compare(call, None, tolerance=2e-2 if option == "bf16" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_in_other_formats_with_a_number_for_each_position(dtype):
    """Values of parameters alone and means over channels among them."""
    call = make_spatial_call(leaky_gates, None, SMALL, positional=True, reverse=True, **SPACE)
    compare(moved(call, dtype), None)


@pytest.mark.parametrize("name", list(UNUSUAL)[::3])
def test_unusual_cells(name):
    options = StepOptions(trace=True)
    compare(make_spatial_call(UNUSUAL[name], options, SMALL, stacked=False, **SPACE), None)


@pytest.mark.parametrize(
    ("space", "kernel", "shape"),
    [((7,), (3,), Shape(1, 1, 1, 1)), ((3, 2, 2), (3, 1, 3), SMALL), ((9, 8), (1, 5), SMALL)],
    ids=str,
)
def test_spaces(space, kernel, shape):
    """One of all; a volume; more positions than a tile has rows."""
    call = make_spatial_call(CATALOGUE["peephole_lstm"], None, shape, space=space, kernel=kernel)
    compare(call, None)


@pytest.mark.parametrize("save", ["states", "checkpoints"])
def test_what_is_computed_again(save):
    options = StepOptions(save=save)
    shape = replace(SMALL, steps=5)
    call = make_spatial_call(CATALOGUE["gru"], options, shape, reverse=save == "states", **SPACE)
    compare(call, None)


def test_states_are_not_rounded_between_steps():
    """A state of 1 to which 2^-10 is added would stand still in bfloat16."""

    @cw.cell(state="c")
    def sum_of_inputs(x, c, W):
        return next_state(c=c + W @ x)

    call = make_spatial_call(sum_of_inputs, None, Shape(64, 1, 1, 1), space=(1,), kernel=(1,))
    call = moved(call, torch.bfloat16)
    call.weights[0].fill_(1.0)
    call = replace(
        call, x=torch.full_like(call.x, 2.0**-10), states=[torch.ones_like(call.states[0])]
    )
    for keep in (False, True):
        result = GpuEngine().forward(call, keep=keep)
        assert result.states[0].item() == 1.0 + 2.0**-4
        assert {each.dtype for each in (result.output, *result.kept)} == {torch.bfloat16}


def test_nothing_that_was_given_is_changed_or_returned():
    engine, spec = GpuEngine(), CATALOGUE["peephole_lstm"]
    call = make_spatial_call(spec, options_for(spec)["everything"], Shape(1, 1, 1, 1), space=(1, 1))
    result = engine.forward(call, keep=True)
    _, _, cotangents = by_engine(engine, call)
    given = [call.x, *call.states, *call.weights, *call.streams, *result.kept]
    before = [each.clone() for each in given]
    found = engine.backward(call, result.kept, cotangents, need_x=True)
    for each, copy in zip(given, before, strict=True):
        assert torch.equal(each, copy)
    returned = [result.output, *result.states, *result.trace]
    returned += [found.x, *found.states, *found.weights]
    places = [each.untyped_storage().data_ptr() for each in (*given, *returned)]
    assert len(set(places[-len(returned) :])) == len(returned)
    assert not set(places[: len(given)]) & set(places[len(given) :])


@pytest.mark.unpoisoned("ahead-of-time tracing makes copies with torch.empty_strided")
def test_a_layer_by_autograd_and_inside_torch_compile():
    layer = cw.nn.ConvRecurrent("gru", 2, 3, dtype=torch.float64, bidirectional=True)
    x = torch.randn(2, 1, 2, 3, 2, dtype=torch.float64)
    parameters = list(layer.parameters())
    found = {}
    for name, run in (("gpu", layer), ("compiled", None), ("reference", layer)):
        run = run or torch.compile(layer, fullgraph=True, backend="aot_eager")
        with cw.engine("reference" if name == "reference" else "gpu"):
            y, _ = run(x)
            found[name] = (y, *torch.autograd.grad(y.square().sum(), parameters))
    for name in ("gpu", "compiled"):
        for own, expected in zip(found[name], found["reference"], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-11, atol=1e-12)


# --- what is chosen, told and shown --------------------------------------------------------------


def layer_signature(cell="peephole_lstm", hidden=4):
    layer = cw.nn.ConvRecurrent(cell, 3, hidden, device="meta")
    return layer.signature(0, lengths=False, reset=False, trace=False)


def test_convolutions_on_a_gpu_are_its_own_affair():
    chosen = engines.choose(layer_signature(), torch.device("cuda"), torch.float32)
    assert chosen.engine.name == "gpu"


def test_explain_tells_that_convolutions_are_torchs():
    layer, x = cw.nn.ConvRecurrent("peephole_lstm", 3, 4), torch.zeros(2, 1, 3, 2, 2)
    for form in (None, "steps"):
        with cw.engine("gpu", form=form):
            told = cw.explain(layer, x)
        assert told.engine == "gpu"
        assert told.form.startswith("steps, convolutions are torch's")
    with cw.engine("gpu", form="resident"), pytest.raises(EngineError, match="'steps' only"):
        layer(x)


def test_the_listing_shows_what_stands_between_convolutions():
    text = listing(layer_signature())
    assert "# peephole_lstm, backward: a step, part 2 of 2" in text
    assert text.count("@kernel") == 4
    assert "tl.dot" not in text


def test_the_kernels_can_be_compiled_for_an_h100():
    made = SpatialLoops(
        layer_signature(leaky_gates, 20), Way(torch.bfloat16, interpreted=False), frozenset()
    )
    inputs, step, _ = made.forward_chains(True)
    d_inputs, d_step = made.backward_chains(True)
    for segment in (*inputs, *step, *d_step, *d_inputs):
        for kernel in compiled(segment.kernels):
            found = re.findall(r"arith\.muli .*: tensor<.*(i\d+)>", kernel.asm["ttir"])
            assert set(found) == {"i64"}, kernel.metadata.name
            assert kernel.metadata.shared <= forms.HOPPER
