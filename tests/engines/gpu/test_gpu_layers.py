"""Layers on the GPU engine: which form runs, what it says, gradients through torch."""

from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, make_call
from engines.gpu.gpu_cases import FORMS

import cellwright as cw
from cellwright import engines
from cellwright.engines.gpu import GpuEngine
from cellwright.engines.gpu import form as forms
from cellwright.engines.gpu.loops import precision
from cellwright.errors import EngineError, UsageError
from cellwright.plan import StepOptions

CPU, CUDA, META = (torch.device(each) for each in ("cpu", "cuda", "meta"))
both = pytest.mark.parametrize("form", FORMS)


def signature(name="lstm", hidden=5, **options):
    return make_call(CATALOGUE[name], StepOptions(**options), Shape(2, 2, 3, hidden)).signature


def chosen(hidden, dtype=torch.float32, name="lstm", **options):
    return forms.choose(signature(name, hidden, **options).text, dtype, forms.HOPPER)


# --- which engine ------------------------------------------------------------------------------


def test_it_is_never_chosen_for_a_cpu_by_itself():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert engines.choose(signature(), CPU, dtype).engine.name != "gpu"
    with cw.engine("gpu"):
        assert engines.choose(signature(), CPU, torch.float32).engine.name == "gpu"


def test_it_runs_on_a_cpu_only_with_the_interpreter_asked_for(monkeypatch):
    monkeypatch.delenv("CELLWRIGHT_INTERPRET")
    with cw.engine("gpu"), pytest.raises(EngineError, match="CELLWRIGHT_INTERPRET=1"):
        engines.choose(signature(), CPU, torch.float32)


def test_it_says_what_it_cannot_run():
    engine = GpuEngine()
    assert engine.objection(signature(), CUDA, torch.float32) is None
    assert engine.objection(signature(), CUDA, torch.bfloat16) is None
    assert "float64" in engine.objection(signature(), CUDA, torch.float64)
    assert "complex64" in engine.objection(signature(), CUDA, torch.complex64)
    assert "meta" in engine.objection(signature(), META, torch.float32)
    spatial = replace(signature(), spatial=2)
    assert engine.objection(spatial, CUDA, torch.float32) is None
    assert "convolution" in GpuEngine("resident").objection(spatial, CUDA, torch.float32)


def test_tensors_on_a_gpu_are_its_own_affair():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert engines.choose(signature(), CUDA, dtype).engine.name == "gpu"
    assert engines.choose(signature(), CUDA, torch.float64).engine.name == "reference"


# --- which form --------------------------------------------------------------------------------


def test_small_weights_stay_on_chip():
    assert chosen(64).name == chosen(128, torch.bfloat16).name == "resident"
    assert chosen(128).name == chosen(256, torch.bfloat16).name == "steps"
    assert "64 KiB" in chosen(64).reason
    assert "256 KiB" in chosen(128).reason


def test_a_head_counts_by_itself_unless_something_joins_them():
    assert chosen(64, heads=12).name == "resident"
    assert "of a head" in chosen(64, heads=12).reason
    assert chosen(64, heads=12, layer_norm=True).name == "steps"


def test_explain_tells_the_form():
    layer, x = cw.nn.Recurrent("lstm", 3, 5), torch.zeros(2, 2, 3)
    with cw.engine("gpu"):
        told = cw.explain(layer, x)
        assert told.engine == "gpu"
        assert told.form.startswith("resident")
        assert told.form in str(told)
    with cw.engine("gpu", form="steps"):
        told = cw.explain(layer, x)
        assert told.engine == "gpu"
        assert told.form.startswith("steps")
        assert 'form="steps"' in told.reason
    with cw.engine("cpu"):
        assert cw.explain(layer, x).form == ""


def test_products_of_rounded_numbers_are_told():
    layer = cw.nn.Recurrent("lstm", 3, 5, precision="bf16")
    with cw.engine("gpu"):
        assert "rounded to bfloat16" in cw.explain(layer, torch.zeros(2, 2, 3)).reason


def test_a_form_that_is_not_there_is_a_usage_error():
    with pytest.raises(UsageError, match="'resident', 'steps', got 'barrier'"):
        cw.engine("gpu", form="barrier").__enter__()
    with pytest.raises(UsageError, match="only one form"):
        cw.engine("reference", form="steps").__enter__()


def test_float32_products_are_as_torch_is_told(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert precision(torch.float32) == "ieee"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert precision(torch.float32) == "tf32"
    assert precision(torch.float64) == "ieee"


# --- through torch -----------------------------------------------------------------------------


@both
def test_finite_differences(form):
    layer = cw.nn.Recurrent("gru_v1", 2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    with cw.engine("gpu", form=form):
        assert torch.autograd.gradcheck(lambda v: layer(v)[0], (x,))


@both
def test_two_layers_in_both_directions_with_lengths_and_resets(form):
    torch.manual_seed(0)
    layer = cw.nn.Recurrent("lstm", 3, 5, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(4, 3) < 0.3
    found = []
    for name, which in (("gpu", form), ("reference", None)):
        with cw.engine(name, form=which):
            y, state, trace = layer(x, lengths=[4, 2, 0], reset=reset, trace=True)
        values = [y, *state, *trace.values()]
        gradients = torch.autograd.grad(
            sum(v.square().sum() for v in values), [x, *layer.parameters()]
        )
        found.append([*values, *gradients])
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["torch's", "matrices", "convolutions"])
def test_autocast_rounds_no_product(kind):
    """A layer keeps its own dtype; torch's LSTM gives its results in autocast's."""
    shape = (2, 1, 2, 2, 3) if kind == "convolutions" else (2, 2, 2)
    layer = {
        "torch's": lambda: cw.nn.LSTM(2, 3),
        "matrices": lambda: cw.nn.Recurrent("gru", 2, 3),
        "convolutions": lambda: cw.nn.ConvRecurrent("gru", 2, 3),
    }[kind]()
    x, parameters = torch.randn(shape), list(layer.parameters())
    with cw.engine("gpu"):
        expected, _ = layer(x)
        wanted = torch.autograd.grad(expected.sum(), parameters)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = layer(x)
            found = torch.autograd.grad(y.float().sum(), parameters)
    assert y.dtype == (torch.bfloat16 if kind == "torch's" else torch.float32)
    for own, other in zip((y, *found), (expected, *wanted), strict=True):
        assert torch.equal(own, other.to(own.dtype))


def test_a_step_is_the_sequence_of_one():
    layer = cw.nn.Recurrent("gru", 3, 5, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    with torch.no_grad(), cw.engine("gpu"):
        y, _ = layer(x)
        state = None
        for t in range(3):
            y_t, state = layer.step(x[t], state)
            torch.testing.assert_close(y_t, y[t], rtol=1e-13, atol=1e-14)


@pytest.mark.unpoisoned("ahead-of-time tracing makes copies with torch.empty_strided")
def test_one_node_under_torch_compile():
    layer = cw.nn.Recurrent("lstm", 3, 5)
    x = torch.randn(3, 2, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with cw.engine("gpu"):
        y, _ = compiled(x)
        expected, _ = layer(x)
        found = torch.autograd.grad(y.sum(), list(layer.parameters()))
        wanted = torch.autograd.grad(expected.sum(), list(layer.parameters()))
    for own, other in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(own, other)
