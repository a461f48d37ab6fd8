"""Temporal order: in which order X and Y came, far apart, among symbols without meaning."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from cellwright.errors import UsageError
from cellwright.tasks.drawing import SOURCE, Drawn, fresh, one_hot, whole
from cellwright.tasks.success import CLASS_WITHIN_03
from cellwright.tasks.task import Case, Data, Published, task

SYMBOLS = ("E", "B", "a", "b", "c", "d", "X", "Y")
"""The symbols in the order of the input's features."""

CLASSES = {2: ("Q", "R", "S", "U"), 3: ("Q", "R", "S", "U", "V", "A", "B", "C")}
"""Names of the classes in the order of their numbers, by the number of relevant symbols."""

# First and last position of each relevant symbol, counted from 0.
_PLACES = {2: ((10, 20), (50, 60)), 3: ((10, 20), (33, 43), (66, 76))}

_SHORTEST, _LONGEST = 100, 110


def draw(random: np.random.Generator, count: int, *, relevant: int = 2) -> Drawn:
    """Draw sequences of the temporal order problem.

    A sequence has 100 to 110 symbols. It begins with E, ends with B, and has X or Y at two or
    three positions; all others are a, b, c or d. The class says which of X and Y came in which
    order: with X for 0 and Y for 1, it is the binary number that they spell. Two (task 6a) lie
    at positions 10 to 20 and 50 to 60, three (6b) at 10 to 20, 33 to 43 and 66 to 76, counted
    from 0.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 6.

    Args:
        random: source of random numbers.
        count: sequences, B.
        relevant: 2 for task 6a, 3 for task 6b.

    Returns:
        x (T, B, 8) for the longest sequence's T, zero behind the end of a shorter one;
        lengths (B,); classes (B,), from 0 to 3 or to 7.

    Raises:
        UsageError: for a wrong count or number of relevant symbols.

    >>> x, lengths, classes = draw(np.random.default_rng(1), 4)
    >>> x.shape, lengths.tolist(), [CLASSES[2][each] for each in classes]
    (torch.Size([110, 4, 8]), [105, 105, 108, 110], ['S', 'Q', 'S', 'S'])
    """
    count = whole("temporal-order", "count", count, 1)
    if relevant not in _PLACES:
        raise UsageError(
            f"temporal-order: relevant: expected 2 (task 6a) or 3 (task 6b), got {relevant!r}"
        )
    lengths = random.integers(_SHORTEST, _LONGEST + 1, size=count)
    column = np.arange(count)
    symbols = random.integers(SYMBOLS.index("a"), SYMBOLS.index("d") + 1, (lengths.max(), count))
    symbols[0] = SYMBOLS.index("E")
    symbols[lengths - 1, column] = SYMBOLS.index("B")
    classes = np.zeros(count, dtype=np.int64)
    for low, high in _PLACES[relevant]:
        place = random.integers(low, high + 1, size=count)
        which = random.integers(0, 2, size=count)
        symbols[place, column] = SYMBOLS.index("X") + which
        classes = 2 * classes + which
    x = one_hot(symbols, lengths, len(SYMBOLS))
    return x, torch.from_numpy(lengths), torch.from_numpy(classes)


@task(
    "temporal-order",
    title="Say in which order X and Y came, far apart in a sequence of other symbols",
    source=f"{SOURCE}, experiment 6",
    objective=CLASS_WITHIN_03,
    defaults={
        "hidden_size": 8, "layer": {"init": "chrono:100"}, "optimizer": "adam",
        "learning_rate": 0.01, "batch_size": 10, "epochs": 10,
    },
    published=tuple(
        Published(
            f"LSTM, {weights} weights ({wrong} of 2,560 wrong)", sequences, SOURCE,
            f"mean of {runs} runs; logistic outputs, online gradient descent, stopped after 2,000 "
            "right in a row",
            "sequences", case,
        )
        for case, weights, wrong, sequences, runs in (
            ("6a", 156, 1, 31_390, 20), ("6b", 308, 2, 571_100, 10)
        )
    ),
    cases=(
        Case("6a", {"relevant": 2}, seeds=10),
        Case("6b", {"relevant": 3}, {"epochs": 20}, seeds=5),
    ),
    report=("test_wrong", "test_accuracy", "sequences"),
)  # fmt: skip
def temporal_order(relevant: int = 2) -> Data:
    """New sequences in every batch; 2,560 others to test."""
    return fresh(partial(draw, relevant=relevant), SYMBOLS, CLASSES.get(relevant, ()))
