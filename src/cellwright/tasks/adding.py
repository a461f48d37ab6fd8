"""The adding problem: the sum of two marked numbers, far from the sequence's end."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from cellwright.tasks.drawing import SOURCE, Drawn, fresh
from cellwright.tasks.marked_pairs import draw_marked_pairs
from cellwright.tasks.success import VALUE_WITHIN_004
from cellwright.tasks.task import Case, Data, Published, task


def draw(random: np.random.Generator, count: int, *, length: int = 100) -> Drawn:
    """Draw sequences of the adding problem.

    A sequence is made of pairs. The first of a pair is uniform in [-1, 1); the second marks: it
    is 1 for two pairs, -1 for the first and the last pair, 0 for all others. One of the first
    ten pairs is marked, and one of the first ``length / 2 - 1`` of the others. The first pair, if
    it is drawn, keeps its -1, and its number is 0. The target is 0.5 + (X1 + X2) / 4, for the
    marked numbers X1 and X2; a sequence is right if the output after its last step is less than
    0.04 away.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 4.

    Args:
        random: source of random numbers.
        count: sequences, B.
        length: of the shortest sequence, at least 20; lengths are uniform in
            [length, 1.1 length].

    Returns:
        x (T, B, 2) for the longest sequence's T, zero behind the end of a shorter one;
        lengths (B,); targets (B, 1).

    Raises:
        UsageError: for a wrong count or length.

    >>> x, lengths, targets = draw(np.random.default_rng(1), 4, length=100)
    >>> x.shape, lengths.tolist(), targets.shape
    (torch.Size([110, 4, 2]), [105, 105, 108, 110], torch.Size([4, 1]))
    """
    pairs, lengths, marked = draw_marked_pairs(random, count, "adding", length, -1.0, 0.0)
    targets = 0.5 + (marked[0] + marked[1]) / 4.0
    return (
        torch.from_numpy(pairs).float(),
        torch.from_numpy(lengths),
        torch.from_numpy(targets[:, None]).float(),
    )


def _case(length: int, seeds: int) -> Case:
    init = {"init": f"chrono:{length}"}
    return Case(f"T={length}", {"length": length}, {"layer": init}, seeds)


@task(
    "adding",
    title="Add two marked numbers, far from the sequence's end",
    source=f"{SOURCE}, experiment 4",
    objective=VALUE_WITHIN_004,
    # The same number of sequences at each length, fewer than the published number at the least.
    defaults={
        "hidden_size": 8, "layer": {"init": "chrono:100"}, "optimizer": "adam",
        "learning_rate": 0.01, "batch_size": 10, "epochs": 20,
    },
    published=tuple(
        Published(
            f"LSTM, 93 weights ({wrong} of 2,560 wrong)", sequences, SOURCE,
            "mean of 10 runs; online gradient descent, stopped after 2,000 right in a row",
            "sequences", f"T={length}",
        )
        for length, wrong, sequences in ((100, 1, 74_000), (500, 0, 209_000), (1000, 1, 853_000))
    ),
    cases=(_case(100, 10), _case(500, 5), _case(1000, 5)),
    report=("test_wrong", "test_mse", "sequences"),
)  # fmt: skip
def adding(length: int = 100) -> Data:
    """New sequences in every batch; 2,560 others to test."""
    return fresh(partial(draw, length=length), ("number", "marker"), ("sum",))
