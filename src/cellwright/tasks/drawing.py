"""What the generators of sequences share.

A generator is a function ``draw(random, count, **options) -> (x, lengths, targets)``. It asks
``random`` for whole numbers and for uniform ones alone, whose bits numpy makes from the seed in
the same way on every platform, and works on them in float64 with sums, products and comparisons.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import UsageError
from cellwright.tasks.task import Data
from cellwright.train.sequences import Draw, Generated

Drawn = tuple[Tensor, Tensor, Tensor]
"""x (T, B, features), lengths (B,), targets."""

SOURCE = "Hochreiter & Schmidhuber 1997, Long short-term memory"
TESTED = 2560
"""Sequences in the paper's tests."""


def whole(task: str, option: str, value: object, least: int) -> int:
    """The option's value, if it is a whole number of at least ``least``.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UsageError(
            f"{task}: {option}: expected a whole number, at least {least}, got {value!r}"
        )
    return int(value)


def within(lengths: np.ndarray) -> np.ndarray:
    """Which steps belong to a sequence, (T, B) for the longest of the lengths (B,)."""
    return np.arange(lengths.max(initial=0))[:, None] < lengths


def one_hot(symbols: np.ndarray, lengths: np.ndarray, features: int) -> Tensor:
    """Symbols (T, B) as inputs (T, B, features), one of which is 1; zeros behind the lengths."""
    x = torch.zeros(*symbols.shape, features)
    x.scatter_(2, torch.from_numpy(symbols)[..., None], 1.0)
    return x * torch.from_numpy(within(lengths))[..., None]


def fresh(
    draw: Draw, features: tuple[str, ...], outputs: tuple[str, ...], tested: int = TESTED
) -> Data:
    """New sequences in every batch, 2,000 in an epoch, and others to test.

    Args:
        draw: the generator with its options.
        features, outputs: their names.
        tested: sequences in the test.

    Raises:
        UsageError: an option of the generator is wrong.
    """
    draw(np.random.default_rng(0), 1)
    return Data(
        train=Generated(draw, features, outputs, count=2000),
        test=Generated(draw, features, outputs, count=tested),
    )
