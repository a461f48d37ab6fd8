"""Calls side by side: every one has the bits that it has by itself."""

from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, draw_cotangents, gradients_of, make_call, results_of
from engines.cpu.cpu_cases import ENGINE, assert_equal, by_engine, guarded
from engines.cpu.test_cpu_bits import Launches, every_call
from engines.cpu.test_cpu_bits import call_of as ordinary_call_of
from engines.cpu.test_cpu_save import SHAPE, call_of, in_spans

import cellwright as cw
from cellwright.engines.cpu import jit, lanes, threads
from cellwright.engines.cpu.kernels import kernels
from cellwright.plan import SAVES, StepOptions


def directions(call):
    """A call, and another in the other direction that differs in its states and weights."""

    def other(tensors):
        return [each.roll(1, -1) * 0.9 for each in tensors]

    turned = replace(
        call, states=other(call.states), weights=other(call.weights), reverse=not call.reverse
    )
    return [call, turned]


def check(calls, *, keep=True):
    """Results and gradients of calls side by side against those of each by itself."""
    with guarded() as guards:
        copied = [
            replace(
                call,
                x=guards.copy(call.x),
                states=[*map(guards.copy, call.states)],
                weights=[*map(guards.copy, call.weights)],
                streams=[*map(guards.copy, call.streams)],
            )
            for call in calls
        ]
        found = lanes.forward(copied, keep=keep)
        cotangents = [draw_cotangents(each) for each in found]
        if keep:
            kept = [each.kept for each in found]
            gradients = lanes.backward(copied, kept, cotangents, need_x=True)
    for number, call in enumerate(calls):
        expected = by_engine(ENGINE, call, cotangents[number])
        what = f"call {number}"
        assert_equal(results_of(found[number], call), expected[0], what)
        if keep:
            each = gradients[number]
            named = gradients_of(each.x, each.states, each.weights, call)
            assert_equal(named, expected[1], what)


@pytest.mark.parametrize("team", [1, 2])
@every_call
def test_the_bits_are_those_of_calls_by_themselves(name, team, monkeypatch):
    torch.set_num_threads(team)
    launches = Launches(monkeypatch)
    check(directions(ordinary_call_of(name)))
    assert ((threads.ROWS, 2) in launches.seen) == (team == 2)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", ["lstm, everything", "gru_v1", "norm", "bf16", "of parameters"])
def test_however_much_is_saved_and_in_spans_of_any_length(name, save, monkeypatch):
    for rows, team in ((1, 1), (6, 2), (1000, 1)):
        in_spans(monkeypatch, rows)
        torch.set_num_threads(team)
        check(directions(call_of(name, save=save)))


def test_without_keeping_anything(monkeypatch):
    torch.set_num_threads(2)
    for rows in (6, 1000):
        in_spans(monkeypatch, rows)
        check(directions(call_of("lstm")), keep=False)


def test_x_and_gradients_that_lie_anyhow():
    torch.set_num_threads(2)
    call = call_of("lstm in float64")
    x = call.x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not x.is_contiguous()
    check(directions(replace(call, x=x)))


def test_fewer_threads_than_calls():
    torch.set_num_threads(2)
    first, second = directions(call_of("lstm"))
    check([first, second, first])


def test_calls_of_unlike_layers():
    torch.set_num_threads(2)
    options = StepOptions()
    check([
        make_call(CATALOGUE["lstm"], options, SHAPE, dtype=torch.float32),
        make_call(CATALOGUE["gru"], options, Shape(11, 5, 2, 40), dtype=torch.float32),
    ])  # fmt: skip


# Of a layer with both directions ------------------------------------------------------------------

LAYERS = {
    "lstm": {"cell": "lstm"},
    "stages": {"cell": "gru_v1", "num_layers": 2, "heads": 2},
    "normalised": {"cell": "layer_norm_lstm", "num_layers": 2, "save": "states"},
    "checkpoints": {"cell": "peephole_lstm", "save": "checkpoints", "grad_clip": 0.01},
    "learnt": {"cell": "gru", "learn_initial_state": True, "zoneout": 0.3},
    "dropout": {"cell": "lstm", "num_layers": 3, "dropout": 0.5, "recurrent_dropout": 0.2},
}


@pytest.fixture
def ways(monkeypatch):
    """Let every layer go this way or that, and tell how many calls went side by side."""
    seen = []
    original = lanes.forward

    def forward(calls, *, keep):
        seen.append(len(calls))
        return original(calls, keep=keep)

    monkeypatch.setattr(lanes, "forward", forward)

    def go(beside):
        monkeypatch.setattr(lanes, "are_faster", lambda *_, **how: beside)
        return seen

    return go


def trained(layer, x, **arguments):
    """Everything that a layer yields, and every gradient; x is read outside of it too."""
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    y, state, *others = layer(x * 1.5, **arguments)
    traced = [*others[0].values()] if others else []
    found = [y, *state, *traced]
    loss = sum((each * each.detach().cos()).sum() for each in found if each.is_floating_point())
    loss = loss + (x.square() * x.detach().sin()).sum()
    found += torch.autograd.grad(loss, [x, *layer.parameters()], allow_unused=True)
    return [each for each in found if each is not None]


@pytest.mark.parametrize("arguments", ["none", "lengths", "reset", "trace", "everything"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_same_bits_either_way(name, arguments, ways):
    torch.set_num_threads(2 if arguments == "everything" else 1)
    torch.manual_seed(1)
    layer = cw.nn.Recurrent(input_size=5, hidden_size=18, bidirectional=True, **LAYERS[name])
    x = torch.randn(9, 4, 5)
    given = {
        "lengths": torch.tensor([9, 0, 3, 7]),
        "reset": torch.rand(9, 4) < 0.2,
        "trace": True,
    }
    if arguments != "everything":
        given = {key: value for key, value in given.items() if key == arguments}
    ways(False)
    expected = trained(layer, x, **given)
    seen = ways(True)
    assert not seen
    assert_equal(*(dict(enumerate(each)) for each in (trained(layer, x, **given), expected)), name)
    assert seen == [2] * layer.num_layers
    with torch.no_grad():
        layer.eval()
        y = layer(x, **given)[0]
        ways(False)
        assert torch.equal(layer(x, **given)[0], y)


def test_second_derivatives(ways):
    layer = cw.nn.Recurrent("lstm", 3, 4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    ways(True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (x,))


def test_a_layer_without_gradient_of_x_or_of_weights(ways):
    torch.manual_seed(2)
    layer, x = cw.nn.LSTM(3, 4, bidirectional=True), torch.randn(5, 2, 3)
    found = []
    for beside in (False, True):
        ways(beside)
        layer.zero_grad()
        layer(x)[0].square().sum().backward()
        found.append({name: each.grad for name, each in layer.named_parameters()})
    assert_equal(*found, "of weights")
    layer.requires_grad_(False)
    for beside in (False, True):
        ways(beside)
        turned = x.clone().requires_grad_()
        layer(turned)[0].square().sum().backward()
        found.append({"x": turned.grad})
    assert_equal(*found[2:], "of x")


# Which way is taken ---------------------------------------------------------------------------


def signature_of(hidden):
    layer = cw.nn.LSTM(8, hidden, bidirectional=True)
    return layer.signature(0, lengths=False, reset=False, trace=False)


def test_the_way_follows_from_the_shapes():
    def beside(steps, rows, hidden, keep=False):
        return lanes.are_faster(signature_of(hidden), torch.empty(steps, rows, 8), keep=keep)

    torch.set_num_threads(2)
    assert beside(100, 1, 64)  # a loop on one thread
    assert beside(100, 4, 128)  # two rows a thread
    assert beside(100, 32, 128)  # sixteen rows a thread, of two directions
    assert not beside(5, 1, 16)  # done before another thread has begun
    assert not beside(100, 1, 64, keep=True)  # ready training calls have less around them
    assert beside(1000, 1, 64, keep=True)
    assert not beside(1000, 1, 256, keep=True)  # units are shared out
    assert not beside(784, 128, 128)  # very long
    torch.set_num_threads(4)
    assert not beside(100, 32, 128)  # two directions would leave two threads idle
    torch.set_num_threads(1)
    assert not beside(100, 1, 64)


@torch.no_grad()
def test_explain_tells():
    torch.set_num_threads(2)
    layer = cw.nn.LSTM(8, 64, bidirectional=True, batch_first=True)
    text = "both directions run at the same time, on a thread each"
    assert text in cw.explain(layer, torch.randn(1, 100, 8)).reason
    assert text in cw.explain(layer, torch.randn(100, 8)).reason
    assert text not in cw.explain(layer, torch.randn(70, 1000, 8)).reason
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(100, 8)])
    assert text in cw.explain(layer, packed).reason
    with cw.engine("reference"):
        assert text not in cw.explain(layer, torch.randn(1, 100, 8)).reason
    torch.set_num_threads(1)
    assert text not in cw.explain(layer, torch.randn(1, 100, 8)).reason


def test_work_of_a_step_is_that_of_the_loop():
    made = kernels(signature_of(16).text, False, jit.features_limit())
    assert made.step_work == made.forward(False, False)[2].work == 4 * 16 * 16
