"""The loss is the sum over all paths; the impossible is said clearly, or skipped."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train.ctc_paths import collapse, pad, random_log_probs, totals

from cellwright.errors import InputError, InputTypeError
from cellwright.train.ctc import CTCLoss, ctc_loss, frames_needed

# Targets that fit into five frames, over the labels 0 to 3 other than the blank.
TARGETS = {
    0: [(), (1,), (2, 2), (1, 1, 1), (3, 1, 2, 3, 1), (1, 2, 2, 3)],
    2: [(), (0,), (3, 3), (0, 0, 0), (3, 1, 0, 3, 1), (1, 0, 0, 3)],
}


@pytest.mark.parametrize("blank", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_is_the_sum_over_all_paths(blank, dtype):
    targets = TARGETS[blank]
    log_probs = random_log_probs(5, len(targets), 4, dtype=dtype)
    found = ctc_loss(log_probs, *_rows(targets), blank=blank, reduction="none")
    expected = [-totals(log_probs[:, b], blank)[target] for b, target in enumerate(targets)]
    assert found.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # a few roundings of sums of 5 terms
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance
    )


def _rows(targets, lengths=None, filler=0):
    padded, counts = pad(targets, filler)
    return padded, lengths, counts


@settings(max_examples=60)
@given(st.data())
def test_any_batch(data):
    labels = data.draw(st.integers(2, 4))
    blank = data.draw(st.integers(0, labels - 1))
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    others = [label for label in range(labels) if label != blank]
    targets = [tuple(data.draw(st.lists(st.sampled_from(others), max_size=5))) for _ in lengths]
    log_probs = random_log_probs(max(lengths), len(lengths), labels, data.draw(st.integers(0, 99)))
    found = ctc_loss(
        log_probs,
        *_rows(targets, lengths, filler=-7),
        blank=blank,
        reduction="none",
        impossible="skip",
    )
    expected = [
        -totals(log_probs[:length, b], blank).get(targets[b], 0.0)
        for b, length in enumerate(lengths)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_frames_needed_is_the_shortest_path():
    targets = [(), (1,), (1, 1), (1, 2, 1), (2, 2, 2), (1, 1, 2, 2)]
    for target, needed in zip(targets, frames_needed(*pad(targets, filler=2)), strict=True):
        steps = int(needed)
        frames = random_log_probs(steps, 1, 3)[:, 0]
        assert target in totals(frames, 0)
        assert not steps or target not in totals(frames[1:], 0)


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("impossible", ["error", "skip"])
def test_gradient_by_finite_differences(reduction, impossible):
    targets = [(1, 1), (), (3, 2, 1)]
    lengths = [5, 3, 4]
    if impossible == "skip":
        targets, lengths = [*targets, (2, 2, 2)], [*lengths, 4]
    logits = random_log_probs(5, len(targets), 4).requires_grad_()

    def loss(logits):
        return ctc_loss(
            logits.log_softmax(-1),
            *_rows(targets, lengths),
            reduction=reduction,
            impossible=impossible,
        )

    assert torch.autograd.gradcheck(loss, logits)


def test_gradient_is_that_of_the_sum_over_paths():
    logits = random_log_probs(4, 1, 3).requires_grad_()
    (found,) = torch.autograd.grad(
        ctc_loss(logits.log_softmax(-1), torch.tensor([[2, 1]]), reduction="sum"), logits
    )
    log_probs = logits.log_softmax(-1)[:, 0]
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    fitting = torch.tensor([collapse(path, 0) == (2, 1) for path in every.tolist()])
    each = log_probs[torch.arange(4), every[fitting]].sum(1)
    (expected,) = torch.autograd.grad(-each.logsumexp(0), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_frames_and_labels_beyond_a_length_play_no_part():
    targets, lengths = [(1,), (2, 1, 2)], [2, 5]
    log_probs = random_log_probs(5, 2, 3)
    padded, counts = pad(targets)
    expected = ctc_loss(log_probs, padded, lengths, counts, reduction="none")
    log_probs[2:, 0] = math.nan
    padded[0, 1:] = 99
    log_probs.requires_grad_()
    found = ctc_loss(log_probs, padded, lengths, counts, reduction="none")
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), log_probs)
    assert gradient.isfinite().all()
    assert (gradient[2:, 0] == 0).all()


def test_a_sequence_alone_and_in_a_batch_are_the_same():
    targets, lengths = [(1, 1), (2,), (3, 2, 1)], [5, 2, 4]
    log_probs = random_log_probs(5, 3, 4, dtype=torch.float32)
    together = ctc_loss(log_probs, *_rows(targets, lengths), reduction="none")
    for b, (target, length) in enumerate(zip(targets, lengths, strict=True)):
        alone = ctc_loss(log_probs[:, b : b + 1], *_rows([target], [length]), reduction="none")
        assert torch.equal(alone, together[b : b + 1])


# --- reductions and empty batches --------------------------------------------------------------


def test_reductions():
    targets = [(1, 2), (), (3,)]
    log_probs = random_log_probs(4, 3, 4)
    each = ctc_loss(log_probs, *_rows(targets), reduction="none")
    assert ctc_loss(log_probs, *_rows(targets), reduction="sum").item() == pytest.approx(
        each.sum().item(), rel=1e-14
    )
    mean = (each / torch.tensor([2, 1, 1])).mean().item()
    assert ctc_loss(log_probs, *_rows(targets)).item() == pytest.approx(mean, rel=1e-14)
    theirs = torch.nn.functional.ctc_loss(log_probs, pad(targets)[0], [4] * 3, [2, 0, 1])
    assert mean == pytest.approx(theirs.item(), rel=1e-14)


def test_half_precision_is_summed_in_float32():
    exact = random_log_probs(6, 1, 5)
    found = ctc_loss(exact.to(torch.bfloat16), torch.tensor([[1, 2]]))
    assert found.dtype == torch.float32
    # Each log-probability was rounded to 8 bits.
    assert found.item() == pytest.approx(ctc_loss(exact, torch.tensor([[1, 2]])).item(), rel=0.01)


@pytest.mark.parametrize("steps, batch", [(0, 2), (4, 0), (0, 0)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_costs_nothing(steps, batch, reduction):
    log_probs = random_log_probs(steps, batch, 3).requires_grad_()
    targets = torch.zeros(batch, 2, dtype=torch.int64)
    loss = ctc_loss(log_probs, targets, None, [0] * batch, reduction=reduction)
    assert loss.shape == ((batch,) if reduction == "none" else ())
    assert (loss == 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert (gradient == 0).all()


# --- the impossible ----------------------------------------------------------------------------


def test_too_few_frames():
    log_probs = random_log_probs(4, 4, 3)
    targets = _rows([(1, 2), (1, 1, 1), (2,), (2, 2, 1)], [4, 4, 0, 3])
    with pytest.raises(InputError) as caught:
        ctc_loss(log_probs, *targets)
    message = str(caught.value)
    assert "sequence 1 has 4 frames, and its target needs at least 5" in message
    assert "3 labels and a blank between equal neighbours, 2 times" in message
    assert "3 such sequences" in message
    assert "impossible='skip'" in message


def test_exactly_enough_frames():
    log_probs = random_log_probs(5, 1, 3)
    found = ctc_loss(log_probs, torch.tensor([[1, 1, 2, 1]]), reduction="sum")
    only = log_probs[range(5), 0, [1, 0, 1, 2, 1]].sum()
    assert found.item() == pytest.approx(-only.item(), rel=1e-14)


def test_what_is_skipped_has_no_loss_and_no_gradient():
    log_probs = random_log_probs(4, 3, 3).requires_grad_()
    targets = [(1, 2), (1, 1, 1), (2,)]
    found = ctc_loss(log_probs, *_rows(targets), reduction="none", impossible="skip")
    kept = ctc_loss(log_probs[:, [0, 2]], *_rows([(1, 2), (2,)]), reduction="none")
    assert torch.equal(found[[0, 2]], kept)
    assert found[1] == 0
    (gradient,) = torch.autograd.grad(found.sum(), log_probs, retain_graph=True)
    (expected,) = torch.autograd.grad(kept.sum(), log_probs)
    assert torch.equal(gradient, expected)
    assert (gradient[:, 1] == 0).all()
    mean = ctc_loss(log_probs, *_rows(targets), impossible="skip")
    assert mean.item() == pytest.approx((found[0].item() / 2 + found[2].item()) / 3, rel=1e-14)


def test_all_skipped():
    log_probs = random_log_probs(1, 2, 3).requires_grad_()
    loss = ctc_loss(log_probs, torch.tensor([[1, 2], [1, 1]]), impossible="skip")
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert loss == 0
    assert (gradient == 0).all()


def test_the_module_counts_what_it_skips():
    loss = CTCLoss(blank=2, reduction="sum", impossible="skip")
    log_probs = random_log_probs(2, 3, 3)
    batch = _rows([(1, 1), (0, 1), (1,)], [2, 1, 2])
    assert torch.equal(
        loss(log_probs, *batch),
        ctc_loss(log_probs, *batch, blank=2, reduction="sum", impossible="skip"),
    )
    assert (loss.skipped, loss.seen) == (2, 3)
    loss(log_probs[:, :1], torch.tensor([[0]]))
    assert (loss.skipped, loss.seen) == (2, 4)
    assert repr(loss) == "CTCLoss(blank=2, reduction='sum', impossible='skip')"


# --- mistakes ----------------------------------------------------------------------------------

GOOD = random_log_probs(3, 2, 4)
ONES = torch.ones(2, 1, dtype=torch.int64)


def changed(frame, sequence, label, value):
    log_probs = GOOD.clone()
    log_probs[frame, sequence, label] = value
    return log_probs


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((GOOD[0], ONES), r"log_probs: expected shape \(T, B, labels\), got \(2, 4\)"),
        ((GOOD[..., :0], ONES), r"log_probs: expected shape"),
        ((torch.randn(3, 2, 4) * 5, ONES), r"frame 0 of sequence 0 sum to .* log_softmax"),
        ((GOOD.exp(), ONES), "log_softmax"),
        ((changed(2, 1, 3, math.nan), ONES), "NaN in frame 2 of sequence 1"),
        ((changed(1, 0, 3, math.inf), ONES), r"\+inf in frame 1 of sequence 0"),
        ((changed(1, 0, slice(None), -math.inf), ONES), "frame 1 of sequence 0 sum to 0, not 1"),
        ((GOOD, ONES[0]), r"targets: expected shape \(B, S\), padded .* got \(1,\)"),
        ((GOOD, ONES[:1]), r"B = 2 .* got \(1, 1\)"),
        ((GOOD, 4 * ONES), "from 0 to 3 .* got 4 at position 0 of sequence 0"),
        ((GOOD, -ONES), "got -1 at position 0 of sequence 0"),
        ((GOOD, torch.tensor([[1, 2], [3, 0]])), "blank .* got 0 at position 1 of sequence 1"),
        ((GOOD, ONES, [3, 4]), "lengths: log_probs has 3 frames, got a length of 4 for sequence 1"),
        ((GOOD, ONES, [-1, 3]), "lengths: .* got a length of -1 for sequence 0"),
        ((GOOD, ONES, [3]), r"lengths: expected shape \(2,\).* got \(1,\)"),
        ((GOOD, ONES, [2.0, 3.0]), "lengths: expected whole numbers"),
        ((GOOD, ONES, ["a", "b"]), "lengths: expected 2 whole numbers"),
        ((GOOD, ONES, None, [1, 2]), "target_lengths: targets has room for 1 labels, got .* 2"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(InputError, match=message):
        ctc_loss(*arguments)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"blank": 4}, "blank: expected one of the labels 0 to 3, got 4"),
        ({"blank": -1}, "blank: expected at least 0"),
        ({"blank": 1.0}, "blank: expected a whole number"),
        ({"reduction": "avg"}, "reduction: expected one of mean, sum, none, got 'avg'"),
        ({"impossible": "zero"}, "impossible: expected one of error, skip"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        ctc_loss(GOOD, ONES, **options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((GOOD.tolist(), ONES), "log_probs: expected a floating-point tensor, got list"),
        ((GOOD.long(), ONES), "got torch.int64"),
        ((GOOD, [[1], [1]]), "targets: expected a tensor of whole numbers .* got list"),
        ((GOOD, ONES.float()), "targets: .* got torch.float32"),
    ],
)
def test_types(arguments, message):
    with pytest.raises(InputTypeError, match=message):
        ctc_loss(*arguments)


def test_a_label_ruled_out_has_no_gradient():
    logits = torch.zeros(2, 1, 3)
    logits[1, 0, 2] = -math.inf
    with pytest.raises(InputError, match=r"-inf in frame 1 of sequence 0 .*-1e4"):
        ctc_loss(logits.log_softmax(-1), torch.tensor([[1]]))
    logits[1, 0, 2] = -1e4
    logits.requires_grad_()
    loss = ctc_loss(logits.log_softmax(-1), torch.tensor([[1]]))
    # 1 is said by (1, 1), (1, blank) and (blank, 1).
    assert loss.item() == pytest.approx(-math.log(3 / 6), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
