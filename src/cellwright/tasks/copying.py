"""Copying memory: ten symbols, a long pause, and the ten symbols again."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch

from cellwright.tasks.drawing import Drawn, fresh, one_hot, whole
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.train.examples import names

_SYMBOLS = 8
_COPIED = 10
_BLANK, _DELIMITER = _SYMBOLS, _SYMBOLS + 1

CLASSES = _SYMBOLS + 1
"""Classes of a step's target: the symbols and the blank."""


def draw(random: np.random.Generator, count: int, *, blanks: int = 100) -> Drawn:
    """Draw sequences of the copying memory problem.

    Ten symbols out of eight, ``blanks - 1`` blanks, the delimiter, ten blanks. The target is a
    blank for ``blanks + 10`` steps, then the ten symbols. In the inputs the symbols are 0 to 7,
    the blank is 8 and the delimiter 9.

    Hochreiter & Schmidhuber 1997, in the setting of Arjovsky, Shah & Bengio 2016, Unitary
    evolution recurrent neural networks.

    Args:
        random: source of random numbers.
        count: sequences, B.
        blanks: steps T between the last symbol and the first that is to be repeated, at least 1.

    Returns:
        x (blanks + 20, B, 10); lengths (B,), all the same; classes (blanks + 20, B), 0 to 8.

    Raises:
        UsageError: for a wrong count or number of blanks.

    >>> x, lengths, classes = draw(np.random.default_rng(1), 3, blanks=100)
    >>> x.shape, lengths.tolist(), classes.shape
    (torch.Size([120, 3, 10]), [120, 120, 120], torch.Size([120, 3]))
    >>> bool((x[:10].argmax(2) == classes[-10:]).all())
    True
    """
    count = whole("copying", "count", count, 1)
    steps = whole("copying", "blanks", blanks, 1) + 2 * _COPIED
    copied = random.integers(0, _SYMBOLS, size=(_COPIED, count))
    symbols = np.full((steps, count), _BLANK)
    symbols[:_COPIED] = copied
    symbols[-_COPIED - 1] = _DELIMITER
    classes = np.full((steps, count), _BLANK)
    classes[-_COPIED:] = copied
    lengths = np.full(count, steps)
    x = one_hot(symbols, lengths, _SYMBOLS + 2)
    return x, torch.from_numpy(lengths), torch.from_numpy(classes)


def memoryless_loss(blanks: int) -> float:
    """Cross entropy, in nats a step, of a guess that knows when to answer, but not what.

    >>> [round(memoryless_loss(blanks), 4) for blanks in (100, 200, 500)]
    [0.1733, 0.0945, 0.04]
    """
    steps = whole("copying", "blanks", blanks, 1) + 2 * _COPIED
    return _COPIED * math.log(_SYMBOLS) / steps


_SETTING_OF_2016 = {
    "hidden_size": 40, "layer": {}, "optimizer": "rmsprop", "learning_rate": 0.001,
    "schedule": "constant", "gradient_clip": 1.0, "batch_size": 20, "epochs": 40,
}  # fmt: skip
_ARJOVSKY = "Arjovsky, Shah & Bengio 2016, Unitary evolution recurrent neural networks"


@task(
    "copying",
    title="Repeat ten symbols after a long pause",
    source=_ARJOVSKY,
    objective="classes",
    # Chrono initialisation needs the high learning rate: it begins with input gates that are
    # nearly shut, and at 0.005 their gradients do not open them in this number of sequences.
    defaults={
        "hidden_size": 64, "layer": {"init": "orthogonal+chrono:120"}, "optimizer": "adam",
        "learning_rate": 0.02, "gradient_clip": 0.1, "batch_size": 10, "epochs": 20,
    },
    published=tuple(
        Published(
            "guess without memory", memoryless_loss(blanks), _ARJOVSKY, note, "test_loss",
            f"T={blanks}",
        )
        for blanks, note in (
            (100, "their LSTM with 40 units comes below it"),
            (200, "their LSTM does not come below it"),
            (500, "their LSTM does not come below it"),
        )
    ),
    cases=tuple(
        Case(f"T={blanks}{name}", {"blanks": blanks}, changes, seeds=3)
        for blanks in (100, 200, 500)
        for name, changes in (
            ("", {"layer": {"init": f"orthogonal+chrono:{blanks + 20}"}}),
            (", forget bias", {"layer": {"init": "orthogonal+forget_bias:5"}}),
            (", setting of 2016", _SETTING_OF_2016),
        )
    ),
    report=("test_loss", "test_accuracy", "sequences"),
)  # fmt: skip
def copying(blanks: int = 100) -> Data:
    """New sequences in every batch; 2,560 others to test."""
    inputs = (*names("symbol ", _SYMBOLS), "blank", "delimiter")
    return fresh(partial(draw, blanks=blanks), inputs, inputs[:CLASSES])
