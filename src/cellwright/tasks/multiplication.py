"""The multiplication problem: the product of two marked numbers, far from the sequence's end."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from cellwright.tasks.drawing import SOURCE, Drawn, fresh
from cellwright.tasks.marked_pairs import draw_marked_pairs
from cellwright.tasks.success import VALUE_WITHIN_004
from cellwright.tasks.task import Data, Published, task


def draw(random: np.random.Generator, count: int, *, length: int = 100) -> Drawn:
    """Draw sequences of the multiplication problem.

    They are the adding problem's (see `cellwright.tasks.adding.draw`), but for the numbers,
    which are uniform in [0, 1), the first pair's number where that is marked, which is 1, and
    the target, which is the product X1 X2. A carousel adds by itself; it doesn't multiply.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 5.

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
    >>> x.shape, lengths.tolist(), bool(targets.min() >= 0), bool(targets.max() <= 1)
    (torch.Size([110, 4, 2]), [105, 105, 108, 110], True, True)
    """
    pairs, lengths, marked = draw_marked_pairs(random, count, "multiplication", length, 0.0, 1.0)
    return (
        torch.from_numpy(pairs).float(),
        torch.from_numpy(lengths),
        torch.from_numpy((marked[0] * marked[1])[:, None]).float(),
    )


@task(
    "multiplication",
    title="Multiply two marked numbers, far from the sequence's end",
    source=f"{SOURCE}, experiment 5",
    objective=VALUE_WITHIN_004,
    defaults={
        "hidden_size": 8, "layer": {"init": "chrono:100"}, "optimizer": "adam",
        "learning_rate": 0.01, "batch_size": 10, "epochs": 40,
    },
    published=tuple(
        Published(
            f"LSTM, 93 weights ({wrong} of 2,560 wrong)", sequences, SOURCE,
            f"mean of 10 runs, stopped when fewer than {limit} of the last 2,000 were wrong",
            "sequences",
        )
        for wrong, limit, sequences in ((139, 140, 482_000), (14, 13, 1_273_000))
    ),
    report=("test_wrong", "test_mse", "sequences"),
)  # fmt: skip
def multiplication(length: int = 100) -> Data:
    """New sequences in every batch; 2,560 others to test."""
    return fresh(partial(draw, length=length), ("number", "marker"), ("product",))
