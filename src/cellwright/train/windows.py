"""Truncated backpropagation through time: long sequences as windows, states carried over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from cellwright.errors import UsageError
from cellwright.train.examples import Batch, Loader
from cellwright.train.streams import Flow


class Windows:
    """The batches of a loader, cut into windows of so many steps.

    The states are reset at the first step of each batch, or where it says so. A sequence that has
    ended has length 0 in the windows that are left. How many windows an epoch has depends on the
    lengths, so there is no ``len``.

    Args:
        loader: batches of whole sequences, with a target a step.
        steps: of a window; the last one of a batch may have fewer.

    Raises:
        UsageError: a batch has one target a sequence, which only its last window could be
            trained for.
    """

    def __init__(self, loader: Loader, steps: int):
        self.loader, self.steps = loader, steps

    @property
    def epoch(self) -> int:
        """The epoch, which decides on the order."""
        return self.loader.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.loader.epoch = value

    def state_dict(self) -> dict[str, Any]:
        """How far the loader's streams have been read; nothing for given sequences."""
        return self.loader.state_dict() if isinstance(self.loader, Flow) else {}

    def load_state_dict(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` gave."""
        if isinstance(self.loader, Flow):
            self.loader.load_state_dict(position)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield from self._cut(batch)

    def _cut(self, batch: Batch) -> Iterator[Batch]:
        T, B = batch.x.shape[:2]
        if batch.targets.dim() < 2 or batch.targets.shape[:2] != (T, B):
            raise UsageError(
                "--tbptt: the task has one target a sequence, and windows need one a step; "
                "leave --tbptt out"
            )
        begins = batch.reset
        if begins is None:
            begins = torch.zeros(T, B, dtype=torch.bool)
            begins[0] = True
        for first in range(0, T, self.steps):
            window = slice(first, first + self.steps)
            x = batch.x[window]
            left = (batch.lengths - first).clamp(0, len(x))
            yield Batch(x, left, batch.targets[window], begins[window])
