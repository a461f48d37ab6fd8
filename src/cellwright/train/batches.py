"""Series as padded batches, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cellwright.train.series import SeriesSet


class Batches:
    """Batches of ``(x, lengths, targets)``, the loader that a trainer goes through once an epoch.

    Args:
        series: the series.
        classes: the classes, in the order in which they are numbered; None for no targets.
        batch_size: series in a batch; the last may have fewer.
        seed: shuffle by this seed and the epoch; None for the order of the file.

    Shapes:
        x: (T, B, features) float32, zero beyond a series' length; lengths, targets: (B,) int64.
    """

    def __init__(
        self,
        series: SeriesSet,
        classes: Sequence[str] | None,
        batch_size: int,
        seed: int | None = None,
    ):
        self.values = [torch.from_numpy(each).float() for each in series.values]
        self.lengths = torch.tensor(series.lengths)
        targets = np.zeros(len(series), np.int64) if classes is None else series.targets(classes)
        self.targets = torch.from_numpy(targets)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.values) // self.batch_size)

    def order(self) -> list[int]:
        """Positions of the series in the order of this epoch."""
        if self.seed is None:
            return list(range(len(self.values)))
        drawn = np.random.default_rng([self.seed, 1, self.epoch]).permutation(len(self.values))
        return list(map(int, drawn))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = self.order()
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            x = torch.nn.utils.rnn.pad_sequence([self.values[i] for i in chosen])
            yield x, self.lengths[chosen], self.targets[chosen]


def seed_everything(seed: int, epoch: int) -> None:
    """Seed Python, NumPy and torch for an epoch.

    All chance in an epoch follows from the seed and the epoch's number, so that a run that was
    killed and is resumed draws what it would have drawn.
    """
    drawn = int(np.random.default_rng([seed, 2, epoch]).integers(2**32))
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)
