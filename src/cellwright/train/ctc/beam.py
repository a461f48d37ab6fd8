"""The most probable labels, summed over their paths, with or without a language model."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cellwright.errors import InputError
from cellwright.nn.arguments import check_count
from cellwright.train.ctc import checks
from cellwright.train.ctc.language import EndModel, LanguageModel, Prefix, Prior


@dataclass(frozen=True)
class Hypothesis:
    """Labels that a sequence may stand for.

    Attributes:
        labels: their numbers.
        log_prob: log of the sum of their paths' probabilities, of those that stayed in the beam.
        score: what hypotheses are ranked by: ``log_prob`` with the language model and the bonus.
    """

    labels: Prefix
    log_prob: float
    score: float


def prefix_beam(
    log_probs: Tensor,
    lengths: Tensor | Sequence[int] | None = None,
    *,
    blank: int = 0,
    beam: int = 16,
    best: int = 1,
    language_model: LanguageModel | None = None,
    language_model_end: EndModel | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    least_log_prob: float = -math.inf,
) -> list[list[Hypothesis]]:
    """The most probable label sequences, best first; exact where the beam holds every prefix.

    With y the labels, and only the ``beam`` best prefixes kept after each frame::

        score(y) = log p(y | x) + alpha (Σ_k log LM(y_k | y_1 … y_{k−1}) + log LM(end | y))
                   + beta |y|

    Source: Graves 2012, section 7.5.3 (prefix search); Hannun, Maas, Jurafsky & Ng 2014 (the
    beam, language model and bonus).

    Args:
        log_probs: (T, B, labels), after ``log_softmax(-1)``.
        lengths: (B,) frames of each sequence, 0 to T; None: all T.
        blank: the label that stands for none.
        beam: prefixes kept, at least 1.
        best: hypotheses returned for each sequence, at most ``beam``; fewer come back where fewer
            have a probability above 0.
        language_model: (prefix, label) -> log-probability of the label after the prefix; -inf
            forbids it. It is asked only where the answer can matter, and at most once while
            the prefix stays in the beam.
        language_model_end: (labels) -> log-probability that nothing follows. It ranks what is in
            the beam at the end.
        alpha: weight of the language model, at least 0; with 0 it isn't asked.
        beta: bonus for each label.
        least_log_prob: a label that is less probable than this in a frame extends no prefix
            there. -5 (below 0.7 %) saves time with many labels or a language model.

    Raises:
        InputError: a wrong shape, length, number or option; log-probabilities that do not sum to
            1; a language model's answer above 0 or NaN.
        InputTypeError: a language model that gives no number.

    The path of all blanks is the most probable one here, and yet label 1 is what was said:

    >>> import torch
    >>> log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()[:, None]
    >>> for each in prefix_beam(log_probs, best=3)[0]:
    ...     print(each.labels, f"{math.exp(each.log_prob):.2f}")
    (1,) 0.64
    () 0.36
    """
    log_probs, found = checks.read_log_probs(log_probs, lengths, blank)
    check_count("beam", beam, least=1)
    check_count("best", best, least=1)
    if best > beam:
        raise InputError(f"best: expected at most beam = {beam}, got {best}")
    if not (isinstance(least_log_prob, (int, float)) and least_log_prob <= 0):
        raise InputError(f"least_log_prob: expected a number, at most 0, got {least_log_prob!r}")
    prior = Prior.of(language_model, language_model_end, alpha, beta)
    return [
        _search(frames, blank, beam, least_log_prob, prior)[:best]
        for frames in checks.each_sequence(log_probs, found)
    ]


class _Prefixes:
    """All prefixes met so far, as a tree: a prefix has one number for good."""

    def __init__(self) -> None:
        self.parent = [-1]
        self.label = [-1]
        self._children: dict[tuple[int, int], int] = {}

    def extended(self, parent: int, label: int) -> int:
        """The number of a prefix with one more label."""
        number = self._children.setdefault((parent, label), len(self.parent))
        if number == len(self.parent):
            self.parent.append(parent)
            self.label.append(label)
        return number

    def labels(self, number: int) -> Prefix:
        """A prefix, written out."""
        found = []
        while number:
            found.append(self.label[number])
            number = self.parent[number]
        return tuple(reversed(found))


@dataclass
class _Beam:
    """The prefixes that are kept after a frame, K of them, best first.

    Attributes:
        numbers: of the prefixes, in their tree.
        in_blank, in_label: (K,) log-probability of their paths that end in a blank, in the last
            label.
        worth: (K,) prior of all of their labels.
        asked: (K, labels) prior of one more label, NaN where the language model was not asked;
            (K, 0) without a language model.
    """

    numbers: list[int]
    in_blank: NDArray[np.float64]
    in_label: NDArray[np.float64]
    worth: NDArray[np.float64]
    asked: NDArray[np.float64]


def _search(
    frames: NDArray[np.float64], blank: int, width: int, least: float, prior: Prior
) -> list[Hypothesis]:
    """All hypotheses of one sequence, (length, labels), that are in the beam at its end."""
    prefixes = _Prefixes()
    asked = np.full((1, frames.shape[1] if prior.model else 0), np.nan)
    kept = _Beam([0], np.zeros(1), np.full(1, -np.inf), np.zeros(1), asked)
    labels = np.delete(np.arange(frames.shape[1]), blank)
    for frame in frames:
        open_to = labels if least == -math.inf else labels[frame[labels] >= least]
        kept = _advance(kept, frame, open_to, blank, width, prefixes, prior)
        if not kept.numbers:  # a frame in which everything has probability 0
            return []
    found = []
    for number, log_prob, worth in zip(
        kept.numbers, np.logaddexp(kept.in_blank, kept.in_label), kept.worth, strict=True
    ):
        said = prefixes.labels(number)
        found.append(Hypothesis(said, float(log_prob), float(log_prob + worth) + prior.ended(said)))
    found = [each for each in found if each.score > -math.inf]
    return sorted(found, key=lambda each: -each.score)


def _advance(
    kept: _Beam,
    frame: NDArray[np.float64],
    labels: NDArray[np.int64],
    blank: int,
    width: int,
    prefixes: _Prefixes,
    prior: Prior,
) -> _Beam:
    """The beam after one more frame, in which ``labels`` may extend a prefix."""
    last = np.array([prefixes.label[number] for number in kept.numbers])  # -1: none
    either = np.logaddexp(kept.in_blank, kept.in_label)

    # A prefix stays what it is by a blank or by its last label once more.
    stay_blank = either + frame[blank]
    stay_label = kept.in_label + frame[last]

    # A label makes it longer; its own last label only behind a blank.
    column = np.full(len(frame), -1)
    column[labels] = np.arange(len(labels))
    longer = either[:, None] + frame[labels]
    repeated = np.flatnonzero((last >= 0) & (column[last] >= 0))
    longer[repeated, column[last[repeated]]] = kept.in_blank[repeated] + frame[last[repeated]]

    # Where the longer prefix is in the beam too, what it gains goes there.
    row = {number: index for index, number in enumerate(kept.numbers)}
    parent = np.array([row.get(prefixes.parent[number], -1) for number in kept.numbers])
    child = np.flatnonzero((parent >= 0) & (column[last] >= 0))
    place = parent[child], column[last[child]]
    stay_label[child] = np.logaddexp(stay_label[child], longer[place])
    longer[place] = -np.inf

    stay = np.logaddexp(stay_blank, stay_label)
    longer_worth = _worth_of_labels(kept, labels, stay + kept.worth, longer, width, prefixes, prior)
    in_blank = np.concatenate([stay_blank, np.full(longer.size, -np.inf)])
    in_label = np.concatenate([stay_label, longer.ravel()])
    worth = np.concatenate([kept.worth, longer_worth.ravel()])
    chosen = _largest(np.concatenate([stay, longer.ravel()]) + worth, width)

    count = len(kept.numbers)
    extended = chosen >= count
    origin, taken = np.divmod(chosen - count, max(len(labels), 1))
    origin = np.where(extended, origin, chosen)
    numbers = [
        prefixes.extended(kept.numbers[source], int(labels[index])) if new else kept.numbers[source]
        for source, index, new in zip(
            origin.tolist(), taken.tolist(), extended.tolist(), strict=True
        )
    ]
    asked = kept.asked[origin]
    asked[extended] = np.nan
    return _Beam(numbers, in_blank[chosen], in_label[chosen], worth[chosen], asked)


def _worth_of_labels(
    kept: _Beam,
    labels: NDArray[np.int64],
    stay: NDArray[np.float64],
    longer: NDArray[np.float64],
    width: int,
    prefixes: _Prefixes,
    prior: Prior,
) -> NDArray[np.float64]:
    """Prior of each prefix with each label behind it, (K, labels).

    A language model adds at most 0, so that it is asked for the most promising first and no
    longer once nothing else can come into the beam; what was not asked for is -inf.
    """
    most = np.broadcast_to(kept.worth[:, None] + prior.beta, longer.shape)
    if prior.model is None:
        return most
    bounds = (longer + most).ravel()
    scores = stay[stay > -np.inf].tolist()  # of the best so far, as a heap
    heapq.heapify(scores)
    least = scores[0] if len(scores) == width else -np.inf
    hopeful = np.flatnonzero((bounds >= least) & (bounds > -np.inf))
    worth = np.full(longer.shape, -np.inf)
    written: dict[int, Prefix] = {}
    for index in hopeful[np.argsort(-bounds[hopeful], kind="stable")].tolist():
        if len(scores) == width and bounds[index] < scores[0]:
            break
        row, column = divmod(index, len(labels))
        label = labels[column]
        if np.isnan(kept.asked[row, label]):
            if row not in written:
                written[row] = prefixes.labels(kept.numbers[row])
            kept.asked[row, label] = prior.label(written[row], int(label))
        worth[row, column] = kept.worth[row] + kept.asked[row, label]
        score = longer[row, column] + worth[row, column]
        if len(scores) < width:
            heapq.heappush(scores, score)
        else:
            heapq.heappushpop(scores, score)
    return worth


def _largest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Where the largest scores above -inf are, largest first; of equal ones the first."""
    floor = -np.inf
    if len(scores) > count:
        floor = np.partition(scores, len(scores) - count)[len(scores) - count]
    found = np.flatnonzero((scores >= floor) & (scores > -np.inf))
    return found[np.argsort(-scores[found], kind="stable")[:count]]
