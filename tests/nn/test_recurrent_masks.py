"""Dropout between layers, recurrent dropout and zoneout: which numbers are masked, and when."""

import itertools

import pytest
import torch
from nn.recurrent_cases import close, make, randn, some_state

import cellwright as cw

T, B, I, H = 6, 3, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def elman_step(layer, x, h):
    """One step of the simple network, from its weights."""
    return torch.tanh(x @ layer.W_l0.T + h @ layer.U_l0.T + layer.b_l0)


# --- dropout between layers --------------------------------------------------------------------


def test_dropout_is_nothing_in_evaluation_and_after_the_last_layer():
    layer = make("lstm", I, H, 2, dropout=0.5)
    plain = make("lstm", I, H, 2)
    plain.load_state_dict(layer.state_dict())
    x = randn(T, B, I)
    assert torch.equal(layer(x)[0], plain(x)[0])
    alone = make("lstm", I, H, 1, dropout=0.5)
    assert torch.equal(alone.train()(x)[0], alone.eval()(x)[0])


def test_dropout_acts_between_layers_on_every_step_anew():
    layer = make("lstm", I, 40, 2, dropout=0.5).train()
    below, above = make("lstm", I, 40), make("lstm", 40, 40)
    states = layer.state_dict()
    below.load_state_dict({k: v for k, v in states.items() if k.endswith("l0")})
    above.load_state_dict({k[:-1] + "0": v for k, v in states.items() if k.endswith("l1")})
    x = randn(T, B, I)
    torch.manual_seed(5)
    y, _, trace = layer(x, trace=True)
    # The trace shows what the lower layer computed, before anything was dropped.
    close(trace["h"][0], below(x)[0])
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(below(x)[0], 0.5, training=True)
    close(y, above(dropped)[0])
    gone = dropped == 0
    assert 0.3 < gone.double().mean() < 0.7  # 720 coins
    assert (gone[0] != gone[1]).any()


def test_dropout_of_everything_leaves_the_next_layer_its_biases():
    layer = make("lstm", I, H, 2, dropout=1.0).train()
    y, _ = layer(randn(T, B, I))
    again, _ = layer(randn(T, B, I))
    close(y, again)


# --- recurrent dropout -------------------------------------------------------------------------


def identity_layer(cell, hidden, rate):
    """U = 1, W = b = 0: a unit that is dropped is zero ever after."""
    layer = make(cell, I, hidden, recurrent_dropout=rate).train()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.U_l0.copy_(torch.eye(hidden))
    return layer


def test_recurrent_dropout_has_one_mask_a_sequence():
    rate, hidden = 0.25, 200
    layer = identity_layer("elman", hidden, rate)
    h = torch.full((1, B, hidden), 0.5).double()
    y, _ = layer(randn(T, B, I), h)
    gone = y == 0
    assert torch.equal(gone, gone[:1].expand_as(gone)), "the mask is the same at every step"
    assert (gone[0, 0] != gone[0, 1]).any(), "and another for each sequence"
    # 600 coins with probability 1/4: four standard deviations are 0.07.
    assert abs(gone[0].double().mean() - rate) < 0.07
    expected = h[0]
    for t in range(T):
        expected = torch.tanh(expected / (1 - rate))
        kept = ~gone[t]
        close(y[t][kept], expected[kept])
    fresh, _ = layer(randn(T, B, I), h)
    assert not torch.equal(fresh == 0, gone), "and another at each call"


def test_recurrent_dropout_leaves_what_is_not_multiplied():
    """c is carried on undropped: only what recurrent matrices read is masked."""
    layer = make("lstm", I, 30, recurrent_dropout=0.5).train()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.parameter("b.f").fill_(50.0)  # keep everything
        layer.parameter("b.i").fill_(-50.0)  # take nothing
    state = some_state(layer, B)
    _, after = layer(randn(T, B, I), state)
    close(after.c, state.c)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_v1", "mgu", "lstm_projection", "slstm"])
def test_recurrent_dropout_masks_the_operands_of_recurrent_matrices(cell):
    """The layer is one whose recurrent matrices are multiplied by the mask.

    One sequence is run, and every mask tried in the columns of the matrices: one of them
    gives the layer's numbers. In gru_v1 and mgu a matrix reads r * h; there, too, it is h
    that is masked.
    """
    rate = 0.5
    layer = make(cell, I, H, recurrent_dropout=rate)
    x, state = randn(T, 1, I), some_state(layer, 1)
    quiet, _ = layer(x, state)
    plain = make(cell, I, H)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(quiet, plain(x, state)[0]), "in evaluation nothing is dropped"
    candidates = {}
    for mask in itertools.product((0.0, 1 / (1 - rate)), repeat=state.h.shape[2]):
        plain.load_state_dict(layer.state_dict())
        with torch.no_grad():
            for spec in plain.cell.parameters:
                if spec.group == "U":
                    plain.parameter(spec.name).mul_(torch.tensor(mask).double())
        candidates[mask] = plain(x, state)[0]
    layer.train()
    seen = set()
    for _ in range(8):
        found, _ = layer(x, state)
        matching = [mask for mask, y in candidates.items() if (y - found).abs().max() < 1e-12]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) > 1


def test_recurrent_dropout_of_a_cell_without_recurrent_matrices_is_refused():
    for cell in ("mingru", "minlstm", "indrnn", "sru"):
        with pytest.raises(cw.InputError, match=f"recurrent_dropout.*{cell}"):
            cw.nn.Recurrent(cell, I, H, recurrent_dropout=0.5)


# --- zoneout -----------------------------------------------------------------------------------


def test_zoneout_in_evaluation_is_the_expectation():
    rate = 0.3
    layer = make("elman", I, H, zoneout=rate)
    x, state = randn(T, B, I), some_state(layer, B)
    h = state.h[0]
    y, _ = layer(x, state)
    for t in range(T):
        h = rate * h + (1 - rate) * elman_step(layer, x[t], h)
        close(y[t], h)


def test_zoneout_of_states_by_name():
    layer = make("lstm", I, H, zoneout={"c": 0.4})
    x, state = randn(T, B, I), some_state(layer, B)
    y, after, trace = layer(x, state, trace=True)
    h, c = state.h[0], state.c[0]
    weights = [layer.W_l0, layer.U_l0, layer.b_l0]
    for t in range(T):
        i, f, g, o = (x[t] @ weights[0].T + h @ weights[1].T + weights[2]).chunk(4, 1)
        new = f.sigmoid() * c + i.sigmoid() * g.tanh()
        # Krueger et al.: h follows from the new cell, whichever of the two is carried on.
        h = o.sigmoid() * new.tanh()
        c = 0.4 * c + 0.6 * new
        close(y[t], h)
        close(trace["c"][0, t], c)
    close(after.c[0], c)


def test_zoneout_in_training_keeps_some_units_and_renews_the_others():
    rate, hidden = 0.25, 100
    layer = make("elman", I, hidden, zoneout=rate).train()
    x, state = randn(T, B, I), some_state(layer, B)
    y, after = layer(x, state)
    h, kept = state.h[0], []
    for t in range(T):
        new = elman_step(layer, x[t], h)
        stays, moves = y[t] == h, (y[t] - new).abs() < 1e-12
        assert (stays | moves).all()
        kept.append(stays)
        h = y[t]
    kept = torch.stack(kept).double()
    # 1800 coins with probability 1/4: four standard deviations are 0.041.
    assert abs(kept.mean() - rate) < 0.041
    assert not torch.equal(kept[0], kept[1]), "new coins at every step"
    assert not torch.equal(kept[:, 0], kept[:, 1]), "and for every sequence"
    assert torch.equal(after.h[0], h)


@pytest.mark.parametrize("training", [False, True])
def test_zoneout_of_zero_is_no_zoneout(training):
    layer, plain = make("lstm", I, H, zoneout=0.0), make("lstm", I, H)
    plain.load_state_dict(layer.state_dict())
    x = randn(T, B, I)
    assert torch.equal(layer.train(training)(x)[0], plain(x)[0])


def test_zoneout_with_lengths_and_reset():
    """Zoneout keeps the state after a reset, not the one before it."""
    rate = 0.3
    layer = make("elman", I, H, zoneout=rate)
    x, state = randn(T, 1, I), some_state(layer, 1)
    reset = torch.zeros(T, 1, dtype=torch.bool)
    reset[2] = True
    y, after = layer(x, state, lengths=[4], reset=reset)
    h = state.h[0]
    for t in range(4):
        h = torch.zeros_like(h) if t == 2 else h
        h = rate * h + (1 - rate) * elman_step(layer, x[t], h)
        close(y[t], h)
    close(after.h[0], h)
