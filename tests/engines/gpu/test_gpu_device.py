"""The same comparisons on a GPU, at real sizes; without one they are skipped."""

import pytest
import torch
from engines.cases import CATALOGUE, Shape, make_call, options_for
from engines.cpu.spatial_cases import make_spatial_call
from engines.cpu.test_cpu_population import population_of
from engines.gpu.gpu_cases import FORMS, compare, compare_members, moved

import cellwright as cw
from cellwright.plan import StepOptions

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="there is no GPU: torch.cuda.is_available() is False",
)
NAMES = list(CATALOGUE)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("form", FORMS)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_cell(name, dtype, form):
    shape = Shape(20, 37, 24, 50)
    call = make_call(CATALOGUE[name], StepOptions(trace=True), shape, stacked=True)
    compare(moved(call, dtype, "cuda"), form)


@both
@pytest.mark.parametrize("option", options_for(CATALOGUE["lstm"]))
@pytest.mark.parametrize("name", ["lstm", "gru_v1", "layer_norm_lstm"])
def test_every_option(name, option, form):
    options = options_for(CATALOGUE[name])[option]
    tolerance = 2e-2 if option == "bf16" else None
    call = make_call(CATALOGUE[name], options, Shape(20, 37, 24, 50), reverse=len(option) % 2 == 0)
    compare(moved(call, torch.float32, "cuda"), form, tolerance=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [300, 768, 1024])
def test_large_sizes(hidden, dtype):
    call = make_call(CATALOGUE["lstm"], StepOptions(), Shape(30, 64, 64, hidden), stacked=True)
    compare(moved(call, dtype, "cuda"), "steps")


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "layer_norm_lstm"])
def test_a_population(name, dtype, form):
    call = make_call(CATALOGUE[name], StepOptions(reset=True), Shape(20, 3, 24, 50))
    compare_members(moved(population_of(call, 40), dtype, "cuda"), form)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("name", ["peephole_lstm", "gru_v1", "layer_norm_lstm"])
def test_convolutions(name, positional, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    spec = CATALOGUE[name]
    shape = Shape(6, 3, 8, 20)
    call = make_spatial_call(
        spec, options_for(spec)["everything"], shape, space=(17, 24), positional=positional
    )
    compare(moved(call, dtype, "cuda"), None)


@pytest.mark.parametrize("kind", ["matrices", "convolutions"])
def test_inside_a_graph_of_cuda(kind):
    """Nothing waits for the device, and no memory is taken from outside the graph's."""
    if kind == "matrices":
        layer = cw.nn.Recurrent("lstm", 32, 64, device="cuda")
        x = torch.randn(20, 8, 32, device="cuda")
    else:
        layer = cw.nn.ConvRecurrent("peephole_lstm", 8, 16, device="cuda")
        x = torch.randn(6, 2, 8, 16, 16, device="cuda")

    def train():
        y, _ = layer(x)
        return y, *torch.autograd.grad(y.sum(), list(layer.parameters()))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = train()
    x.normal_()
    graph.replay()
    for own, expected in zip(found, train(), strict=True):
        assert torch.equal(own, expected)
