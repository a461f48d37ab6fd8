"""Whole sequences again and again without gradients: what the quick road gives, and when."""

import copy
import pickle

import pytest
import torch
from nn.recurrent_cases import randn

import cellwright as cw
from cellwright.engines import choice
from cellwright.errors import InputError

KINDS = {
    "LSTM": lambda **options: cw.nn.LSTM(3, 4, **options),
    "GRU": lambda **options: cw.nn.GRU(3, 4, **options),
    "RNN": lambda **options: cw.nn.RNN(3, 4, bias=False, **options),
    "projected": lambda **options: cw.nn.LSTM(3, 4, proj_size=2, **options),
    "Recurrent": lambda **options: cw.nn.Recurrent("peephole_lstm", 3, 4, **options),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return randn(6, 2, 3, dtype=torch.float32)


def flat(result):
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def is_quick(layer, monkeypatch, *arguments):
    """Whether a call does without the ordinary road."""
    taken = []
    ordinary = layer.run_layers
    with monkeypatch.context() as patch:
        patch.setattr(layer, "run_layers", lambda *given: taken.append(1) or ordinary(*given))
        layer(*arguments)  # to be made ready again: the layer was just changed
        taken.clear()
        layer(*arguments)
    return not taken


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_results_are_those_of_the_ordinary_road(kind, batch_first, x, monkeypatch):
    layer = KINDS[kind](batch_first=batch_first)
    x = x.transpose(0, 1) if batch_first else x
    expected = flat(layer(x))
    before = layer(x)[1]
    carried = flat(layer(x, before))
    with torch.no_grad():
        assert is_quick(layer, monkeypatch, x) == (choice.asked_for() is None)
        for _ in range(3):
            found = flat(layer(x))
            assert all(map(torch.equal, found, expected))
            assert [each.shape for each in found] == [each.shape for each in expected]
            assert all(map(torch.equal, flat(layer(x.clone(), before)), carried))
        assert type(layer(x)[1]) is type(before)
    y, _ = layer(x)
    assert y.requires_grad


@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"bidirectional": True}, {"zoneout": 0.5}, {"dropout": 0.5}]
)
def test_other_layers_take_the_ordinary_road(options, x):
    layer = cw.nn.Recurrent("lstm", 3, 4, **options)
    expected = flat(layer.eval()(x))
    with torch.no_grad():
        for _ in range(3):
            assert all(map(torch.equal, flat(layer(x)), expected))
        layer.train()
        if "zoneout" in options:
            assert not torch.equal(layer(x)[0], layer(x)[0])


def test_a_learnt_initial_state_is_read(x):
    layer = cw.nn.Recurrent("gru", 3, 4, learn_initial_state=True)
    with torch.no_grad():
        layer(x), layer(x)
        old = layer(x)[0]
        layer.initial_h_l0.fill_(1.0)
        assert not torch.equal(layer(x)[0], old)


@pytest.mark.parametrize("kind", ["LSTM", "Recurrent"])
def test_any_change_of_weights_is_seen(kind, x):
    layer = KINDS[kind]()
    with torch.no_grad():
        for _ in range(3):
            old = layer(x)[0]
        for name, weight in layer.named_parameters():
            weight.data.view(-1)[0] += 0.5
            found = layer(x)[0]
            with cw.engine("reference"):
                torch.testing.assert_close(found, layer(x)[0])
            assert not torch.equal(found, old), name
            setattr(layer, name, torch.nn.Parameter(weight.detach() * 0.5))
            old, found = found, layer(x)[0]
            assert not torch.equal(found, old), name
            old = found


def test_a_changed_option_is_seen(x):
    layer = cw.nn.Recurrent("lstm", 3, 4)
    state = layer.initial_state(batch=2)
    with torch.no_grad():
        for _ in range(3):
            y, one = layer(x)[0], layer.step(x[0], state)[0]
        layer.zoneout = (("h", 0.5),)
        layer.eval()
        assert not torch.equal(layer(x)[0], y)
        assert not torch.equal(layer.step(x[0], state)[0], one)


def test_tensors_that_do_not_fit_are_refused_as_ever(x):
    layer = cw.nn.LSTM(3, 4)
    state = tuple(torch.zeros(1, 2, 4) for _ in range(2))
    with torch.no_grad():
        for _ in range(3):
            layer(x)
            layer(x, state)
        for wrong in (x.double(), x[..., :2], x[:0], x.tolist(), x[0, 0]):
            with pytest.raises((InputError, TypeError)):
                layer(wrong)
        for wrong in (state[0], (state[0], state[1][:, :1]), (state[0], state[1].double())):
            with pytest.raises((InputError, TypeError)):
                layer(x, wrong)
        assert torch.equal(layer(x, list(state))[0], layer(x)[0])
        with pytest.raises(cw.errors.CellwrightError), cw.engine("gpu"):
            layer(x)


def test_modes_of_torch_are_respected(x):
    layer, twin = cw.nn.LSTM(3, 4), torch.nn.LSTM(3, 4)
    twin.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for _ in range(3):
            y = layer(x)[0]
        members = torch.func.vmap(lambda x: layer(x)[0])(torch.stack([x, 2 * x]))
        torch.testing.assert_close(members[0], y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x)[0].dtype == twin(x)[0].dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(layer(x)[0], y)
        assert layer(x)[0].is_inference()
    with torch.no_grad():
        assert not layer(x)[0].is_inference()
    watched = x.clone().requires_grad_()
    layer(watched)[0].sum().backward()
    assert watched.grad is not None


def test_copies_and_pickles_have_nothing_of_it(x):
    layer = cw.nn.LSTM(3, 4)
    with torch.no_grad():
        for _ in range(3):
            y = layer(x)[0]
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x)[0], y)
            other.weight_hh_l0.mul_(0.5)
            assert not torch.equal(other(x)[0], y)
        assert torch.equal(layer(x)[0], y)
