"""Every option of a layer does what its formula says, computed without the library."""

import math

import numpy as np
import pytest
import torch
from nn.recurrent_cases import CELLS, close, from_torch, make, randn, some_state, torch_lstm

import cellwright as cw
from cellwright.errors import InputError
from cellwright.lang import next_state, tanh

T, B, I, H = 6, 3, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --- layer normalisation -----------------------------------------------------------------------


def normalised(v):
    v = np.asarray(v)
    centred = v - v.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)


def test_layer_norm_normalises_every_product():
    layer = make("gru", I, H, layer_norm=True)
    gains = [name for name, _ in layer.named_parameters() if name.startswith("gain")]
    assert gains == ["gain_W_l0", "gain_U_l0"]
    x, state = randn(T, B, I), some_state(layer, B)
    y, _ = layer(x, state)
    weights = {p.name: layer.parameter(p.name).detach().numpy() for p in layer.cell.parameters}
    gain = {
        f"{group}.{gate}": layer.parameter(f"gain_{group}.{gate}").detach().numpy()
        for group in "WU"
        for gate in "rzn"
    }

    def product(name, v):
        return gain[name] * normalised(v @ weights[name].T)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    h = state.h[0].numpy()
    for t in range(T):
        v = x[t].numpy()
        r = sigmoid(product("W.r", v) + product("U.r", h) + weights["b.r"])
        z = sigmoid(product("W.z", v) + product("U.z", h) + weights["b.z"])
        n = np.tanh(product("W.n", v) + weights["b.n"] + r * (product("U.n", h) + weights["b.hn"]))
        h = (1 - z) * n + z * h
        # Divisions by a spread that may be small: a few digits less than sums lose.
        np.testing.assert_allclose(y[t].detach().numpy(), h, rtol=0, atol=1e-11)


def test_gains_begin_at_one_under_every_scheme():
    for scheme in ("default", "orthogonal", "forget_bias:1", "orthogonal+chrono:10"):
        layer = cw.nn.Recurrent("lstm", I, H, layer_norm=True, init=scheme)
        assert (layer.gain_W_l0 == 1).all()
        assert (layer.gain_U_l0 == 1).all()


# --- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_heads_are_blocks_on_the_diagonal(cell):
    heads, hidden = 3, 6
    sizes = {name: 3 for name in cw.cells.get(cell).size_names}
    layer = make(cell, I, hidden, 2, heads=heads, sizes=sizes)
    dense = make(cell, I, hidden, 2, sizes=sizes)
    with torch.no_grad():
        for number in range(2):
            for spec in dense.cell.parameters:
                mine = layer.parameter(spec.name, layer=number)
                theirs = dense.parameter(spec.name, layer=number)
                if mine.shape == theirs.shape:
                    theirs.copy_(mine)
                else:
                    assert mine.shape == (theirs.shape[0], theirs.shape[1] // heads)
                    theirs.copy_(torch.block_diag(*mine.chunk(heads)))
    x, state = randn(T, B, I), some_state(layer, B)
    close(layer(x, state)[0], dense(x, state)[0])
    recurrent = [p for p in dense.cell.parameters if p.type in _recurrent_types(dense.cell)]
    fewer = sum(p.numel() for p in layer.parameters())
    full = sum(p.numel() for p in dense.parameters())
    saved = sum(dense.parameter(p.name).numel() for p in recurrent) * 2
    assert fewer == full - saved + saved // heads


def _recurrent_types(spec):
    return {p.type for p in spec.parameters if getattr(p.type, "columns", "input") != "input"}


def test_heads_do_not_see_each_other():
    layer = make("lstm", I, 6, heads=2)
    state = [s.requires_grad_() for s in some_state(layer, B)]
    y, _ = layer(randn(T, B, I), state)
    y[..., :3].sum().backward()
    assert state[0].grad[..., :3].abs().min() > 0
    assert not state[0].grad[..., 3:].any()


# --- clipping of gradients ---------------------------------------------------------------------


def test_clipping_by_hand():
    """A carousel carries 1 more at each step backwards, until the limit."""
    limit, steps = 2.5, 5
    layer = make("cec", 1, 1, grad_clip=limit)
    with torch.no_grad():
        layer.W_l0.fill_(1.0)
    x = randn(steps, 1, 1).requires_grad_()
    c = torch.zeros(1, 1, 1).double().requires_grad_()
    y, _ = layer(x, c)
    y.sum().backward()
    carried, expected = 0.0, []
    for _ in range(steps):
        expected.append(carried + 1.0)  # into x at this step: not limited
        carried = min(limit, carried + 1.0)  # into the state before it
    assert x.grad.flatten().tolist() == expected[::-1] == [3.5, 3.5, 3.0, 2.0, 1.0]
    assert c.grad.item() == limit


@pytest.mark.parametrize("cell", CELLS)
def test_clipping_leaves_the_forward_pass_and_limits_the_backward(cell):
    limit = 1e-3
    layer, plain = make(cell, I, H, grad_clip=limit), make(cell, I, H)
    plain.load_state_dict(layer.state_dict())
    x = randn(T, B, I)
    state = [s.requires_grad_() for s in some_state(layer, B)]
    y, _ = layer(x, state)
    expected, _ = plain(x, state)
    assert torch.equal(y, expected)
    found = torch.autograd.grad(y.sum() * 100, state)
    free = torch.autograd.grad(expected.sum() * 100, state)
    assert max(g.abs().max() for g in found) <= limit
    assert max(g.abs().max() for g in free) > limit


def test_a_generous_limit_changes_nothing():
    layer, plain = make("lstm", I, H, grad_clip=1e6), make("lstm", I, H)
    plain.load_state_dict(layer.state_dict())
    x = randn(T, B, I)
    for each in (layer, plain):
        each(x)[0].square().sum().backward()
    for mine, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        close(mine.grad, theirs.grad)


def test_each_state_is_limited_by_itself():
    layer = make("lstm", I, H, grad_clip=0.01)
    state = [s.requires_grad_() for s in some_state(layer, B)]
    y, _ = layer(randn(1, B, I), state)
    found = torch.autograd.grad(y.sum() * 1e6, state)
    for each in found:
        torch.testing.assert_close(each.abs(), torch.full_like(each, 0.01), rtol=1e-12, atol=0)


# --- a learnt initial state --------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_a_learnt_state_is_where_a_sequence_begins(cell):
    layer = make(cell, I, H, 2, bidirectional=True, learn_initial_state=True)
    plain = make(cell, I, H, 2, bidirectional=True)
    own = {k: v for k, v in layer.state_dict().items() if not k.startswith("initial_")}
    plain.load_state_dict(own)
    x = randn(T, B, I)
    state = layer.initial_state(B)
    for name, value in zip(state._fields, state, strict=True):
        parts = [
            getattr(layer, f"initial_{name}_l{number}{end}")
            for number in range(2)
            for end in ("", "_reverse")
        ]
        assert torch.equal(value, torch.stack(parts)[:, None].expand_as(value))
    close(layer(x)[0], plain(x, state)[0])


def test_a_learnt_state_starts_at_zero_and_gets_a_gradient():
    layer = cw.nn.Recurrent("lstm", I, H, 2, learn_initial_state=True, dtype=torch.float64)
    assert not layer.initial_h_l0.any()
    assert not layer.initial_c_l1.any()
    x = randn(T, B, I)
    y, _ = layer(x)
    y.sum().backward()
    state = [s.detach().requires_grad_() for s in layer.initial_state(B)]
    expected = torch.autograd.grad(layer(x, state)[0].sum(), state)
    for number in range(2):
        close(getattr(layer, f"initial_h_l{number}").grad, expected[0][number].sum(0))
        close(getattr(layer, f"initial_c_l{number}").grad, expected[1][number].sum(0))


def test_a_learnt_state_gets_a_gradient_through_every_reset():
    layer = make("elman", I, H, learn_initial_state=True)
    x = randn(T, 1, I)
    reset = torch.zeros(T, 1, dtype=torch.bool)
    reset[2] = reset[4] = True
    y, _ = layer(x, reset=reset)
    y.sum().backward()
    found = layer.initial_h_l0.grad.clone()
    layer.zero_grad()
    sum(layer(part)[0].sum() for part in (x[:2], x[2:4], x[4:])).backward()
    close(found, layer.initial_h_l0.grad)


def test_a_given_state_takes_the_place_of_the_learnt_one():
    layer = make("lstm", I, H, learn_initial_state=True)
    x = randn(T, B, I)
    zeros = [torch.zeros(1, B, H).double() for _ in range(2)]
    y, _ = layer(x, zeros)
    y.sum().backward()
    assert layer.initial_h_l0.grad is None or not layer.initial_h_l0.grad.any()
    assert not torch.equal(y, layer(x)[0])


# --- precision ---------------------------------------------------------------------------------


def test_bf16_rounds_the_operands_of_products_alone():
    layer = make("elman", I, H, precision="bf16", dtype=torch.float32)
    x, state = randn(T, B, I, dtype=torch.float32), some_state(layer, B)
    if "runs in float32" in cw.explain(layer, x).reason:
        pytest.skip("this processor has no AVX512_BF16")
    y, _ = layer(x, state)

    def rounded(v):
        return v.bfloat16().float()

    h = state.h[0]
    for t in range(T):
        products = rounded(x[t]) @ rounded(layer.W_l0).T + rounded(h) @ rounded(layer.U_l0).T
        h = torch.tanh(products + layer.b_l0)
        # Sums in float32; where the last bit differs, the next rounding may move by 2**-9.
        torch.testing.assert_close(y[t], h, rtol=0, atol=4e-3)
    assert y.dtype == torch.float32
    exact = make("elman", I, H, dtype=torch.float32)
    exact.load_state_dict(layer.state_dict())
    apart = (exact(x, state)[0] - y).abs().max()
    assert 0 < apart < 0.1


# --- several at once ---------------------------------------------------------------------------


def test_all_options_together_run_and_train():
    layer = make(
        "peephole_lstm", I, 6, 2, bidirectional=True, batch_first=True, dropout=0.1,
        recurrent_dropout=0.1, zoneout=0.1, layer_norm=True, heads=2, learn_initial_state=True,
        grad_clip=1.0,
    ).train()  # fmt: skip
    x, reset = randn(B, T, I), torch.rand(B, T) < 0.3
    y, state, trace = layer(x, lengths=[T, 0, 2], reset=reset, trace=True)
    (y.square().sum() + state.c.sum() + trace["f"].sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_options_are_of_every_cell():
    """A user's cell has them without a line of its own."""

    @cw.cell(state="h")
    def mine(x, h, W, U):
        return next_state(h=tanh(W @ x + U @ tanh(U @ h)))

    layer = make(mine, I, H, zoneout=0.5, layer_norm=True, heads=2, grad_clip=1.0)
    y, _ = layer(randn(T, B, I), lengths=[1, 2, 3])
    y.sum().backward()
    assert layer.U_l0.grad.any()


def test_dropout_like_torchs_has_the_same_numbers():
    """From one seed, torch.nn.LSTM and Recurrent drop the same units between layers."""
    reference = torch_lstm(I, H, 2, dropout=0.5)
    layer = from_torch(reference)
    x = randn(T, B, I)
    torch.manual_seed(1)
    expected, _ = reference(x)
    torch.manual_seed(1)
    found, _ = layer(x)
    close(found, expected)
    assert math.isfinite(found.sum().item())


def test_options_set_later_are_read_as_at_first_and_sizes_stay():
    layer, x = make("lstm", I, H), randn(T, B, I)
    layer.zoneout, layer.grad_clip = 0.25, 2
    assert layer.zoneout == (("h", 0.25), ("c", 0.25)) and layer.grad_clip == 2.0
    layer(x)[0].sum().backward()
    for name, value in {"zoneout": "much", "save": "all", "grad_clip": 0}.items():
        with pytest.raises(InputError, match=name):
            setattr(layer, name, value)
    for name in ("hidden_size", "num_layers", "bidirectional"):
        with pytest.raises(InputError, match=f"{name}: the layer's weights are made for"):
            setattr(layer, name, 7)
