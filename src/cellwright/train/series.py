"""A set of series: what the readers of data files return and what training takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cellwright.errors import DataError
from cellwright.train.batches import Batches


@dataclass(frozen=True, eq=False)
class SeriesSet:
    """Series of unlike lengths with the same features, with or without labels.

    Attributes:
        values: one array (steps, features) of float64 a series; no series is empty.
        features: names of the features.
        names: the series' own names (in a ``.ts`` file their numbers, from 1).
        labels: a label a series, or None where the file has none.
        classes: the labels that may occur, in the order in which they are numbered.
        path: the file, for messages.
        lines: the line of the file at which each series starts, for messages.

    Example:
        >>> import numpy as np
        >>> two = SeriesSet.of([np.zeros((7, 3)), np.ones((5, 3))], labels=["a", "b"])
        >>> len(two), two.lengths, two.classes
        (2, (7, 5), ('a', 'b'))
    """

    values: tuple[np.ndarray, ...]
    features: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    classes: tuple[str, ...]
    path: str
    lines: tuple[int, ...]

    @classmethod
    def of(
        cls, values: Iterable[np.ndarray], labels: Sequence[str] | None = None, path: str = "memory"
    ) -> SeriesSet:
        """Make a set from arrays (steps, features) and their labels.

        Raises:
            DataError: no series, an empty one, unlike numbers of features or of labels, or a
                value that is not finite.
        """
        arrays = tuple(np.asarray(each, dtype=np.float64) for each in values)
        if not arrays:
            raise DataError(f"{path}: there is no series")
        for index, each in enumerate(arrays):
            if each.ndim != 2 or each.shape[0] < 1 or each.shape[1] < 1:
                raise DataError(
                    f"{path}: series {index} has shape {each.shape}; expected (steps, features), "
                    "both at least 1"
                )
            if each.shape[1] != arrays[0].shape[1]:
                raise DataError(
                    f"{path}: series {index} has {each.shape[1]} features, the first has "
                    f"{arrays[0].shape[1]}"
                )
            if not np.isfinite(each).all():
                raise DataError(f"{path}: series {index} has a value that is not finite")
        if labels is not None and len(labels) != len(arrays):
            raise DataError(f"{path}: {len(arrays)} series, but {len(labels)} labels")
        return cls(
            values=arrays,
            features=tuple(f"x{i}" for i in range(arrays[0].shape[1])),
            names=tuple(str(i + 1) for i in range(len(arrays))),
            labels=None if labels is None else tuple(map(str, labels)),
            classes=() if labels is None else sorted_labels(map(str, labels)),
            path=path,
            lines=tuple(range(1, len(arrays) + 1)),
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of steps of each series."""
        return tuple(len(each) for each in self.values)

    @property
    def num_features(self) -> int:
        """Number of features of every series."""
        return len(self.features)

    def take(self, indices: Iterable[int]) -> SeriesSet:
        """The series at these positions, in this order."""
        chosen = list(indices)
        return replace(
            self,
            values=tuple(self.values[i] for i in chosen),
            names=tuple(self.names[i] for i in chosen),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
            lines=tuple(self.lines[i] for i in chosen),
        )

    def targets(self, classes: Sequence[str]) -> np.ndarray:
        """The labels as numbers, (series,) of int64, by their place in ``classes``.

        Raises:
            DataError: the set has no labels, or one that is not in ``classes``; the message
                names the file and the line.
        """
        if self.labels is None:
            raise DataError(f"{self.path}: the series have no labels, and labels are needed here")
        number = {label: index for index, label in enumerate(classes)}
        for label, line in zip(self.labels, self.lines, strict=True):
            if label not in number:
                raise DataError(
                    f"{self.path}:{line}: label {label!r} did not occur in training; "
                    f"the labels there are {shortened(classes)}"
                )
        return np.array([number[label] for label in self.labels], dtype=np.int64)

    def batches(
        self, batch_size: int, seed: int | None = None, classes: Sequence[str] | None = None
    ) -> Batches:
        """The series as batches with their labels' numbers; see `Examples.batches`.

        Raises:
            DataError: see `targets`.
        """
        targets = torch.from_numpy(self.targets(self.classes if classes is None else classes))
        return Batches(self.inputs(), targets, batch_size, seed)

    def inputs(self) -> list[torch.Tensor]:
        """The values as float32 tensors."""
        return [torch.from_numpy(each).float() for each in self.values]


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels that occur, each once: in the order of numbers if all are, else of the alphabet.

    >>> sorted_labels(["10", "9", "10"]), sorted_labels(["b", "a", "1"])
    (('9', '10'), ('1', 'a', 'b'))
    """
    found = set(labels)
    try:
        return tuple(sorted(found, key=lambda label: (float(label), label)))
    except ValueError:
        return tuple(sorted(found))


def shortened(names: Sequence[str], limit: int = 12) -> str:
    """Names in a row, for a message: ``a, b, c and 5 more``."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def split_stratified(
    series: SeriesSet, share: float, seed: int, stream: int = 0
) -> tuple[SeriesSet, SeriesSet]:
    """Part the series in two by chance, each label by the same share.

    Args:
        series: labelled series.
        share: part of each label's series that goes into the second set, between 0 and 1;
            rounded, but a label never loses its last series to the second set.
        seed: the same seed gives the same parts.
        stream: another number gives another, independent draw from the same seed.

    Raises:
        DataError: no label has enough series to give one away.
    """
    labels = series.targets(series.classes)
    random = np.random.default_rng([seed, stream])
    second: list[int] = []
    for label in range(len(series.classes)):
        members = random.permutation(np.flatnonzero(labels == label))
        count = min(round(share * len(members)), len(members) - 1)
        second += members[: max(count, 0)].tolist()
    if not second:
        raise DataError(
            f"{series.path}: {len(series)} series of {len(series.classes)} labels are too few to "
            f"set a share of {share:g} apart"
        )
    chosen = set(second)
    first = [i for i in range(len(series)) if i not in chosen]
    return series.take(first), series.take(sorted(second))
