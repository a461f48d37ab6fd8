"""Labels with their places in time: the best path of all, and the best path of a target."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cellwright.errors import InputError
from cellwright.train.ctc import checks


@dataclass(frozen=True)
class Span:
    """A label and the frames in which its path names it.

    Attributes:
        label: its number.
        first, last: its first and its last frame, counted from 0, both included.
        log_prob: sum of its log-probabilities in these frames.
    """

    label: int
    first: int
    last: int
    log_prob: float


@dataclass(frozen=True)
class Alignment:
    """One path through the frames of a sequence.

    Attributes:
        spans: the labels in order; frames between them are blank.
        log_prob: of the whole path, blanks and all.
    """

    spans: tuple[Span, ...]
    log_prob: float

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels alone."""
        return tuple(span.label for span in self.spans)


def greedy(
    log_probs: Tensor, lengths: Tensor | Sequence[int] | None = None, *, blank: int = 0
) -> list[Alignment]:
    """The most probable path of each sequence, collapsed: in every frame the best label.

    It is not always the path of the most probable labels, see :func:`prefix_beam`. Of equally
    probable labels the lowest is taken.

    Source: Graves et al. 2006, section 3.2, best path decoding.

    Args:
        log_probs: (T, B, labels), after ``log_softmax(-1)``.
        lengths: (B,) frames of each sequence, 0 to T; None: all T.
        blank: the label that stands for none.

    Raises:
        InputError: a wrong shape, length or blank; log-probabilities that do not sum to 1.

    >>> import torch
    >>> path = torch.tensor([1, 1, 0, 1, 2])
    >>> log_probs = torch.nn.functional.one_hot(path, 3)[:, None].float().log_softmax(-1)
    >>> (found,) = greedy(log_probs)
    >>> found.labels, [(span.first, span.last) for span in found.spans]
    ((1, 1, 2), [(0, 1), (3, 3), (4, 4)])
    """
    log_probs, found = checks.read_log_probs(log_probs, lengths, blank)
    alignments = []
    for frames in checks.each_sequence(log_probs, found):
        path = frames.argmax(1)
        alignments.append(_collapse(frames, path, path, blank))
    return alignments


def align(
    log_probs: Tensor,
    targets: Tensor,
    lengths: Tensor | Sequence[int] | None = None,
    target_lengths: Tensor | Sequence[int] | None = None,
    *,
    blank: int = 0,
) -> list[Alignment]:
    """The most probable of all paths that stand for each target (forced alignment, Viterbi).

    With e the target's labels and a blank before, between and behind them::

        v_t(s) = max(v_{t−1}(s), v_{t−1}(s−1), [e_s ≠ blank, e_s ≠ e_{s−2}] v_{t−1}(s−2)) p_t(e_s)

    Of equally probable paths, the one that comes to each label sooner. Time and memory grow with
    frames times labels of the target.

    Source: the forward recursion of Graves et al. 2006, section 4.1, with max for the sum.

    Args:
        log_probs: (T, B, labels), after ``log_softmax(-1)``.
        targets: (B, S) labels other than the blank; what lies beyond a length is not read.
        lengths: (B,) frames of each sequence, 0 to T; None: all T.
        target_lengths: (B,) labels of each target, 0 to S; None: all S.
        blank: the label that stands for none.

    Raises:
        InputError: a wrong shape, length or label; log-probabilities that do not sum to 1; a
            target that needs more frames than there are, or whose paths all have probability 0.

    >>> import torch
    >>> log_probs = torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]]).log()[:, None]
    >>> [(span.first, span.last) for span in align(log_probs, torch.tensor([[1, 1]]))[0].spans]
    [(0, 0), (2, 2)]
    >>> [(span.first, span.last) for span in align(log_probs, torch.tensor([[1]]))[0].spans]
    [(0, 2)]
    """
    log_probs, found = checks.read_log_probs(log_probs, lengths, blank)
    padded, counts = checks.read_targets(
        targets, target_lengths, log_probs.shape[1], log_probs.shape[2], blank
    )
    checks.check_possible(found, padded, counts)
    alignments = []
    for sequence, frames in enumerate(checks.each_sequence(log_probs, found)):
        between = np.full(2 * int(counts[sequence]) + 1, blank)
        between[1::2] = padded[sequence, : counts[sequence]].numpy()
        states = _viterbi(frames[:, between], between)
        if states is None:
            raise InputError(
                f"targets: sequence {sequence} cannot be aligned: log_probs gives every path "
                f"of its target the probability 0"
            )
        alignments.append(_collapse(frames, between[states], states, blank))
    return alignments


def _viterbi(emitted: NDArray[np.float64], symbols: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The best state in each frame, or None where no path has a probability above 0.

    Args:
        emitted: (T, 2 S + 1) log-probability of each state's symbol.
        symbols: (2 S + 1,) labels with a blank around each.
    """
    steps, count = emitted.shape
    if not steps:
        return np.zeros(0, dtype=np.int64)
    may_skip = np.zeros(count, dtype=bool)
    may_skip[3::2] = symbols[3::2] != symbols[1:-2:2]
    came = np.zeros((steps, count), dtype=np.int8)  # how many states back the best path was
    ways = np.full((3, count), -np.inf)
    ways[0, :2] = 0.0  # before the first frame: a path starts in a blank or in the first label
    best = emitted[0] + ways[0]
    for t in range(1, steps):
        ways[0] = best
        ways[1, 1:] = best[:-1]
        ways[2, 2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        came[t] = ways.argmax(0)
        best = ways.max(0) + emitted[t]
    state = count - 1 if count == 1 or best[-1] > best[-2] else count - 2
    if np.isneginf(best[state]):
        return None
    states = np.empty(steps, dtype=np.int64)
    for t in reversed(range(steps)):
        states[t] = state
        state -= came[t, state]
    return states


def _collapse(
    frames: NDArray[np.float64],
    path: NDArray[np.int64],
    states: NDArray[np.int64],
    blank: int,
) -> Alignment:
    """Spans of a path, a label a frame; a new one begins where ``states`` changes."""
    steps = np.arange(len(path))
    emitted = frames[steps, path]
    edges = np.flatnonzero(np.diff(states, prepend=-1, append=-1))  # states are not negative
    spans = tuple(
        Span(int(path[first]), int(first), int(stop) - 1, float(emitted[first:stop].sum()))
        for first, stop in itertools.pairwise(edges)
        if path[first] != blank
    )
    return Alignment(spans, float(emitted.sum()))
