"""Single steps with weights made ready once: the bits of the whole sequence, always up to date."""

import copy

import pytest
import torch
from engines.cpu.test_cpu_layers import H, I, make, randn, some_state

import cellwright as cw
from cellwright.engines.cpu import streaming


def stream(layer, x, state=None):
    """Outputs of every step, and the last state."""
    state = layer.initial_state(x.shape[1]) if state is None else state
    outputs = []
    with torch.no_grad():
        for x_t in x:
            y, state = layer.step(x_t, state)
            outputs.append(y)
    return torch.stack(outputs), state


def check(layer, x, state=None):
    """Steps, and the whole sequence with a gradient."""
    expected, after = layer(x, state)
    y, ended = stream(layer, x, state)
    assert not y.requires_grad
    assert torch.equal(y, expected)
    for one, other in zip(ended, after, strict=True):
        assert torch.equal(one, other)


CELLS = {
    "elman": torch.float32,
    "lstm": torch.float32,
    "gru": torch.float64,
    "gru_v1": torch.float32,
    "lstm_projection": torch.float64,
    "layer_norm_lstm": torch.float32,
    "rhn": torch.float32,
    "slstm": torch.float64,
}


@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_the_whole_sequence(cell):
    layer = make(cell, num_layers=2, hidden_size=21, dtype=CELLS[cell])
    for batch in (1, 3):
        x = randn(4, batch, I, dtype=CELLS[cell])
        check(layer, x)
        state = some_state(layer, batch)
        check(layer, x, type(state)(*map(abs, state)))


@pytest.fixture
def counts(monkeypatch):
    """How often steps were made ready, and taken."""
    made, taken = [], []
    prepare = streaming.Stream.__init__

    def counted(self, *given):
        made.append(1)
        prepare(self, *given)
        step = self.step

        def counted_step(*given):
            taken.append(1)
            return step(*given)

        self.step = counted_step

    monkeypatch.setattr(streaming.Stream, "__init__", counted)
    return lambda: (len(made), len(taken))


def test_weights_are_made_ready_once(counts):
    """Or all of this file would be about the ordinary road."""
    layer = make("lstm", num_layers=2)
    stream(layer, randn(5, 2, I))
    stream(layer, randn(3, 2, I))
    assert counts() == (1, 8)


def test_strides_of_a_single_row_do_not_matter(counts):
    layer = make("lstm")
    x = randn(6, 1, I)
    first, _ = stream(layer, x)
    with torch.no_grad():
        state = layer.initial_state(1)
        for t, y in enumerate(first):
            y_t, state = layer.step(x[t] if t % 2 else x.transpose(0, 1)[:, t], state)
            assert torch.equal(y_t, y)
    assert counts() == (1, 12)


@pytest.mark.parametrize("team", [2, 3])
def test_shared_out_among_threads(team):
    layer = make("lstm", hidden_size=300, dtype=torch.float32)
    x = randn(3, 2, I, dtype=torch.float32)
    expected, after = stream(layer, x)
    torch.set_num_threads(team)
    y, state = stream(layer, x)
    assert torch.equal(y, expected)
    assert torch.equal(state.c, after.c)


def change_by_an_optimiser(layer):
    layer(randn(2, 1, I))[0].sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()


def change_in_place(layer):
    with torch.no_grad():
        layer.parameter("U.f")[0, 0] += 1.0


def change_by_loading(layer):
    layer.load_state_dict({name: value * 0.5 for name, value in layer.state_dict().items()})


def change_of_a_parameter(layer):
    layer.U_l1 = torch.nn.Parameter(layer.U_l1.detach() * 0.5)


def change_by_drawing_again(layer):
    layer.reset_parameters()


def change_behind_the_back_of_torch(layer):
    for weight in layer.parameters():
        weight.data.mul_(0.5)


def change_of_a_gate_behind_the_back_of_torch(layer):
    layer.parameter("b.f", layer=1).data.fill_(3.0)


def change_by_numpy(layer):
    layer.U_l1.detach().numpy()[:] *= 0.5


CHANGES = [
    change_behind_the_back_of_torch, change_of_a_gate_behind_the_back_of_torch, change_by_numpy,
    change_by_an_optimiser, change_in_place, change_by_loading, change_of_a_parameter,
    change_by_drawing_again,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_noticed(change):
    layer = make("lstm", num_layers=2)
    x = randn(3, 2, I)
    before, _ = stream(layer, x)
    change(layer)
    check(layer, x)
    assert not torch.equal(stream(layer, x)[0], before)


def test_another_dtype_is_noticed():
    layer = make("gru")
    stream(layer, randn(2, 2, I))
    layer.float()
    check(layer, randn(2, 2, I, dtype=torch.float32))


def test_batches_may_change_from_step_to_step():
    layer = make("gru")
    x = randn(4, 6, I)
    expected, _ = layer(x)
    state, others = layer.initial_state(2), layer.initial_state(4)
    with torch.no_grad():
        for t in range(4):
            y, state = layer.step(x[t, :2], state)
            z, others = layer.step(x[t, 2:], others)
            assert torch.equal(torch.cat([y, z]), expected[t])


def test_earlier_results_stay():
    """A user may keep every state and output, or go back to one."""
    layer = make("lstm", num_layers=2)
    x = randn(4, 2, I)
    state, kept = layer.initial_state(2), []
    with torch.no_grad():
        for x_t in x:
            y, state = layer.step(x_t, state)
            kept.append((y, y.clone(), state, [each.clone() for each in state]))
        for y, y_copy, state, copies in kept:
            assert torch.equal(y, y_copy)
            assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))
        again, _ = layer.step(x[2], kept[1][2])
        assert torch.equal(again, kept[2][0])


def test_inputs_of_any_memory_order():
    layer = make("lstm")
    x, state = randn(3, 2, I), some_state(layer, 2)
    expected, _ = stream(layer, x, state)
    turned = type(state)(*(v.transpose(1, 2).contiguous().transpose(1, 2) for v in state))
    with torch.no_grad():
        y, _ = layer.step(x.transpose(0, 2).contiguous().transpose(0, 2)[0], turned)
    assert torch.equal(y, expected[0])


def test_a_copy_has_steps_of_its_own():
    layer = make("gru")
    x = randn(2, 2, I)
    expected, _ = stream(layer, x)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(stream(layer, x)[0], expected)
    check(other, x)
    assert not torch.equal(stream(other, x)[0], expected)


def test_gradients_through_steps():
    """With a gradient wanted, a step is a sequence of one, and its gradient is there."""
    layer = make("lstm")
    x = randn(3, 2, I).requires_grad_()
    y, state = layer(x)
    (expected,) = torch.autograd.grad(y.square().sum() + state.c.sum(), [x])
    state, total = layer.initial_state(2), 0.0
    stream(layer, x.detach())
    for x_t in x:
        y_t, state = layer.step(x_t, state)
        total = total + y_t.square().sum()
    (found,) = torch.autograd.grad(total + state.c.sum(), [x])
    assert torch.equal(found, expected)


def test_zoneout_is_drawn_in_training_and_expected_in_evaluation():
    layer = make("lstm", zoneout=0.5)
    x = randn(3, 2, I)
    check(layer.eval(), x)
    first, second = stream(layer.train(), x)[0], stream(layer, x)[0]
    assert not torch.equal(first, second), "new masks at every step"
    check(layer.eval(), x)


def test_an_engine_that_is_asked_for_runs():
    layer = make("lstm")
    x = randn(3, 2, I)
    expected, _ = stream(layer, x)
    with cw.engine("reference"):
        found, _ = stream(layer, x)
        assert torch.equal(found, layer(x)[0])
    # Another order of sums: 1e-16 a sum, few sums in a row.
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_mistakes_are_still_told():
    layer = make("lstm")
    stream(layer, randn(2, 2, I))
    state = layer.initial_state(2)
    with torch.no_grad():
        for x_t in (randn(3, I), randn(2, I + 1), randn(2, I, dtype=torch.float32)):
            with pytest.raises(cw.InputError):
                layer.step(x_t, state)
        with pytest.raises(cw.InputError):
            layer.step(randn(2, I), [state.h, state.c[..., : H - 1]])
