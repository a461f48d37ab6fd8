"""Sequences of pairs, a number and a marker, two of which are marked: adding, multiplication."""

from __future__ import annotations

import numpy as np

from cellwright.tasks.drawing import whole, within


def draw_marked_pairs(
    random: np.random.Generator, count: int, task: str, length: int, low: float, neutral: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw sequences of pairs.

    Args:
        random: source of random numbers.
        count: sequences.
        task: its name, for messages.
        length: of the shortest sequence; lengths are uniform in [length, 1.1 length].
        low: numbers are uniform in [low, 1).
        neutral: what stands in the place of the first number, where that is marked.

    Returns:
        Pairs (T, B, 2), lengths (B,), and the two marked numbers (2, B).
    """
    count = whole(task, "count", count, 1)
    # Both marks then lie before the last pair, and ten pairs are there for the first mark.
    length = whole(task, "length", length, 20)
    lengths = random.integers(length, length + length // 10 + 1, size=count)
    first = random.integers(0, 10, size=count)
    # The second is one of the first length / 2 - 1 pairs that are left.
    second = random.integers(0, length // 2 - 1, size=count)
    second += second >= first

    column = np.arange(count)
    pairs = np.zeros((lengths.max(), count, 2))
    pairs[..., 0] = low + (1.0 - low) * random.random((len(pairs), count))
    for place in (first, second):
        pairs[place, column, 1] = 1.0
    pairs[0, pairs[0, :, 1] == 1.0, 0] = neutral
    pairs[0, :, 1] = -1.0
    pairs[lengths - 1, column, 1] = -1.0
    pairs[~within(lengths)] = 0.0
    return pairs, lengths, np.stack([pairs[first, column, 0], pairs[second, column, 0]])
