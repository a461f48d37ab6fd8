"""Long time lag: the sequence's last symbol is its second, behind many without meaning."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from cellwright.tasks.drawing import SOURCE, Drawn, fresh, one_hot, whole
from cellwright.tasks.success import CLASS_WITHIN_02
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.train.examples import names

# Prob(k) = 0.1 * 0.9^k: k is the number of these thresholds up to a uniform number in [0, 1).
# Products alone, so that they are the same on every platform; past the last, 1 - 0.9^k is 1.
_THRESHOLDS = 1.0 - np.multiply.accumulate(np.full(348, 0.9))


def draw(random: np.random.Generator, count: int, *, lag: int = 50, distractors: int = 50) -> Drawn:
    """Draw sequences of the problem with long lags and no local regularities.

    A sequence is b, then x or y, then ``lag + k`` distractors, then the trigger e, where
    Prob(k) = 0.1 * 0.9^k. After the trigger the second symbol is to be named: class 0 for x, 1
    for y. Features of the inputs: the distractors, then e, b, x, y. The published test is
    10,000 sequences in a row, with both outputs less than 0.2 from 0 and 1.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 2c, where the last symbol
    is a step of its own; here it is the target of the step before.

    Args:
        random: source of random numbers.
        count: sequences, B.
        lag: the fewest distractors in a sequence, q, at least 1.
        distractors: how many there are to draw from, p, at least 1.

    Returns:
        x (T, B, distractors + 4) for the longest sequence's T, zero behind the end of a shorter
        one; lengths (B,), at least lag + 3; classes (B,), 0 or 1.

    Raises:
        UsageError: for a wrong count, lag or number of distractors.

    >>> x, lengths, classes = draw(np.random.default_rng(1), 4, lag=50, distractors=50)
    >>> x.shape, lengths.tolist(), classes.tolist()
    (torch.Size([81, 4, 54]), [59, 81, 54, 81], [0, 0, 1, 0])
    """
    count = whole("long-lag", "count", count, 1)
    lag = whole("long-lag", "lag", lag, 1)
    distractors = whole("long-lag", "distractors", distractors, 1)
    trigger, begin, first = (distractors + place for place in (0, 1, 2))
    more = np.searchsorted(_THRESHOLDS, random.random(count), side="right")
    lengths = lag + more + 3
    classes = random.integers(0, 2, size=count)
    symbols = random.integers(0, distractors, size=(lengths.max(), count))
    symbols[0] = begin
    symbols[1] = first + classes
    symbols[lengths - 1, np.arange(count)] = trigger
    x = one_hot(symbols, lengths, distractors + 4)
    return x, torch.from_numpy(lengths), torch.from_numpy(classes)


_PUBLISHED = (
    (50, 50, 30_000), (100, 100, 31_000), (200, 200, 33_000), (500, 500, 38_000),
    (1000, 1000, 49_000), (1000, 500, 49_000), (1000, 200, 75_000), (1000, 100, 135_000),
    (1000, 50, 203_000),
)  # fmt: skip


@task(
    "long-lag",
    title="Name the second symbol, behind up to a thousand others",
    source=f"{SOURCE}, experiment 2c",
    objective=CLASS_WITHIN_02,
    defaults={
        "hidden_size": 8, "layer": {"init": "chrono:50"}, "optimizer": "adam",
        "learning_rate": 0.01, "batch_size": 10, "epochs": 10,
    },
    published=tuple(
        Published(
            "LSTM", sequences, SOURCE,
            "mean of 20 runs, until 10,000 in a row were right", "sequences", f"q={q},p={p}",
        )
        for q, p, sequences in _PUBLISHED
    ),
    cases=tuple(
        Case(f"q={q},p={p}", {"lag": q, "distractors": p}, {"layer": {"init": f"chrono:{q}"}})
        for q, p, _ in _PUBLISHED
    ),
    report=("test_wrong", "test_accuracy", "sequences"),
)  # fmt: skip
def long_lag(lag: int = 50, distractors: int = 50) -> Data:
    """New sequences in every batch; 10,000 others to test."""
    symbols = (*names("a", distractors), "e", "b", "x", "y")
    made = partial(draw, lag=lag, distractors=distractors)
    return fresh(made, symbols, ("x", "y"), tested=10_000)
