"""The forms in which a layer takes and returns its tensors."""

import pytest
import torch
from nn.recurrent_cases import CELLS, close, from_torch, make, randn, some_state, torch_lstm

import cellwright as cw
from cellwright.lang import mean, next_state, tanh

T, B, I, H = 5, 3, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --- shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_shapes(cell, directions, layers):
    layer = make(cell, I, H, layers, bidirectional=directions == 2)
    y, state, trace = layer(randn(T, B, I), trace=True)
    sizes = {"hidden": H, **layer.sizes}
    first = layer.cell.states[0]
    assert y.shape == (T, B, directions * sizes[first.size])
    assert layer.output_size == y.shape[2]
    assert state._fields == tuple(each.name for each in layer.cell.states)
    for each in layer.cell.states:
        assert getattr(state, each.name).shape == (layers * directions, B, sizes[each.size])
        assert trace[each.name].shape == (layers * directions, T, B, sizes[each.size])
    assert set(trace) == {each.name for each in layer.cell.states} | set(layer.cell.watches)
    for name in layer.cell.watches:
        assert trace[name].shape[:3] == (layers * directions, T, B)


def test_y_is_the_first_state_of_the_last_layer():
    layer = make("lstm", I, H, 2, bidirectional=True)
    y, state, trace = layer(randn(T, B, I), trace=True)
    assert torch.equal(y, torch.cat([trace["h"][2], trace["h"][3]], dim=2))
    assert torch.equal(state.h[2], y[-1, :, :H])
    assert torch.equal(state.h[3], y[0, :, H:])
    assert torch.equal(state.c[2], trace["c"][2, -1])
    assert torch.equal(state.c[3], trace["c"][3, 0])


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first_only_turns_the_tensors(cell):
    layer = make(cell, I, H, 2, bidirectional=True)
    other = make(cell, I, H, 2, bidirectional=True, batch_first=True)
    other.load_state_dict(layer.state_dict())
    x, state = randn(T, B, I), some_state(layer, B)
    y, after, trace = layer(x, state, trace=True)
    turned, other_after, other_trace = other(x.transpose(0, 1), state, trace=True)
    assert turned.shape == (B, T, y.shape[2])
    close(turned.transpose(0, 1), y)
    for found, expected in zip(other_after, after, strict=True):
        close(found, expected)
    for name, value in trace.items():
        assert other_trace[name].shape[:3] == (4, B, T)
        close(other_trace[name].transpose(1, 2), value)


def test_batch_first_turns_the_reset_mask_too():
    layer = make("gru", I, H)
    other = make("gru", I, H, batch_first=True)
    other.load_state_dict(layer.state_dict())
    x, reset = randn(T, B, I), torch.rand(T, B) < 0.5
    y, _ = layer(x, reset=reset, lengths=[5, 0, 3])
    turned, _ = other(x.transpose(0, 1), reset=reset.T, lengths=[5, 0, 3])
    close(turned.transpose(0, 1), y)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_sequence_without_a_batch_axis(cell, batch_first):
    layer = make(cell, I, H, 2, bidirectional=True, batch_first=batch_first)
    x, state = randn(T, I), some_state(layer, 1)
    flat = [each[:, 0] for each in state]
    reset = torch.tensor([False, True, False, True, False])
    y, after, trace = layer(x, flat, reset=reset, trace=True)
    with_batch = x[None] if batch_first else x[:, None]
    mask = reset[None] if batch_first else reset[:, None]
    expected, state_after, expected_trace = layer(with_batch, state, reset=mask, trace=True)
    axis = 0 if batch_first else 1
    assert torch.equal(y, expected.squeeze(axis))
    for found, other in zip(after, state_after, strict=True):
        assert torch.equal(found, other[:, 0])
    for name, value in trace.items():
        assert torch.equal(value, expected_trace[name].squeeze(axis + 1))
    assert layer(x)[0].shape == y.shape


def test_an_unbatched_state_may_be_left_out():
    layer = make("lstm", I, H, learn_initial_state=True)
    x = randn(T, I)
    close(layer(x)[0], layer(x[:, None])[0][:, 0])
    state = layer.initial_state()
    assert state.h.shape == (1, H)
    close(layer(x, state)[0], layer(x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_floating_dtype(dtype):
    layer = make("lstm", I, H, dtype=dtype)
    x = randn(T, B, I, dtype=dtype).requires_grad_()
    y, state, trace = layer(x, trace=True)
    assert {y.dtype, state.h.dtype, state.c.dtype, trace["i"].dtype} == {dtype}
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert layer.U_l0.grad.dtype == dtype


def test_no_input_units_at_all():
    """A cell may run on its own, driven by nothing but its biases."""
    layer = make("gru", 0, H)
    y, _ = layer(randn(T, B, 0))
    assert y.shape == (T, B, H)
    assert (y[1:] - y[:-1]).abs().min() > 0


def test_memory_order_of_the_input_does_not_matter():
    layer = make("lstm", I, H, 2, bidirectional=True)
    x = randn(T, B, I)
    expected, state = layer(x)
    apart = torch.stack([x, -x], dim=-1)[..., 0]
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for other in (apart, turned, x[:, :1].expand(T, B, I)):
        y, _ = layer(other)
        close(y, layer(other.contiguous())[0])
    close(layer(apart)[0], expected)
    before = some_state(layer, B)
    loose = [each.transpose(0, 2).contiguous().transpose(0, 2) for each in before]
    close(layer(x, loose)[0], layer(x, before)[0])
    assert state.h.shape == (4, B, H)


# --- states ------------------------------------------------------------------------------------


def test_forms_of_a_state():
    layer = make("lstm", I, H)
    x, state = randn(T, B, I), some_state(layer, B)
    expected, _ = layer(x, state)
    for form in ((state.h, state.c), [state.h, state.c], {"c": state.c, "h": state.h}):
        assert torch.equal(layer(x, form)[0], expected)
        assert torch.equal(layer.step(x[0], form)[0], expected[0])


def test_a_cell_with_one_state_takes_a_tensor():
    layer = make("gru", I, H)
    x, state = randn(T, B, I), some_state(layer, B)
    expected, _ = layer(x, state)
    for form in (state.h, (state.h,), {"h": state.h}):
        assert torch.equal(layer(x, form)[0], expected)


def test_no_state_is_a_state_of_zeros():
    layer = make("lstm", I, H, 2, bidirectional=True)
    x = randn(T, B, I)
    zeros = layer.initial_state(B)
    assert not any(each.any() for each in zeros)
    assert [each.shape for each in zeros] == [(4, B, H)] * 2
    assert torch.equal(layer(x)[0], layer(x, zeros)[0])


def test_a_state_can_be_taken_apart_and_named():
    _, state = make("lstm", I, H)(randn(T, B, I))
    h, c = state
    assert h is state.h
    assert c is state.c
    assert state[1] is c


def test_a_state_is_not_changed_by_a_call():
    layer = make("lstm", I, H)
    state = some_state(layer, B)
    copies = [each.clone() for each in state]
    layer(randn(T, B, I), state, lengths=[0, 2, 5])
    layer.step(randn(B, I), state)
    assert all(map(torch.equal, state, copies))


# --- traces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
def test_traces_are_the_gates_of_torchs_lstm(bidirectional):
    """Gates from the weights and the outputs of torch.nn.LSTM, which does not return them."""
    reference = torch_lstm(I, H, bidirectional=bidirectional)
    layer = from_torch(reference)
    x = randn(T, B, I)
    y, _ = reference(x)
    _, _, trace = layer(x, trace=True)
    for direction in range(1 + bidirectional):
        end = "_reverse" if direction else ""
        order = range(T - 1, -1, -1) if direction else range(T)
        h, c = torch.zeros(B, H).double(), torch.zeros(B, H).double()
        for t in order:
            gates = x[t] @ getattr(reference, f"weight_ih_l0{end}").T
            gates = gates + h @ getattr(reference, f"weight_hh_l0{end}").T
            gates = gates + getattr(reference, f"bias_ih_l0{end}")
            gates = gates + getattr(reference, f"bias_hh_l0{end}")
            i, f, g, o = gates.chunk(4, dim=1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = y[t, :, direction * H : (direction + 1) * H]
            for name, value in {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}.items():
                close(trace[name][direction, t], value)


def test_a_traced_value_may_have_one_number_a_row():
    @cw.cell(state="h")
    def mine(x, h, W):
        level = mean(h)
        h = tanh(W @ x + level)
        return next_state(h=h, watch={"level": level})

    y, _, trace = make(mine, I, H)(randn(T, B, I), trace=True)
    assert trace["level"].shape == (1, T, B, 1)
    close(trace["level"][0, 1:, :, 0], y[:-1].mean(-1))
    assert not trace["level"][0, 0].any()


def test_gradients_flow_through_traces():
    layer = make("lstm", I, H, 2)
    x = randn(T, B, I).requires_grad_()
    _, _, trace = layer(x, trace=True)
    trace["f"][0].sum().backward()
    assert x.grad.abs().min() > 0
    assert not layer.W_l1.grad.any()
    found = layer.W_l0.grad.chunk(4)[1]
    assert found.any()


def test_a_trace_changes_nothing():
    layer = make("gru_v1", I, H, 2, bidirectional=True)
    x, state = randn(T, B, I), some_state(layer, B)
    y, after = layer(x, state)
    traced, traced_after, _ = layer(x, state, trace=True)
    assert torch.equal(y, traced)
    assert torch.equal(after.h, traced_after.h)
