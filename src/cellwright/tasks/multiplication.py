"""The multiplication problem: the product of two marked numbers, far from the sequence's end."""

from __future__ import annotations

import numpy as np
import torch

from cellwright.tasks.drawing import Drawn
from cellwright.tasks.marked_pairs import draw_marked_pairs


def draw(random: np.random.Generator, count: int, *, steps: int = 100) -> Drawn:
    """Draw sequences of the multiplication problem.

    They are the adding problem's (see `cellwright.tasks.adding.draw`), but for the numbers,
    which are uniform in [0, 1), the first pair's number where that is marked, which is 1, and
    the target, which is the product X1 X2. A carousel adds by itself; it doesn't multiply.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 5.

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
    >>> x.shape, lengths.tolist(), bool(targets.min() >= 0), bool(targets.max() <= 1)
    (torch.Size([110, 4, 2]), [105, 105, 108, 110], True, True)
    """
    pairs, lengths, marked = draw_marked_pairs(random, count, "multiplication", steps, 0.0, 1.0)
    return (
        torch.from_numpy(pairs).float(),
        torch.from_numpy(lengths),
        torch.from_numpy(marked[0] * marked[1]).float(),
    )
