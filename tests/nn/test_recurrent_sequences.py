"""Lengths, resets, layers and directions: each equals a simpler computation."""

import pytest
import torch
from nn.recurrent_cases import CELLS, close, from_torch, make, randn, some_state, torch_lstm

import cellwright as cw

T, B, I, H = 6, 4, 3, 4
LENGTHS = torch.tensor([4, 0, 6, 1])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rows(state, index):
    """The state of one sequence of the batch."""
    return [each[:, index : index + 1] for each in state]


# --- layers and directions ---------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.RNN])
def test_layers_and_directions_are_torchs(kind, layers, bidirectional):
    reference = kind(I, H, layers, bidirectional=bidirectional, dtype=torch.float64)
    layer = from_torch(reference)
    x, state = randn(T, B, I).requires_grad_(), some_state(layer, B)
    y, after = layer(x, state)
    expected, expected_after = reference(x, state[0] if len(state) == 1 else tuple(state))
    close(y, expected)
    expected_after = (expected_after,) if len(state) == 1 else expected_after
    for found, other in zip(after, expected_after, strict=True):
        close(found, other)
    weight = torch.randn_like(y)
    (mine,) = torch.autograd.grad((y * weight).sum() + after[0].sum(), [x])
    (torchs,) = torch.autograd.grad((expected * weight).sum() + expected_after[0].sum(), [x])
    close(mine, torchs)


def test_gradients_of_every_parameter_are_torchs():
    reference = torch_lstm(I, H, 2, bidirectional=True)
    layer = from_torch(reference)
    x = randn(T, B, I)
    for each in (reference, layer):
        y, state = each(x)
        (y.square().sum() + state[1].sum()).backward()
    for name, parameter in layer.named_parameters():
        group, _, suffix = name.partition("_")
        torchs = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih"}[group]
        close(parameter.grad, getattr(reference, f"{torchs}_{suffix}").grad)


@pytest.mark.parametrize("cell", CELLS)
def test_a_bidirectional_layer_is_two_runs(cell):
    both = make(cell, I, H, bidirectional=True)
    ahead, back = make(cell, I, H), make(cell, I, H)
    ahead.load_state_dict({k: v for k, v in both.state_dict().items() if "reverse" not in k})
    back.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in both.state_dict().items() if "reverse" in k}
    )
    x, state = randn(T, B, I), some_state(both, B)
    y, after, trace = both(x, state, trace=True)
    y_ahead, after_ahead, trace_ahead = ahead(x, [s[:1] for s in state], trace=True)
    y_back, after_back, trace_back = back(x.flip(0), [s[1:] for s in state], trace=True)
    close(y, torch.cat([y_ahead, y_back.flip(0)], dim=2))
    for found, one, two in zip(after, after_ahead, after_back, strict=True):
        close(found, torch.cat([one, two]))
    for name, value in trace.items():
        close(value, torch.cat([trace_ahead[name], trace_back[name].flip(1)]))


@pytest.mark.parametrize("cell", CELLS)
def test_layers_read_the_outputs_of_those_below(cell):
    three = make(cell, I, H, 3, bidirectional=True)
    x, state = randn(T, B, I), some_state(three, B)
    y, after = three(x, state)
    entering = x
    for number in range(3):
        alone = make(cell, entering.shape[2], H, bidirectional=True)
        mine = {k: v for k, v in three.state_dict().items() if f"_l{number}" in k}
        alone.load_state_dict({k.replace(f"_l{number}", "_l0"): v for k, v in mine.items()})
        part = slice(2 * number, 2 * number + 2)
        entering, ended = alone(entering, [s[part] for s in state])
        for found, other in zip(after, ended, strict=True):
            close(found[part], other)
    close(y, entering)


# --- lengths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_ragged_batch_is_each_sequence_alone(cell, bidirectional):
    layer = make(cell, I, H, 2, bidirectional=bidirectional)
    x, state = randn(T, B, I), some_state(layer, B)
    y, after, trace = layer(x, state, lengths=LENGTHS, trace=True)
    for index, length in enumerate(LENGTHS.tolist()):
        assert not y[length:, index].any()
        before = rows(state, index)
        if length == 0:
            for found, expected in zip(after, before, strict=True):
                assert torch.equal(found[:, index : index + 1], expected)
            assert not any(value[:, :, index].any() for value in trace.values())
            continue
        alone, ended, traced = layer(x[:length, index : index + 1], before, trace=True)
        close(y[:length, index], alone[:, 0])
        for found, expected in zip(after, ended, strict=True):
            close(found[:, index : index + 1], expected)
        for name, value in traced.items():
            close(trace[name][:, :length, index], value[:, :, 0])
            assert not trace[name][:, length:, index].any()


def test_lengths_in_any_form():
    layer = make("lstm", I, H)
    x = randn(T, B, I)
    expected, _ = layer(x, lengths=LENGTHS)
    forms = [LENGTHS.tolist(), tuple(LENGTHS.tolist()), LENGTHS.int(), LENGTHS.to(torch.uint8)]
    for form in (*forms, LENGTHS.numpy()):
        assert torch.equal(layer(x, lengths=form)[0], expected)


def test_full_lengths_change_nothing():
    layer = make("lstm", I, H, 2, bidirectional=True)
    x = randn(T, B, I)
    y, state = layer(x)
    full, after = layer(x, lengths=[T] * B)
    close(full, y)
    close(after.c, state.c)


def test_padding_has_no_influence_and_gets_no_gradient():
    layer = make("gru_v1", I, H, 2, bidirectional=True)
    x = randn(T, B, I)
    padded = torch.arange(T)[:, None] >= LENGTHS
    other = torch.where(padded[..., None], torch.full_like(x, 1e6), x).requires_grad_()
    y, _ = layer(other, lengths=LENGTHS)
    close(y, layer(x, lengths=LENGTHS)[0])
    y.square().sum().backward()
    assert not other.grad[padded].any()
    assert other.grad[~padded].abs().min() > 0


def test_nan_in_the_padding_stays_there():
    layer = make("lstm", I, H, bidirectional=True)
    x = randn(T, B, I)
    padded = torch.arange(T)[:, None] >= LENGTHS
    dirty = torch.where(padded[..., None], torch.full_like(x, torch.nan), x)
    y, state = layer(dirty, lengths=LENGTHS)
    close(y, layer(x, lengths=LENGTHS)[0])
    assert state.c.isfinite().all()


def test_only_empty_sequences():
    layer = make("lstm", I, H, 2, bidirectional=True)
    x, state = randn(T, B, I).requires_grad_(), some_state(layer, B)
    y, after = layer(x, state, lengths=[0] * B)
    assert not y.any()
    assert torch.equal(after.h, state.h)
    y.sum().backward()
    assert not x.grad.any()
    assert not layer.U_l0.grad.any()


# --- resets ------------------------------------------------------------------------------------


def episodes(marks):
    """(begin, end) of every stretch between marks."""
    begins = sorted({0, *(t for t, mark in enumerate(marks) if mark)})
    return list(zip(begins, [*begins[1:], len(marks)], strict=True))


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_splits_the_sequence(cell, learnt):
    layer = make(cell, I, H, learn_initial_state=learnt)
    x, state = randn(T, B, I), some_state(layer, B)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = reset[5, 0] = reset[0, 1] = reset[1, 1] = reset[3, 2] = True
    y, after, trace = layer(x, state, reset=reset, trace=True)
    for index in range(B):
        parts = []
        for begin, end in episodes(reset[:, index].tolist()):
            fresh = begin > 0 or bool(reset[0, index])
            before = layer.initial_state(1) if fresh else rows(state, index)
            part, ended, traced = layer(x[begin:end, index : index + 1], before, trace=True)
            parts.append(part[:, 0])
            for name, value in traced.items():
                close(trace[name][:, begin:end, index], value[:, :, 0])
        close(y[:, index], torch.cat(parts))
        for found, expected in zip(after, ended, strict=True):
            close(found[:, index : index + 1], expected)


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru_v1", "lstm_projection", "slstm"])
def test_a_reset_splits_the_sequence_for_both_directions(cell, learnt):
    layer = make(cell, I, H, bidirectional=True, learn_initial_state=learnt)
    x, state = randn(T, 1, I), some_state(layer, 1)
    reset = torch.tensor([False, False, True, False, True, False])[:, None]
    y, after = layer(x, state, reset=reset)
    fresh = layer.initial_state(1)
    stretches = episodes(reset[:, 0].tolist())
    parts, ended = [], []
    for number, (begin, end) in enumerate(stretches):
        # The given state is what the first stretch begins with, and backwards the last.
        ahead = state if number == 0 else fresh
        back = state if number == len(stretches) - 1 else fresh
        before = [torch.stack([a[0], b[1]]) for a, b in zip(ahead, back, strict=True)]
        part, result = layer(x[begin:end], before)
        parts.append(part)
        ended.append(result)
    close(y, torch.cat(parts))
    for found, last, first in zip(after, ended[-1], ended[0], strict=True):
        close(found[0], last[0])
        close(found[1], first[1])


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru_v1"])
def test_lengths_and_resets_together_are_each_sequence_alone(cell, learnt):
    layer = make(cell, I, H, 2, bidirectional=True, learn_initial_state=learnt)
    x, state = randn(T, B, I), some_state(layer, B)
    # Marks in the padding too, right behind the end of a sequence among them.
    reset = torch.rand(T, B) < 0.4
    reset[4, 0] = reset[1, 3] = reset[0, 1] = True
    y, after = layer(x, state, lengths=LENGTHS, reset=reset)
    for index, length in enumerate(LENGTHS.tolist()):
        if length == 0:
            close(after.h[:, index], state.h[:, index])
            continue
        one = slice(index, index + 1)
        alone, ended = layer(x[:length, one], rows(state, index), reset=reset[:length, one])
        close(y[:length, index], alone[:, 0])
        close(after.h[:, one], ended.h)


def test_a_reset_stops_the_gradient_too():
    layer = make("lstm", I, H, bidirectional=True)
    x, state = randn(T, 1, I).requires_grad_(), [s.requires_grad_() for s in some_state(layer, 1)]
    reset = torch.zeros(T, 1, dtype=torch.bool)
    reset[3] = True
    y, _ = layer(x, state, reset=reset)
    y[3:, :, :H].sum().backward(retain_graph=True)
    assert not x.grad[:3].any()
    assert x.grad[3:].abs().min() > 0
    assert not state[0].grad.any()
    x.grad = None
    y[:3, :, H:].sum().backward()
    assert not x.grad[3:].any()
    assert x.grad[:3].abs().min() > 0


def test_a_mark_at_the_first_step_discards_the_given_state():
    layer = make("lstm", I, H)
    x, state = randn(T, B, I), some_state(layer, B)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[0] = True
    close(layer(x, state, reset=reset)[0], layer(x)[0])


def test_no_mark_changes_nothing_and_integers_are_marks_too():
    layer = make("lstm", I, H, 2)
    x, state = randn(T, B, I), some_state(layer, B)
    none = torch.zeros(T, B, dtype=torch.bool)
    close(layer(x, state, reset=none)[0], layer(x, state)[0])
    some = torch.rand(T, B) < 0.5
    expected, _ = layer(x, state, reset=some)
    assert torch.equal(layer(x, state, reset=some.long())[0], expected)
    assert torch.equal(layer(x, state, reset=some.to(torch.uint8))[0], expected)


# --- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_may_be_cut_anywhere(cell):
    layer = make(cell, I, H, 2)
    x = randn(T, B, I)
    whole, after = layer(x)
    first, between = layer(x[:2])
    second, ended = layer(x[2:], between)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(map(torch.equal, ended, after))


@pytest.mark.parametrize("cell", CELLS)
def test_sequences_of_a_batch_do_not_know_of_each_other(cell):
    layer = make(cell, I, H, 2, bidirectional=True)
    x = randn(T, B, I).requires_grad_()
    y, _ = layer(x)
    for index in range(B):
        close(y[:, index : index + 1], layer(x[:, index : index + 1])[0])
    (found,) = torch.autograd.grad(y[:, 1].sum(), [x])
    assert found[:, 1].any()
    assert not found[:, [0, 2, 3]].any()


def test_explain_tells_engine_and_reason():
    layer = make("gru", I, H, 2, bidirectional=True)
    found = cw.explain(layer, randn(T, B, I))
    text = str(found)
    assert found.engine in cw.engines.names()
    assert found.reason
    for word in (found.engine, found.reason, "gru"):
        assert word in text
    with cw.engine("reference"):
        assert cw.explain(layer, randn(T, B, I)).engine == "reference"
    with pytest.raises(cw.InputError, match="layer"):
        cw.explain(torch.nn.GRU(I, H), randn(T, B, I))
