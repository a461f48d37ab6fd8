"""Adding and multiplication: the sum or product of two marked numbers, far from the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cellwright.tasks.drawing import SOURCE, Drawn, fresh, whole, within
from cellwright.tasks.success import VALUE_WITHIN_004
from cellwright.tasks.task import Case, Data, Published, task


@dataclass(frozen=True)
class Problem:
    """What is asked of two marked numbers.

    Attributes:
        name: of the task.
        low: numbers are uniform in [low, 1).
        neutral: what stands in the place of the sequence's first number, where that is marked.
        target: of the marked numbers X1 and X2.
    """

    name: str
    low: float
    neutral: float
    target: Callable[[np.ndarray, np.ndarray], np.ndarray]


ADDING = Problem("adding", -1.0, 0.0, lambda one, two: 0.5 + (one + two) / 4.0)
MULTIPLICATION = Problem("multiplication", 0.0, 1.0, lambda one, two: one * two)


def draw(
    random: np.random.Generator, count: int, *, problem: Problem = ADDING, length: int = 100
) -> Drawn:
    """Draw sequences of the adding or the multiplication problem.

    A sequence is made of pairs. The first of a pair is a number; the second marks: it is 1 for
    two pairs, -1 for the first and the last pair, 0 for all others. One of the first ten pairs
    is marked, and one of the first ``length / 2 - 1`` of the others. The first pair, if it is
    drawn, keeps its -1, and its number is the neutral one. A sequence is right if the output
    after its last step is less than 0.04 from the target.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiments 4 and 5. A carousel adds by
    itself; it doesn't multiply.

    Args:
        random: source of random numbers.
        count: sequences, B.
        problem: which of the two.
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
    count = whole(problem.name, "count", count, 1)
    # Both marks then lie before the last pair, and ten pairs are there for the first mark.
    length = whole(problem.name, "length", length, 20)
    lengths = random.integers(length, length + length // 10 + 1, size=count)
    first = random.integers(0, 10, size=count)
    # The second is one of the first length / 2 - 1 pairs that are left.
    second = random.integers(0, length // 2 - 1, size=count)
    second += second >= first

    column = np.arange(count)
    pairs = np.zeros((lengths.max(), count, 2))
    pairs[..., 0] = problem.low + (1.0 - problem.low) * random.random((len(pairs), count))
    for place in (first, second):
        pairs[place, column, 1] = 1.0
    pairs[0, pairs[0, :, 1] == 1.0, 0] = problem.neutral
    pairs[0, :, 1] = -1.0
    pairs[lengths - 1, column, 1] = -1.0
    pairs[~within(lengths)] = 0.0
    targets = problem.target(pairs[first, column, 0], pairs[second, column, 0])
    return (
        torch.from_numpy(pairs).float(),
        torch.from_numpy(lengths),
        torch.from_numpy(targets[:, None]).float(),
    )


def _data(problem: Problem, length: int, asked: str) -> Data:
    return fresh(partial(draw, problem=problem, length=length), ("number", "marker"), (asked,))


_SETTINGS = {
    "hidden_size": 8, "layer": {"init": "chrono:100"}, "optimizer": "adam",
    "learning_rate": 0.01, "batch_size": 10,
}  # fmt: skip
_REPORT = ("test_wrong", "test_mse", "sequences")


def _case(length: int, seeds: int) -> Case:
    init = {"init": f"chrono:{length}"}
    return Case(f"T={length}", {"length": length}, {"layer": init}, seeds)


@task(
    "adding",
    title="Add two marked numbers, far from the sequence's end",
    source=f"{SOURCE}, experiment 4",
    objective=VALUE_WITHIN_004,
    # The same number of sequences at each length, fewer than the published number at the least.
    defaults={**_SETTINGS, "epochs": 20},
    published=tuple(
        Published(
            f"LSTM, 93 weights ({wrong} of 2,560 wrong)", sequences, SOURCE,
            "mean of 10 runs; online gradient descent, stopped after 2,000 right in a row",
            "sequences", f"T={length}",
        )
        for length, wrong, sequences in ((100, 1, 74_000), (500, 0, 209_000), (1000, 1, 853_000))
    ),
    cases=(_case(100, 10), _case(500, 5), _case(1000, 5)),
    report=_REPORT,
)  # fmt: skip
def adding(length: int = 100) -> Data:
    """New sequences in every batch; 2,560 others to test."""
    return _data(ADDING, length, "sum")


@task(
    "multiplication",
    title="Multiply two marked numbers, far from the sequence's end",
    source=f"{SOURCE}, experiment 5",
    objective=VALUE_WITHIN_004,
    defaults={**_SETTINGS, "epochs": 40},
    published=tuple(
        Published(
            f"LSTM, 93 weights ({wrong} of 2,560 wrong)", sequences, SOURCE,
            f"mean of 10 runs, stopped when fewer than {limit} of the last 2,000 were wrong",
            "sequences",
        )
        for wrong, limit, sequences in ((139, 140, 482_000), (14, 13, 1_273_000))
    ),
    report=_REPORT,
)  # fmt: skip
def multiplication(length: int = 100) -> Data:
    """New sequences in every batch; 2,560 others to test."""
    return _data(MULTIPLICATION, length, "product")
