"""Endless streams: training goes through them window by window and never begins anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cellwright.train.examples import Batch


class Stream(Protocol):
    """Streams side by side, and how far they have been read."""

    def window(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The next steps.

        Returns:
            x (steps, B, features), targets (steps, B, ...), and reset (steps, B), which is True
            where the states are to be those of a beginning.
        """

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values."""

    def load_state_dict(self, position: Mapping[str, Any]) -> None:
        """Go to a position."""


@dataclass(frozen=True)
class Streams:
    """Endless streams, of which an epoch takes so many windows; the states are carried over.

    Attributes:
        start: (seed, streams) -> streams side by side, at their beginning. The seed is None for
            streams to measure on.
        features, classes: names of the inputs and of the outputs.
        steps: of a window.
        count: windows in an epoch.

    The batch size is the number of streams.
    """

    start: Callable[[int | None, int], Stream]
    features: tuple[str, ...]
    classes: tuple[str, ...]
    steps: int
    count: int

    def __len__(self) -> int:
        return self.count

    def batches(
        self, batch_size: int, seed: int | None = None, classes: Sequence[str] | None = None
    ) -> Flow:
        """The streams as batches; see `Examples.batches`."""
        return Flow(self, batch_size, seed)


class Flow:
    """Windows of streams; an epoch goes on where the one before has ended.

    Without a seed, every pass begins at the streams' beginning.
    """

    def __init__(self, streams: Streams, batch_size: int, seed: int | None):
        self.streams, self.batch_size, self.seed = streams, batch_size, seed
        self.epoch = 0
        self._stream = streams.start(seed, batch_size)

    def __len__(self) -> int:
        return self.streams.count

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is None:
            self._stream = self.streams.start(None, self.batch_size)
        for _ in range(self.streams.count):
            x, targets, reset = self._stream.window(self.streams.steps)
            yield Batch(x, torch.full((x.shape[1],), len(x)), targets, reset)

    def state_dict(self) -> dict[str, Any]:
        """How far the streams have been read, as plain values."""
        return self._stream.state_dict()

    def load_state_dict(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` gave."""
        self._stream.load_state_dict(position)
