"""Packed sequences in and out, sorted or not."""

import pytest
import torch
from nn.recurrent_cases import CELLS, close, from_torch, make, randn, some_state, torch_lstm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

T, B, I, H = 5, 3, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_sequences_are_torchs(ordered, bidirectional, batch_first):
    reference = torch_lstm(I, H, 2, bidirectional=bidirectional, batch_first=batch_first)
    layer = from_torch(reference)
    lengths = [5, 4, 1] if ordered else [4, 1, 5]
    packed = pack_padded_sequence(randn(T, B, I), lengths, enforce_sorted=ordered)
    state = some_state(layer, B)
    expected, (h, c) = reference(packed, tuple(state))
    found, after, trace = layer(packed, state, trace=True)
    assert isinstance(found, PackedSequence)
    close(found.data, expected.data)
    assert torch.equal(found.batch_sizes, expected.batch_sizes)
    for mine, torchs in (
        (found.sorted_indices, expected.sorted_indices),
        (found.unsorted_indices, expected.unsorted_indices),
    ):
        assert (mine is None) == (torchs is None)
        assert mine is None or torch.equal(mine, torchs)
    close(after.h, h)
    close(after.c, c)
    assert trace["i"].shape == (2 * (1 + bidirectional), T, B, H)


def test_gradients_of_packed_sequences_are_torchs():
    reference = torch_lstm(I, H, 2, bidirectional=True)
    layer = from_torch(reference)
    sequences = [randn(length, I) for length in (2, 5, 1)]
    found = []
    for each in (reference, layer):
        given = [s.clone().requires_grad_() for s in sequences]
        y, state = each(pack_sequence(given, enforce_sorted=False))
        (y.data.square().sum() + state[1].sum()).backward()
        found.append([s.grad for s in given])
    for mine, expected in zip(*reversed(found), strict=True):
        close(mine, expected)
    close(layer.W_l0_reverse.grad, reference.weight_ih_l0_reverse.grad)


@pytest.mark.parametrize("cell", CELLS)
def test_a_packed_sequence_is_a_padded_one_with_lengths(cell):
    layer = make(cell, I, H, 2, bidirectional=True)
    x, lengths = randn(T, B, I), torch.tensor([2, 5, 3])
    packed, state, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), trace=True)
    y, after = layer(x, lengths=lengths)
    padded, found = torch.nn.utils.rnn.pad_packed_sequence(packed)
    assert torch.equal(found, lengths)
    close(padded, y)
    for mine, expected in zip(state, after, strict=True):
        close(mine, expected)


def test_a_packed_sequence_with_reset():
    layer = make("lstm", I, H)
    x, lengths = randn(T, B, I), torch.tensor([2, 5, 3])
    reset = torch.rand(T, B) < 0.5
    packed, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), reset=reset)
    y, _ = layer(x, lengths=lengths, reset=reset)
    close(torch.nn.utils.rnn.pad_packed_sequence(packed)[0], y)
