"""``save``: what a layer keeps for its backward pass; the numbers do not show it."""

import io
import pickle

import pytest
import torch
from nn.recurrent_cases import make, randn

import cellwright as cw
from cellwright.plan import SAVES

T, B, I, H = 7, 2, 3, 4


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


engines = pytest.mark.parametrize("engine", ["cpu", "reference"])


def layer_of(save, cell="lstm"):
    torch.manual_seed(3)
    return make(cell, I, H, 2, bidirectional=True, save=save)


def gradients(layer, x, run=None):
    y, state = (run or layer)(x)
    loss = y.square().sum() + sum(each.sin().sum() for each in state)
    return torch.autograd.grad(loss, [x, *layer.parameters()], create_graph=True)


def same(found, expected, engine):
    for one, other in zip(found, expected, strict=True):
        if engine == "cpu":
            assert torch.equal(one, other)
        else:  # some tens of terms, added up in another order
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@engines
@pytest.mark.parametrize("save", SAVES[1:])
def test_compiled(save, engine):
    """One program for any number of steps."""
    layer = layer_of(save)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (T, 11, 1, 2):
        x = randn(steps, B, I).requires_grad_()
        with cw.engine(engine):
            y, state = run(x)
            loss = y.square().sum() + sum(each.sin().sum() for each in state)
            found = torch.autograd.grad(loss, [x, *layer.parameters()])
            expected = gradients(layer_of("gates"), x)
        same(found, expected, engine)


@pytest.mark.parametrize("save", SAVES[1:])
def test_exported(save):
    layer = layer_of(save)
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    shapes = {"x": {0: steps, 1: batch}}
    program = torch.export.export(layer, (randn(T, B, I),), dynamic_shapes=shapes)
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    run = torch.export.load(content).module()
    for shape in ((T, B), (1, 1), (8, 2)):
        x = randn(*shape, I)
        assert torch.equal(run(x)[0], layer(x)[0])


@engines
@pytest.mark.parametrize("save", SAVES)
def test_second_derivatives(save, engine):
    x = randn(T, B, I).requires_grad_()
    found = {}
    for each in ("gates", save):
        layer = layer_of(each)
        with cw.engine(engine):
            total = sum(first.square().sum() for first in gradients(layer, x))
            found[each] = torch.autograd.grad(total, [x, *layer.parameters()])
    for one, other in zip(found[save], found["gates"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_under_torch_func():
    x = randn(T, B, I)
    found = [torch.func.grad(lambda v, each=each: layer_of(each)(v)[0].sum())(x) for each in SAVES]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("save", SAVES[1:])
def test_convolutions(save):
    x = randn(T, B, 2, 5, 6).requires_grad_()
    found = []
    for each in ("gates", save):
        torch.manual_seed(3)
        layer = cw.nn.ConvRecurrent("peephole_lstm", 2, 3, save=each, dtype=torch.float64)
        found.append(gradients(layer, x))
    same(found[1], found[0], "reference")


def test_steps_and_calls_without_a_gradient_keep_nothing():
    x = randn(T, B, I)
    layers = [make("gru", I, H, save=save) for save in SAVES]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    with torch.no_grad():
        expected, _ = layers[0](x)
        for layer in layers:
            assert torch.equal(layer(x)[0], expected)
            state = layer.initial_state(B)
            y, _ = layer.step(x[0], state)
            assert torch.equal(y, expected[0])


def test_it_is_shown_and_stays_when_pickled():
    layer = make("lstm", I, H, save="checkpoints")
    assert repr(layer) == "Recurrent(lstm, 3, 4, save='checkpoints')"
    again = pickle.loads(pickle.dumps(layer))
    assert again.save == "checkpoints" and repr(again) == repr(layer)
    x = randn(T, B, I).requires_grad_()
    same(gradients(again, x), gradients(layer, x), "cpu")
