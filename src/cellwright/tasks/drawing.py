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

#: Class of a step or a sequence for which there is no target, as in torch's cross entropy.
NO_CLASS = -100

#: One draw: x (T, B, features), lengths (B,), targets.
Drawn = tuple[Tensor, Tensor, Tensor]


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
