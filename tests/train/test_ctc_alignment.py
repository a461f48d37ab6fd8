"""Best paths, of all and of a target, are those that a search through every path finds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train.ctc_paths import pad, paths, random_log_probs

from cellwright.errors import InputError
from cellwright.train.ctc import Alignment, Span, align, greedy


def spans_of(path, frames, blank):
    """(label, first, last, log-probability) of a path, run by run."""
    found = []
    for label, run in itertools.groupby(range(len(path)), key=lambda t: path[t]):
        steps = list(run)
        if label != blank:
            log_prob = math.fsum(frames[t, label].item() for t in steps)
            found.append((label, steps[0], steps[-1], log_prob))
    return found


def check(alignment, labels, path, log_prob, frames, blank):
    assert alignment.labels == labels
    assert alignment.log_prob == pytest.approx(log_prob, rel=1e-12, abs=1e-12)
    expected = spans_of(path, frames, blank)
    assert [(s.label, s.first, s.last) for s in alignment.spans] == [each[:3] for each in expected]
    assert [s.log_prob for s in alignment.spans] == pytest.approx([each[3] for each in expected])


@settings(max_examples=40)
@given(steps=st.integers(0, 5), labels=st.integers(1, 4), seed=st.integers(0, 999), data=st.data())
def test_best_paths(steps, labels, seed, data):
    blank = data.draw(st.integers(0, labels - 1))
    log_probs = random_log_probs(steps, 1, labels, seed)
    best, every = {}, None
    for found in paths(log_probs[:, 0], blank):
        if found[0] not in best or found[2] > best[found[0]][2]:
            best[found[0]] = found
        if every is None or found[2] > every[2]:
            every = found
    check(greedy(log_probs, blank=blank)[0], *every, log_probs[:, 0], blank)
    for target, found in best.items():
        (alignment,) = align(log_probs, *_rows([target]), blank=blank)
        check(alignment, *found, log_probs[:, 0], blank)


def _rows(targets, lengths=None, filler=0):
    padded, counts = pad(targets, filler)
    return padded, lengths, counts


def test_batches_are_ragged():
    log_probs = random_log_probs(6, 3, 4)
    targets, lengths = [(1, 1), (), (3, 2)], [6, 0, 3]
    log_probs[3:, 2] = math.nan
    log_probs[:, 1] = math.nan
    aligned = align(log_probs, *_rows(targets, lengths, filler=-1))
    best = greedy(log_probs, lengths)
    assert [each.labels for each in aligned] == targets
    for b, length in enumerate(lengths):
        one = log_probs[:length, b : b + 1]
        assert align(one, *_rows(targets[b : b + 1])) == aligned[b : b + 1]
        assert greedy(one) == best[b : b + 1]
    assert aligned[1] == best[1] == Alignment((), 0.0)


def test_no_sequences():
    log_probs = random_log_probs(3, 0, 4)
    assert greedy(log_probs) == []
    assert align(log_probs, torch.zeros(0, 2, dtype=torch.int64)) == []


def test_a_repeated_label_is_two_only_behind_a_blank():
    log_probs = torch.nn.functional.one_hot(torch.tensor([2, 2, 0, 2, 1, 1]), 3).double().log()
    (found,) = greedy(log_probs[:, None])
    assert found == Alignment((Span(2, 0, 1, 0.0), Span(2, 3, 3, 0.0), Span(1, 4, 5, 0.0)), 0.0)
    assert align(log_probs[:, None], torch.tensor([[2, 2, 1]])) == [found]


def test_of_equal_labels_the_lowest():
    log_probs = torch.full((2, 1, 4), math.log(0.25))
    assert greedy(log_probs, blank=3)[0].labels == (0,)


def test_of_equal_paths_the_soonest():
    log_probs = torch.full((5, 1, 3), math.log(1 / 3))
    (found,) = align(log_probs, torch.tensor([[1, 2]]))
    assert [(span.first, span.last) for span in found.spans] == [(0, 0), (1, 4)]


def test_alignment_follows_the_probabilities_over_many_frames():
    pieces = [(0, 40), (3, 15), (0, 1), (3, 30), (1, 60), (2, 7), (0, 20)]
    path = torch.cat([torch.full((count,), label) for label, count in pieces])
    noise = torch.rand(len(path), 4, generator=torch.Generator().manual_seed(1))
    log_probs = (4 * torch.nn.functional.one_hot(path, 4) + noise).log_softmax(-1)[:, None]
    (found,) = align(log_probs, torch.tensor([[3, 3, 1, 2]]))
    assert [(span.first, span.last) for span in found.spans] == [
        (40, 54), (56, 85), (86, 145), (146, 152),
    ]  # fmt: skip


def test_impossible_targets():
    log_probs = random_log_probs(3, 2, 3)
    assert align(log_probs, torch.tensor([[1, 2], [1, 1]]))[1].labels == (1, 1)
    message = "sequence 1 has 3 frames, and its target needs at least 4"
    with pytest.raises(InputError, match=message):
        align(log_probs, *_rows([(1,), (1, 1, 2)]))


def test_targets_of_probability_zero():
    log_probs = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).log()[:, None]
    assert align(log_probs, torch.tensor([[1]]))[0].labels == (1,)
    with pytest.raises(InputError, match=r"sequence 0 cannot be aligned: .* the probability 0"):
        align(log_probs, torch.tensor([[2]]))


@pytest.mark.parametrize("decode", [greedy, lambda x: align(x, torch.tensor([[1]]))])
@pytest.mark.parametrize(
    "log_probs, message",
    [
        (torch.randn(3, 1, 4) * 3, "apply log_softmax"),
        (torch.full((3, 1, 4), 0.25), "sum to 5.136, not 1"),
        (torch.full((3, 1, 4), math.nan), "NaN in frame 0"),
        (torch.zeros(3, 4), r"expected shape \(T, B, labels\)"),
    ],
)
def test_mistakes(decode, log_probs, message):
    with pytest.raises(InputError, match=message):
        decode(log_probs)
