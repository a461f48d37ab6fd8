"""The guard names the first step, layer, gate and parameter that stopped being finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cellwright as cw
from cellwright.lang import exp, next_state, sqrt, tanh
from cellwright.train.finite import find_nonfinite

T, B, I, H = 7, 3, 2, 4


@cw.cell(state=("h", "c"))
def explosive(x, h, c, W, U):
    """A carousel that squares itself. Made for this test."""
    g = W.g @ x + U.g @ h
    c = c * c + g
    h = tanh(c)
    return next_state(h=h, c=c, watch=dict(g=g))


@cw.cell(state=("h", "c"))
def counting(x, h, c, W, U):
    """An exponential gate without a stabiliser. Made for this test."""
    i = exp(W.i @ x + U.i @ h)
    c = c + i
    h = tanh(c)
    return next_state(h=h, c=c, watch=dict(i=i))


class Exp(nn.Module):
    def forward(self, v):
        return v.exp()


@cw.cell(state=("h",))
def rooted(x, h, W, U):
    """A root whose slope at zero is infinite. Made for this test."""
    return next_state(h=sqrt(W @ x + U @ h))


class Model(nn.Module):
    def __init__(self, cell, **options):
        super().__init__()
        self.first = cw.nn.Recurrent("gru", I, H)
        self.second = cw.nn.Recurrent(cell, H, H, **options)
        self.head = nn.Linear(self.second.output_size, 1)

    def forward(self, x, lengths=None):
        y, _ = self.second(self.first(x)[0], lengths=lengths)
        return self.head(y)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def quiet(model):
    """A model whose second layer computes nothing at all, whatever enters it."""
    with torch.no_grad():
        for parameter in model.second.parameters():
            parameter.zero_()
    return model


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_all_is_finite(engine):
    model = Model("lstm", num_layers=2, bidirectional=True)
    with cw.engine(engine):
        report = find_nonfinite(model, torch.randn(T, B, I), loss=lambda y: y.square().mean())
    assert report.part == ""
    assert str(report) == "every value and every gradient is finite"
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("direction", [0, 1])
def test_the_first_step_layer_sequence_and_value_of_the_forward_pass(engine, direction):
    model = quiet(Model(explosive, num_layers=2, bidirectional=True))
    broken = model.second
    with torch.no_grad():
        # Squares of 1e15: 1e30 after a step, infinite after two.
        broken.parameter("W.g", 1, direction).zero_()
        broken.parameter("U.g", 1, direction).zero_()
    state = torch.zeros(4, B, H)
    state[2 + direction, 1, 3] = 1e15
    x = torch.randn(T, B, I)
    with cw.engine(engine):
        report = find_nonfinite(
            model, x, call=lambda x: broken(model.first(x)[0], (torch.zeros(4, B, H), state))
        )
    assert (report.part, report.module, report.layer) == ("forward", "second", 1)
    assert (report.direction, report.step) == (direction, 1 if direction == 0 else T - 2)
    assert report.sequences == (1,)
    assert report.values == ("c",)
    assert report.found == "inf"
    side = ", from the end" if direction else ""
    assert str(report) == (
        f"in second, layer 1{side}, at step {report.step} of sequence 1, c is the first that is inf"
    )


def test_gates_come_before_what_is_made_of_them():
    layer = cw.nn.Recurrent(counting, I, H)
    x = torch.randn(T, B, I)
    x[4, 2] = 1e10 * layer.parameter("W.i")[1].detach()
    report = find_nonfinite(layer, x)
    assert (report.step, report.sequences, report.values) == (4, (2,), ("i", "c"))
    assert report.found == "inf"


def test_a_layer_of_torchs_interface():
    layer = cw.nn.RNN(I, H, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(3e38)
    x = torch.zeros(B, T, I)
    x[2, 4] = 1e10
    report = find_nonfinite(layer, x, loss=lambda out: out[0].sum())
    assert (report.step, report.sequences, report.values) == (4, (2,), ("h",))


def test_steps_beyond_a_length_do_not_count():
    model = quiet(Model(explosive))
    x = torch.randn(T, B, I)
    with torch.no_grad():
        model.second.parameter("W.g").fill_(1e25)
    lengths = torch.tensor([1, T, 1])
    report = find_nonfinite(model, x, lengths)
    assert report.sequences == (1,)
    assert report.step == 1


def test_a_module_that_is_not_recurrent_is_named():
    model = Model("lstm")
    model.head = nn.Sequential(nn.Linear(H, H), Exp(), nn.Linear(H, 1))
    with torch.no_grad():
        model.head[0].weight[0] = 1e6
        model.head[0].weight[1] = -1e6
    report = find_nonfinite(model, torch.randn(T, B, I))
    assert (report.part, report.module, report.step) == ("forward", "head.1", None)
    assert str(report) == "the output of head.1 is the first that is inf"


def test_parameters_input_and_loss():
    model = Model("lstm")
    x = torch.randn(T, B, I)
    worse = x.clone()
    worse[2, 1, 0] = torch.nan
    assert str(find_nonfinite(model, worse)) == "the input is nan in sequence 1"
    report = find_nonfinite(model, x, loss=lambda y: y.sum() / 0)
    assert (report.part, str(report)) == (
        "loss", f"all outputs are finite, and the loss is {report.found}"
    )  # fmt: skip
    with torch.no_grad():
        model.second.parameter("U.f")[1, 1] = torch.nan
    report = find_nonfinite(model, worse)
    assert (report.part, report.parameters) == ("parameters", ("second.U_l0",))


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_the_latest_step_of_the_backward_pass(engine):
    layer = cw.nn.Recurrent(rooted, 1, 1)
    with torch.no_grad():
        layer.parameter("W").fill_(1.0)
        layer.parameter("U").fill_(1.0)
    x = torch.ones(T, B, 1)
    x[3, 1] = -(1.0 + 5**0.5) / 2  # a first guess at what makes the root's argument zero
    with torch.no_grad():
        before = layer(x[:3])[1].h[0, 1]
        x[3, 1] = -before
    layer.weight = nn.Parameter(torch.ones(1))
    layer.weight.grad = torch.full((1,), 5.0)
    with cw.engine(engine):
        report = find_nonfinite(layer, x, loss=lambda out: out[0].sum())
    assert (report.part, report.layer, report.step) == ("backward", 0, 2)
    assert report.sequences == (1,)
    assert report.values == ("h",)
    assert report.parameters == ("W_l0", "U_l0")
    assert "going back through the model, layer 0, the gradient of h is inf at step 2" in str(
        report
    )
    assert layer.W_l0.grad is None
    assert layer.weight.grad.item() == 5.0
