"""The CPU engine against the reference engine where ``@`` is a convolution."""

from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, options_for
from engines.cpu.cpu_cases import (
    ENGINE,
    assert_equal,
    by_cpu,
    by_reference,
    cast,
)
from engines.cpu.spatial_cases import make_spatial_call
from engines.cpu.test_cpu_cells import compare
from engines.test_backward import UNUSUAL

import cellwright as cw
from cellwright import sigmoid, tanh
from cellwright.engines import Cotangents
from cellwright.engines.cpu import sharing, spatial, spatial_backward, threads
from cellwright.engines.cpu.spatial_kernels import BACKEND
from cellwright.plan import StepOptions

F32, F64 = torch.float32, torch.float64
every_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=str)
EVERY_OPTION = [name for name in options_for(CATALOGUE["lstm"]) if name != "bf16"]
SMALL = Shape(3, 2, 3, 4)


@cw.cell(state=("h", "c"))
def leaky_gates(x, h, c, W, U, V, b, a):
    """Convolutions on computed values, a leak from parameters, a mean over channels."""
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    n = tanh(W.n @ x + U.n @ (r * h) + V.n * c + b.n)
    leak = sigmoid(a)
    c = leak * c + (1.0 - leak) * n * cw.mean(n * h)
    h = tanh(c + U.c @ (n - c))
    return cw.next_state(h=h, c=c, watch=dict(r=r, n=n))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_cell(name):
    """Each with its states and gates traced in one format, with all options in the other."""
    spec, reverse = CATALOGUE[name], len(name) % 2 == 1
    traced = make_spatial_call(spec, StepOptions(trace=True), SMALL, reverse=reverse)
    compare(cast(traced, F64 if reverse else F32))
    everything = options_for(spec)["everything"]
    call = make_spatial_call(spec, everything, SMALL, reverse=not reverse, stacked=reverse)
    compare(cast(call, F32 if reverse else F64))


@pytest.mark.parametrize("option", EVERY_OPTION)
@pytest.mark.parametrize("spec", [CATALOGUE["peephole_lstm"], leaky_gates], ids=lambda s: s.name)
def test_every_option(spec, option):
    compare(make_spatial_call(spec, options_for(spec)[option], SMALL, reverse=True))


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_cells(name, positional):
    """Products of parameters alone, comparisons, values with one number a position."""
    call = make_spatial_call(
        UNUSUAL[name], StepOptions(trace=True), SMALL, positional=positional, stacked=False
    )
    compare(call)


SPACES = {
    "line": ((7,), (3,)),
    "long line": ((131,), (5,)),
    "unlike kernel": ((5, 4), (1, 5)),
    "pointwise kernel": ((3, 3), (1, 1)),
    "kernel beyond the image": ((2, 1), (5, 3)),
    "one position": ((1, 1), (3, 3)),
    "volume": ((3, 2, 5), (3, 1, 3)),
}


@every_dtype
@pytest.mark.parametrize("extents", SPACES)
def test_spaces(extents, dtype):
    space, kernel = SPACES[extents]
    spec = CATALOGUE["peephole_lstm"]
    call = make_spatial_call(spec, None, SMALL, space=space, kernel=kernel)
    compare(cast(call, dtype))


@pytest.mark.parametrize(
    ("name", "dtype"), [("peephole_lstm", F32), ("gru_v1", F64), ("layer_norm_lstm", F32)]
)
@pytest.mark.parametrize(
    "shape", [Shape(1, 1, 1, 1), Shape(1, 3, 2, 17), Shape(4, 1, 1, 33)], ids=str
)
def test_shapes(name, shape, dtype):
    """One step, one sequence, one channel; channels that fill a vector or two and one lane."""
    for reverse in (False, True):
        compare(cast(make_spatial_call(CATALOGUE[name], None, shape, reverse=reverse), dtype))


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [(CATALOGUE["peephole_lstm"], F64), (leaky_gates, F32)],
    ids=["lstm", "leaky"],
)
def test_vectors_with_a_number_for_each_position(spec, dtype):
    options = options_for(spec)["everything"]
    for call in (
        make_spatial_call(spec, None, SMALL, positional=True),
        make_spatial_call(spec, options, SMALL, positional=True, reverse=True),
    ):
        compare(cast(call, dtype))


def test_inputs_that_do_not_lie_in_order():
    call = make_spatial_call(CATALOGUE["lstm"], None, SMALL)
    results, gradients, cotangents = by_cpu(call)

    def scattered(each):
        return each.transpose(0, -1).contiguous().transpose(0, -1)

    other = replace(
        call,
        x=scattered(call.x),
        states=[*map(scattered, call.states)],
        weights=[*map(scattered, call.weights)],
    )
    assert not any(v.is_contiguous() for v in (other.x, *other.states))
    arriving = Cotangents(
        scattered(cotangents.output), [*map(scattered, cotangents.states)], cotangents.trace
    )
    result = ENGINE.forward(other, keep=True)
    found = ENGINE.backward(other, result.kept, arriving, need_x=True)
    torch.testing.assert_close(result.output, results["output"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.x, gradients["d x"], rtol=1e-12, atol=1e-12)


def test_without_the_gradient_of_x():
    call = make_spatial_call(CATALOGUE["gru_v1"], None, SMALL)
    result = ENGINE.forward(call, keep=True)
    _, gradients, cotangents = by_cpu(call)
    found = ENGINE.backward(call, result.kept, cotangents, need_x=False)
    assert found.x is None
    for place in call.signature.slices:
        value = found.weights[place.tensor][place.start : place.stop]
        torch.testing.assert_close(value, gradients[f"d {place.parameter}"], rtol=0, atol=1e-12)


def test_kept_values_in_any_layout():
    """Inside a compiled program torch hands them back contiguous, as a layer has them."""
    call = make_spatial_call(CATALOGUE["lstm"], StepOptions(trace=True), SMALL)
    _, gradients, cotangents = by_cpu(call)
    result = ENGINE.forward(call, keep=True)
    kept = [each.clone(memory_format=torch.contiguous_format) for each in result.kept]
    found = ENGINE.backward(call, kept, cotangents, need_x=True)
    torch.testing.assert_close(found.x, gradients["d x"], rtol=1e-12, atol=1e-12)


def test_nothing_that_was_given_is_changed_or_returned():
    """One channel, one position: where a copy is easily forgotten."""
    spec = CATALOGUE["peephole_lstm"]
    for shape, space in ((SMALL, (4, 5)), (Shape(1, 1, 1, 1), (1, 1))):
        call = make_spatial_call(spec, options_for(spec)["everything"], shape, space=space)
        _, _, cotangents = by_cpu(call)
        result = ENGINE.forward(call, keep=True)
        given = [call.x, *call.states, *call.weights, *call.streams, *result.kept]
        given += [cotangents.output, *cotangents.states, *cotangents.trace]
        before = [each.clone() for each in given]
        found = ENGINE.backward(call, result.kept, cotangents, need_x=True)
        for each, copy in zip(given, before, strict=True):
            assert torch.equal(each, copy)
        returned = [result.output, *result.states, *result.trace]
        returned += [found.x, *found.states, *found.weights]
        places = [v.untyped_storage().data_ptr() for v in (*given, *returned)]
        assert len(set(places[-len(returned) :])) == len(returned)
        assert not set(places[: len(given)]) & set(places[len(given) :])
        assert not any(each._is_view() for each in returned)


# --- the same bits ------------------------------------------------------------------------------


@pytest.fixture
def convolutions_on_one_thread(monkeypatch):
    """Torch's sums may depend on the number of threads; what is compiled here does not."""
    for module, name in ((spatial, "convolve"), (spatial_backward, "gradient")):
        original = getattr(module, name)

        def alone(*arguments, original=original):
            team = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return original(*arguments)
            finally:
                torch.set_num_threads(team)

        monkeypatch.setattr(module, name, alone)


@pytest.mark.parametrize(("name", "dtype"), [("peephole_lstm", F64), ("layer_norm_lstm", F32)])
def test_any_number_of_threads(name, dtype, monkeypatch, convolutions_on_one_thread):
    spec = CATALOGUE[name]
    call = make_spatial_call(spec, options_for(spec)["everything"], Shape(4, 3, 3, 9))
    call = cast(call, dtype)
    results, gradients, cotangents = by_cpu(call)
    monkeypatch.setattr(sharing, "POINTWISE_ALONE_BELOW", 0)
    teams, original = set(), threads.launch

    def launch(address, arguments, rows, how, team):
        teams.add((how, team))
        original(address, arguments, rows, how, team)

    monkeypatch.setattr(threads, "launch", launch)
    for team in (2, 3):
        torch.set_num_threads(team)
        found = by_cpu(call, cotangents)
        assert (threads.ROWS, team) in teams
        assert_equal(found[0], results, f"{team} threads")
        assert_equal(found[1], gradients, f"{team} threads")


@every_dtype
def test_any_width_of_vectors(dtype, monkeypatch):
    spec = CATALOGUE["peephole_lstm"]
    call = cast(make_spatial_call(spec, options_for(spec)["everything"], SMALL), dtype)
    results, gradients, cotangents = by_cpu(call)
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "avx2")
    found = by_cpu(call, cotangents)
    assert_equal(found[0], results, "AVX2")
    assert_equal(found[1], gradients, "AVX2")


# --- what the compiled parts are ------------------------------------------------------------------


@cw.cell(state=("h", "c"))
def gates_in_order(x, h, c, W, U, b):
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = f * c + (1.0 - f) * g
    return cw.next_state(h=tanh(c), c=c)


def test_all_gates_are_one_convolution():
    """Where a layer stores them one after the other, as ``nn.ConvRecurrent`` does."""
    layer = cw.nn.ConvRecurrent(gates_in_order, 3, 4)
    call = layer_call(layer)
    kernels = spatial.SpatialRun(call, BACKEND).code
    _, loop, _ = kernels.forward_chains(True)
    (segment,) = loop
    assert sorted(each.ahead for each in segment.convolutions) == [False, True]
    assert {each.weight.stop - each.weight.start for each in segment.convolutions} == {8}
    inputs, loop = kernels.backward_chains(True)
    for chain in (inputs, loop):
        (found,) = [each for segment in chain for each in segment.convolutions]
        assert found.transposed
        assert found.channels == 8
    assert len(kernels.jobs(True)) == 2


def layer_call(layer):
    """A call of a layer's first recurrence."""
    signature = layer.signature(0, lengths=False, reset=False, trace=False)
    call = make_spatial_call(gates_in_order, None, SMALL)
    weights = [each.detach().double() for each in layer.layer_weights(0, 0)]
    return replace(call, signature=signature, weights=weights)


def test_the_reference_engine_sees_what_is_wrong():
    """The comparison notices a kernel that is turned round."""
    call = make_spatial_call(CATALOGUE["elman"], None, SMALL)
    _, _, cotangents = by_cpu(call)
    flipped = [w.flip(2, 3) if w.dim() == 4 else w for w in call.weights]
    results, _ = by_reference(replace(call, weights=flipped), cotangents)
    found = ENGINE.forward(call, keep=False)
    assert not torch.allclose(found.output, results["output"], rtol=1e-3, atol=1e-3)
