"""The prefix beam is exact where it is wide enough, with and without a language model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train.ctc_paths import random_log_probs, totals

from cellwright.errors import InputError, InputTypeError
from cellwright.train.ctc import ctc_loss, greedy, prefix_beam

WIDE = 4**6  # more than there are label sequences in these tests


def check(found, expected):
    """Hypotheses against {labels: (log_prob, score)}."""
    assert len({each.labels for each in found}) == len(found)
    assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)
    assert {each.labels for each in found} == set(expected)
    for each in found:
        assert (each.log_prob, each.score) == pytest.approx(expected[each.labels], rel=1e-11)


@settings(max_examples=40)
@given(steps=st.integers(0, 5), labels=st.integers(1, 4), seed=st.integers(0, 999), data=st.data())
def test_wide_beam_is_exact(steps, labels, seed, data):
    blank = data.draw(st.integers(0, labels - 1))
    log_probs = random_log_probs(steps, 1, labels, seed)
    (found,) = prefix_beam(log_probs, blank=blank, beam=WIDE, best=WIDE)
    check(found, {y: (p, p) for y, p in totals(log_probs[:, 0], blank).items()})


def model_of(seed, forbidden=()):
    """A language model of two labels' memory, with a say on the end, that adds up to 1."""
    table = random_log_probs(5, 5, 5, seed)  # before the last, last, next; 4 is the end

    def context(prefix):
        return [4, 4, *prefix][-2:]

    def label(prefix, label):
        before, last = context(prefix)
        return -math.inf if (last, label) in forbidden else table[before, last, label].item()

    def end(prefix):
        before, last = context(prefix)
        return table[before, last, 4]

    return label, end


@settings(max_examples=40)
@given(
    steps=st.integers(0, 5),
    seed=st.integers(0, 999),
    alpha=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    beta=st.sampled_from([-1.0, 0.0, 2.0]),
    with_end=st.booleans(),
    forbidden=st.sampled_from([(), ((1, 2), (3, 3), (4, 1))]),
)
def test_wide_beam_with_a_language_model_is_exact(steps, seed, alpha, beta, with_end, forbidden):
    log_probs = random_log_probs(steps, 1, 4, seed)
    label, end = model_of(seed, forbidden)
    (found,) = prefix_beam(
        log_probs,
        beam=WIDE,
        best=WIDE,
        language_model=label,
        language_model_end=end if with_end else None,
        alpha=alpha,
        beta=beta,
    )
    expected = {}
    for labels, log_prob in totals(log_probs[:, 0], 0).items():
        said = math.fsum(label(labels[:k], each) for k, each in enumerate(labels))
        said += float(end(labels)) if with_end else 0.0
        score = log_prob + beta * len(labels) + (alpha * said if alpha else 0.0)
        if score > -math.inf:
            expected[labels] = log_prob, score
    check(found, expected)


def simple_search(frames, width, model, alpha, beta, least):
    """Prefix beam search as it is usually written: dictionaries, one prefix and label at a time."""
    beam = {(): (1.0, 0.0)}
    worth = {(): 0.0}
    for frame in frames.exp().tolist():
        ahead = {}

        def add(prefix, in_blank, in_label, ahead=ahead):
            before = ahead.get(prefix, (0.0, 0.0))
            ahead[prefix] = before[0] + in_blank, before[1] + in_label

        for prefix, (in_blank, in_label) in beam.items():
            last = prefix[-1] if prefix else None
            add(prefix, (in_blank + in_label) * frame[0], in_label * frame[last] if prefix else 0.0)
            for label in range(1, len(frame)):
                if math.log(frame[label]) < least:
                    continue
                longer = (*prefix, label)
                worth[longer] = worth[prefix] + alpha * model(prefix, label) + beta
                add(longer, 0.0, frame[label] * (in_blank + in_label * (label != last)))
        scores = {
            prefix: math.log(sum(ends)) + worth[prefix]
            for prefix, ends in ahead.items()
            if sum(ends)
        }
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:width]
        beam = {prefix: ahead[prefix] for prefix in best}
    return [(prefix, math.log(sum(beam[prefix])), scores[prefix]) for prefix in best]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("least", [-math.inf, -2.5])
@pytest.mark.parametrize("alpha, beta", [(0.0, 0.0), (0.0, -0.5), (0.7, 0.4)])
def test_narrow_beam_is_the_usual_search(width, least, alpha, beta):
    label, _ = model_of(3)
    log_probs = random_log_probs(30, 3, 4, seed=width)
    found = prefix_beam(
        log_probs,
        beam=width,
        best=width,
        language_model=label,
        alpha=alpha,
        beta=beta,
        least_log_prob=least,
    )
    for b, hypotheses in enumerate(found):
        expected = simple_search(log_probs[:, b], width, label, alpha, beta, least)
        assert [each.labels for each in hypotheses] == [labels for labels, _, _ in expected]
        for each, (_, log_prob, score) in zip(hypotheses, expected, strict=True):
            assert (each.log_prob, each.score) == pytest.approx((log_prob, score), rel=1e-11)


def test_wider_beams_come_closer_to_the_loss():
    log_probs = (3 * random_log_probs(60, 1, 3, seed=5)).log_softmax(-1)
    left_out = []
    for beam in (10, 30, 100, 1000):
        (found,) = prefix_beam(log_probs, beam=beam)
        loss = ctc_loss(log_probs, torch.tensor([found[0].labels]), reduction="sum")
        left_out.append(-loss.item() - found[0].log_prob)
    assert left_out == sorted(left_out, reverse=True)
    assert 0 <= left_out[-1] < 0.01  # of the paths' probability; with a beam of 10 it is half


def test_a_thousand_frames_do_not_underflow():
    log_probs = random_log_probs(1000, 1, 20, seed=1, dtype=torch.float32)
    (found,) = prefix_beam(log_probs, beam=4)
    assert -math.inf < found[0].log_prob < -750  # exp(-750) is 0 in double precision
    loss = ctc_loss(log_probs.double(), torch.tensor([found[0].labels]), reduction="sum")
    assert found[0].log_prob <= -loss.item()


def test_the_most_probable_labels_are_not_those_of_the_best_path():
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()[:, None]
    assert greedy(log_probs)[0].labels == ()
    assert prefix_beam(log_probs)[0][0].labels == (1,)


def test_batches_are_ragged():
    log_probs = random_log_probs(6, 3, 4)
    lengths = [6, 0, 3]
    log_probs[3:, 2] = math.nan
    log_probs[:, 1] = math.nan
    found = prefix_beam(log_probs, lengths, best=2)
    for b, length in enumerate(lengths):
        assert prefix_beam(log_probs[:length, b : b + 1], best=2) == found[b : b + 1]
    assert [(each.labels, each.log_prob) for each in found[1]] == [((), 0.0)]
    assert prefix_beam(random_log_probs(3, 0, 4)) == []


def test_probability_zero_makes_no_hypothesis():
    log_probs = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]).log()[:, None]
    (found,) = prefix_beam(log_probs, best=10)
    assert [each.labels for each in found] == [(1,), (2,)]
    assert prefix_beam(log_probs, language_model=lambda prefix, label: -math.inf) == [[]]


def test_the_language_model_decides():
    log_probs = torch.tensor([[0.02, 0.5, 0.48]]).log()[:, None]
    assert prefix_beam(log_probs)[0][0].labels == (1,)

    def favours_2(prefix, label):
        return math.log(0.9 if label == 2 else 0.1)

    assert prefix_beam(log_probs, language_model=favours_2)[0][0].labels == (2,)
    assert prefix_beam(log_probs, language_model=favours_2, alpha=0)[0][0].labels == (1,)
    assert prefix_beam(log_probs, beta=-10.0)[0][0].labels == ()


def test_the_language_model_is_asked_about_little():
    asked = []

    def even(prefix, label):
        asked.append((prefix, label))
        return -math.log(30)

    log_probs = (3 * random_log_probs(50, 1, 30)).log_softmax(-1)
    prefix_beam(log_probs, language_model=even)
    assert all(label != 0 for _, label in asked)
    assert len(asked) < 50 * 16 * 29 / 2


@pytest.mark.parametrize("answer", [math.nan, math.inf, 0.5])
def test_answers_that_are_no_log_probabilities(answer):
    log_probs = random_log_probs(2, 1, 2)
    with pytest.raises(InputError, match=r"language_model\(\(\), 1\): expected a log-prob"):
        prefix_beam(log_probs, language_model=lambda prefix, label: answer)
    with pytest.raises(InputError, match=r"language_model_end\("):
        prefix_beam(log_probs, language_model_end=lambda labels: answer)


def test_answers_that_are_no_numbers():
    with pytest.raises(InputTypeError, match=r"language_model.* got None"):
        prefix_beam(random_log_probs(2, 1, 2), language_model=lambda prefix, label: None)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beam": 0}, "beam: expected at least 1"),
        ({"best": 0}, "best: expected at least 1"),
        ({"beam": 3, "best": 4}, "best: expected at most beam = 3, got 4"),
        ({"alpha": -1}, "alpha: .* at least 0, got -1"),
        ({"alpha": math.inf}, "alpha"),
        ({"alpha": "1"}, "alpha"),
        ({"beta": math.nan}, "beta: expected a finite bonus"),
        ({"least_log_prob": 0.01}, "least_log_prob: .* at most 0"),
        ({"least_log_prob": math.nan}, "least_log_prob"),
        ({"blank": 9}, "blank"),
        ({"lengths": [7]}, "lengths: log_probs has 2 frames"),
        ({"language_model": "arpa"}, "language_model: expected a function, got str"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        prefix_beam(random_log_probs(2, 1, 3), **options)


def test_input_that_is_not_log_probabilities():
    with pytest.raises(InputError, match="apply log_softmax"):
        prefix_beam(torch.randn(4, 1, 5) * 4)
    with pytest.raises(InputError, match="NaN in frame 0 of sequence 0"):
        prefix_beam(torch.full((4, 1, 5), math.nan))
