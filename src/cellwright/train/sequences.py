"""Sets of sequences that are given once, and sequences that are drawn as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cellwright.errors import DataError
from cellwright.train.batches import Batches
from cellwright.train.examples import Batch


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences with targets, one a sequence or one a step.

    Attributes:
        inputs: one tensor (steps, features) a sequence.
        targets: a tensor with one entry a sequence, or one tensor (steps, ...) a sequence.
        features, classes: names of the inputs and of the outputs.

    Raises:
        DataError: there is no sequence, an empty one, a value that is not finite, or targets do
            not fit the inputs.

    Example:
        >>> import torch
        >>> notes = [torch.zeros(7, 2), torch.zeros(5, 2)]
        >>> data = Sequences(notes, [each.clone() for each in notes], ("a", "b"), ("a", "b"))
        >>> [batch.x.shape for batch in data.batches(2)]
        [torch.Size([7, 2, 2])]
    """

    inputs: Sequence[Tensor]
    targets: Tensor | Sequence[Tensor]
    features: tuple[str, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.inputs or len(self.targets) != len(self.inputs):
            raise DataError(f"{len(self.inputs)} sequences with {len(self.targets)} targets")
        for index, each in enumerate(self.inputs):
            if each.dim() != 2 or not len(each) or each.shape[1] != len(self.features):
                raise DataError(
                    f"sequence {index} has shape {tuple(each.shape)}; expected (steps, features) "
                    f"with at least one step and {len(self.features)} features"
                )
            if not each.isfinite().all():
                raise DataError(f"sequence {index} has a value that is not finite")
            if not isinstance(self.targets, Tensor) and len(self.targets[index]) != len(each):
                raise DataError(
                    f"sequence {index} has {len(each)} steps, but {len(self.targets[index])} "
                    "targets; expected one a step"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self, batch_size: int, seed: int | None = None, classes: Sequence[str] | None = None
    ) -> Batches:
        """The sequences as batches; see `Examples.batches`."""
        return Batches(self.inputs, self.targets, batch_size, seed)


Draw = Callable[[np.random.Generator, int], tuple[Tensor, Tensor, Tensor]]
"""(random, count) -> x (T, count, features), lengths (count,), targets as in `Batch`."""


@dataclass(frozen=True)
class Generated:
    """Sequences that are drawn as they are needed; none comes twice.

    Attributes:
        draw: makes so many sequences.
        features, classes: names of the inputs and of the outputs.
        count: sequences in an epoch.
        streak: stop training when so many sequences in a row were right; None to go on.

    Example:
        >>> import torch, numpy as np
        >>> def draw(random, count):
        ...     x = torch.from_numpy(random.random((9, count, 1), dtype=np.float32))
        ...     return x, torch.full((count,), 9), x.sum(0)
        >>> sums = Generated(draw, ("number",), ("sum",), count=100)
        >>> [batch.targets.shape for batch in sums.batches(64)]
        [torch.Size([64, 1]), torch.Size([36, 1])]
    """

    draw: Draw
    features: tuple[str, ...]
    classes: tuple[str, ...]
    count: int
    streak: int | None = None

    def __len__(self) -> int:
        return self.count

    def batches(
        self, batch_size: int, seed: int | None = None, classes: Sequence[str] | None = None
    ) -> Drawn:
        """The sequences as batches; see `Examples.batches`."""
        return Drawn(self.draw, self.count, batch_size, seed)


class Drawn:
    """Batches of drawn sequences.

    A batch's chance follows from the seed, the epoch and its number alone; without a seed, from
    its number, and it differs from that of every seed.
    """

    def __init__(self, draw: Draw, count: int, batch_size: int, seed: int | None):
        self.draw, self.count, self.batch_size, self.seed = draw, count, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        origin = [5, 0, 0] if self.seed is None else [4, self.seed, self.epoch]
        for index, first in enumerate(range(0, self.count, self.batch_size)):
            random = np.random.default_rng([*origin, index])
            yield Batch(*self.draw(random, min(self.batch_size, self.count - first)))
