"""The adding problem: the sum of two marked numbers, far from the sequence's end."""

from __future__ import annotations

import numpy as np
import torch

from cellwright.tasks.drawing import Drawn
from cellwright.tasks.marked_pairs import draw_marked_pairs


def draw(random: np.random.Generator, count: int, *, steps: int = 100) -> Drawn:
    """Draw sequences of the adding problem.

    A sequence is made of pairs. The first of a pair is uniform in [-1, 1); the second marks: it
    is 1 for two pairs, -1 for the first and the last pair, 0 for all others. One of the first
    ten pairs is marked, and one of the first ``steps / 2 - 1`` of the others. The first pair, if
    it is drawn, keeps its -1, and its number is 0. The target is 0.5 + (X1 + X2) / 4, for the
    marked numbers X1 and X2; a sequence is right if the output after its last step is less than
    0.04 away.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 4.

    Args:
        random: source of random numbers.
        count: sequences, B.
        steps: length of the shortest sequence, at least 20; lengths are uniform in
            [steps, 1.1 steps].

    Returns:
        x (T, B, 2) for the longest sequence's T, zero behind the end of a shorter one;
        lengths (B,); targets (B,).

    Raises:
        UsageError: for a wrong count or number of steps.

    >>> x, lengths, targets = draw(np.random.default_rng(1), 4, steps=100)
    >>> x.shape, lengths.tolist(), targets.shape
    (torch.Size([110, 4, 2]), [105, 105, 108, 110], torch.Size([4]))
    """
    pairs, lengths, marked = draw_marked_pairs(random, count, "adding", steps, -1.0, 0.0)
    targets = 0.5 + (marked[0] + marked[1]) / 4.0
    return (
        torch.from_numpy(pairs).float(),
        torch.from_numpy(lengths),
        torch.from_numpy(targets).float(),
    )
