"""What training goes through: sets of sequences, as batches, in an order that can be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from cellwright.errors import DataError

IGNORED = -100
"""A class that is no target: it counts neither in the loss nor in the metric."""


class Batch(NamedTuple):
    """Sequences side by side, or the next window of streams.

    Attributes:
        x: (T, B, features) float32, zero beyond a sequence's length.
        lengths: (B,) int64, from 0 to T.
        targets: one a sequence, (B,) or (B, values); or one a step, (T, B) or (T, B, values).
            Where there is none, a class is `IGNORED` and a value is NaN.
        reset: (T, B) booleans, True where a sequence begins, if the states are to be carried over
            from the batch before; None if every sequence of the batch begins with it.
        share: what the mean loss is multiplied by, where processes share a batch and average
            their gradients; 0 where none of its targets is this process's.
    """

    x: Tensor
    lengths: Tensor
    targets: Tensor
    reset: Tensor | None = None
    share: float = 1.0


class Loader(Protocol):
    """Batches of an epoch; the same epoch gives the same batches.

    It has a ``len`` where the number of batches is known beforehand.
    """

    epoch: int

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this epoch."""


class Examples(Protocol):
    """A set of sequences with targets.

    Attributes:
        features: names of the input's features.
        classes: names of the outputs: of classes, or of values.
    """

    @property
    def features(self) -> tuple[str, ...]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int:
        """Number of sequences in an epoch."""

    def batches(
        self, batch_size: int, seed: int | None = None, classes: Sequence[str] | None = None
    ) -> Loader:
        """The set as batches.

        Args:
            batch_size: sequences in a batch; the last of an epoch may have fewer.
            seed: of the order, or of what is drawn; None for an order that never changes.
            classes: the classes in the order in which a model numbers them; None for the set's
                own.
        """


def check_batch(batch: Batch, features: int, task: str) -> None:
    """Raise `DataError` unless a batch of a task has the shapes that `Batch` says."""
    x, lengths, targets = batch.x, batch.lengths, batch.targets
    if x.dim() != 3 or x.shape[2] != features or 0 in x.shape or not x.is_floating_point():
        raise DataError(
            f"{task}: a batch's x is {x.dtype} of shape {tuple(x.shape)}; expected float32 of "
            f"shape (steps, sequences, {features} features)"
        )
    steps, sequences = x.shape[:2]
    if lengths.shape != (sequences,) or not 0 <= lengths.min() <= lengths.max() <= steps:
        raise DataError(
            f"{task}: a batch's lengths are {lengths.tolist()}; expected a number from 0 to "
            f"{steps} for each of {sequences} sequences"
        )
    if targets.shape[:1] != (sequences,) and targets.shape[:2] != (steps, sequences):
        raise DataError(
            f"{task}: a batch's targets have shape {tuple(targets.shape)}; expected one for each "
            f"of {sequences} sequences, or for each of {steps} steps of each"
        )


def names(prefix: str, count: int) -> tuple[str, ...]:
    """Names for what has only numbers.

    >>> names("x", 3)
    ('x0', 'x1', 'x2')
    """
    return tuple(f"{prefix}{index}" for index in range(count))
