"""Sequences as padded batches, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cellwright.train.examples import IGNORED, Batch


class Batches:
    """Batches of given sequences, the loader that a trainer goes through once an epoch.

    Args:
        inputs: one tensor (steps, features) a sequence.
        targets: a tensor with one entry a sequence, or one tensor (steps, ...) a sequence.
        batch_size: sequences in a batch; the last may have fewer.
        seed: shuffle by this seed and the epoch; None for the order in which they are given.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        targets: Tensor | Sequence[Tensor],
        batch_size: int,
        seed: int | None = None,
    ):
        self.inputs = inputs
        self.lengths = torch.tensor([len(each) for each in inputs])
        self.targets = targets
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def order(self) -> list[int]:
        """Positions of the sequences in the order of this epoch."""
        if self.seed is None:
            return list(range(len(self.inputs)))
        drawn = np.random.default_rng([self.seed, 1, self.epoch]).permutation(len(self.inputs))
        return list(map(int, drawn))

    def __iter__(self) -> Iterator[Batch]:
        order = self.order()
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            x = torch.nn.utils.rnn.pad_sequence([self.inputs[i] for i in chosen])
            yield Batch(x, self.lengths[chosen], self._targets(chosen))

    def _targets(self, chosen: list[int]) -> Tensor:
        if isinstance(self.targets, Tensor):
            return self.targets[chosen]
        taken = [self.targets[i] for i in chosen]
        none = float("nan") if taken[0].is_floating_point() else IGNORED
        return torch.nn.utils.rnn.pad_sequence(taken, padding_value=none)


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch for an epoch, in the process of that rank.

    All chance in an epoch follows from the seed and the epoch's number, so that a run that was
    killed and is resumed draws what it would have drawn.
    """
    origin = [seed, 2, epoch, rank] if rank else [seed, 2, epoch]
    drawn = int(np.random.default_rng(origin).integers(2**32))
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)
