"""The loss of connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.errors import InputError
from cellwright.train.ctc import checks

_REDUCTIONS = ("mean", "sum", "none")
_IMPOSSIBLE = ("error", "skip")


def frames_needed(targets: Tensor, target_lengths: Tensor | Sequence[int] | None = None) -> Tensor:
    """Frames that each target needs at least, (B,): one a label, and one between equal neighbours.

    Args:
        targets: (B, S) whole numbers.
        target_lengths: (B,) from 0 to S; None: all S.

    Raises:
        InputError: a wrong shape or length.

    >>> import torch
    >>> frames_needed(torch.tensor([[1, 2, 2, 2], [3, 4, 0, 0]]), [4, 2])
    tensor([6, 2])
    """
    padded, lengths = checks.read_padded(targets, target_lengths)
    return lengths + checks.repeats(padded, lengths)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    lengths: Tensor | Sequence[int] | None = None,
    target_lengths: Tensor | Sequence[int] | None = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
    impossible: str = "error",
) -> Tensor:
    """Negative log-probability of the targets, summed over all their places in time.

    ::

        loss = −log Σ_π Π_t p_t(π_t)    over the paths π that collapse to the target

    Source: Graves et al. 2006. torch computes it. Its gradient is meant to go on through
    ``log_softmax``, and only then is that of the formula.

    Args:
        log_probs: (T, B, labels), after ``log_softmax(-1)``; finite.
        targets: (B, S) labels other than the blank; what lies beyond a length is not read.
        lengths: (B,) frames of each sequence, 0 to T; None: all T.
        target_lengths: (B,) labels of each target, 0 to S; None: all S. An empty target's only
            path is all blanks.
        blank: the label that stands for none.
        reduction: ``"none"``: (B,). ``"sum"``. ``"mean"``: as torch's, each loss divided by its
            target's length (an empty one's by 1), then the mean over the batch; 0 for no
            sequences.
        impossible: what happens to a target that needs more frames than there are (see
            :func:`frames_needed`). ``"error"``; or ``"skip"``: its loss and its gradient are
            zero, and it stays in the number that a mean is divided by.

    Raises:
        InputError: a wrong shape, length, label or option; log-probabilities that are not finite
            or do not sum to 1; a target with no path.

    >>> import torch
    >>> log_probs = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()[:, None]  # blank and one label
    >>> print(f"{ctc_loss(log_probs, torch.tensor([[1]])).exp().item():.4f}")  # 3 of the 4 paths
    1.3333
    >>> ctc_loss(log_probs, torch.tensor([[1, 1]]))
    Traceback (most recent call last):
      ...
    cellwright.errors.InputError: targets: sequence 0 has 2 frames, and its target needs at least
    3: 2 labels and a blank between equal neighbours, 1 times; shorten the target or let the
    network give more frames, or skip it with impossible='skip'
    """
    _check_options(reduction, impossible)
    losses, counts, _ = _each(log_probs, targets, lengths, target_lengths, blank, impossible)
    return _reduce(losses, counts, reduction)


class CTCLoss(nn.Module):
    """:func:`ctc_loss` as a module that counts what it skipped.

    Args:
        blank, reduction, impossible: as there.

    Attributes:
        skipped: number of sequences, in all calls so far, whose target was impossible.
        seen: number of all sequences so far.

    >>> import torch
    >>> loss = CTCLoss(impossible="skip")
    >>> log_probs = torch.zeros(2, 3, 4).log_softmax(-1)
    >>> value = loss(log_probs, torch.tensor([[1, 2, 3], [1, 1, 0], [1, 2, 0]]), None, [3, 2, 2])
    >>> loss.skipped, loss.seen
    (2, 3)
    """

    def __init__(self, *, blank: int = 0, reduction: str = "mean", impossible: str = "error"):
        super().__init__()
        _check_options(reduction, impossible)
        self.blank = blank
        self.reduction = reduction
        self.impossible = impossible
        self.skipped = 0
        self.seen = 0

    def extra_repr(self) -> str:
        return f"blank={self.blank}, reduction={self.reduction!r}, impossible={self.impossible!r}"

    def forward(
        self,
        log_probs: Tensor,
        targets: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        target_lengths: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        losses, counts, skipped = _each(
            log_probs, targets, lengths, target_lengths, self.blank, self.impossible
        )
        self.skipped += skipped
        self.seen += len(counts)
        return _reduce(losses, counts, self.reduction)


def _check_options(reduction: str, impossible: str) -> None:
    for name, value, known in (
        ("reduction", reduction, _REDUCTIONS),
        ("impossible", impossible, _IMPOSSIBLE),
    ):
        if value not in known:
            raise InputError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def _each(
    log_probs: Tensor,
    targets: Tensor,
    lengths: Tensor | Sequence[int] | None,
    target_lengths: Tensor | Sequence[int] | None,
    blank: int,
    impossible: str,
) -> tuple[Tensor, Tensor, int]:
    """The loss of each sequence (B,), the targets' lengths (B,), how many were skipped."""
    log_probs, frames = checks.read_log_probs(log_probs, lengths, blank)
    steps, batch, labels = log_probs.shape
    _check_finite(log_probs.detach(), frames)
    targets, counts = checks.read_targets(targets, target_lengths, batch, labels, blank)
    if impossible == "error":
        checks.check_possible(frames, targets, counts, ", or skip it with impossible='skip'")
    kept = (counts + checks.repeats(targets, counts) <= frames).nonzero().flatten()
    if not steps or not len(kept):  # torch takes no empty tensors; the sum over no frames is zero
        return log_probs[:0].sum((0, 2)), counts, batch - len(kept)
    chosen = kept.to(log_probs.device)
    found = F.ctc_loss(
        log_probs if len(kept) == batch else log_probs[:, chosen],
        targets[kept].to(log_probs.device),
        frames[kept],
        counts[kept],
        blank=blank,
        reduction="none",
    )
    losses = log_probs.new_zeros(batch).index_copy(0, chosen, found)
    return losses, counts, batch - len(kept)


def _check_finite(log_probs: Tensor, lengths: Tensor) -> None:
    inside = checks.within(lengths, log_probs.shape[0])
    wrong = (log_probs.isneginf().any(-1).cpu().T & inside).nonzero()
    if len(wrong):
        sequence, frame = wrong[0].tolist()
        raise InputError(
            f"log_probs: a log-probability of -inf in frame {frame} of sequence {sequence} has no "
            f"gradient; to rule a label out, put -1e4 in place of -inf before log_softmax"
        )


def _reduce(losses: Tensor, target_lengths: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return (losses / target_lengths.clamp(min=1).to(losses.device)).sum() / max(len(losses), 1)
