"""What a model is trained for: the head, the loss, the metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.errors import UsageError
from cellwright.train.classifier import SequenceClassifier
from cellwright.train.examples import IGNORED
from cellwright.train.sequence_model import SequenceModel, at_the_end


@dataclass(frozen=True)
class Objective:
    """A head with its loss and its metric.

    Attributes:
        name: what a task calls it by.
        model: makes the model; takes the cell, the numbers of features and of outputs, and the
            settings.
        loss: (outputs, targets) -> mean loss.
        metric: (outputs, targets) -> mean of the metric.
        metric_name: as in ``metrics.json``, where it stands with ``test_`` before it.
        count: (targets) -> how many things the means are taken over.
        right: (outputs, targets) -> (B,) booleans, whether each sequence is right; None where
            that has no meaning.
        percent: whether the metric is a share, to be shown in per cent.
        best_by_metric: whether the best epoch is that with the highest metric in validation, and
            not that with the lowest loss.
        more: other metrics by their names in ``metrics.json``, where they stand beside the first.
        defaults: settings that suit it, where they differ from those of `Settings`.
    """

    name: str
    model: Callable[..., nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]
    metric_name: str
    count: Callable[[Tensor], int] = len
    right: Callable[[Tensor, Tensor], Tensor] | None = None
    percent: bool = False
    best_by_metric: bool = False
    more: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def show(self, value: float) -> str:
        """The metric as text: ``98.65%`` or ``8.4123``."""
        return f"{value:.2%}" if self.percent else f"{value:.4f}"

    def show_published(self, value: float) -> str:
        """A published value, with the digits with which such values are given."""
        return f"{value:.1%}" if self.percent else f"{value:g}"


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers: logits (..., classes), targets (...), `IGNORED` left out.

    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).item()
    0.5
    """
    counted = targets != IGNORED
    return (logits.argmax(-1) == targets)[counted].double().mean()


def class_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats: logits (..., classes), targets (...), `IGNORED` left out."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def count_classes(targets: Tensor) -> int:
    """How many targets are classes."""
    return int((targets != IGNORED).sum())


def value_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean square error over the values that are not NaN."""
    counted = ~targets.isnan()
    return F.mse_loss(outputs[counted], targets[counted])


def count_values(targets: Tensor) -> int:
    """How many targets are values."""
    return int((~targets.isnan()).sum())


def keys_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy in nats, summed over keys and averaged over frames.

    Shapes:
        logits, targets: (T, B, keys); a frame whose targets are NaN is left out.
    """
    counted = ~targets[..., 0].isnan()
    each = F.binary_cross_entropy_with_logits(logits[counted], targets[counted], reduction="sum")
    return each / counted.sum()


def count_frames(targets: Tensor) -> int:
    """How many frames have targets."""
    return int((~targets[..., 0].isnan()).sum())


_PLAIN = {
    "bidirectional": False, "dropout": 0.0, "pooling": "last", "noise": 0.0,
    "weight_decay": 0.0,
}  # fmt: skip

_BUILT_IN = (
    Objective(
        "classification", SequenceClassifier, F.cross_entropy, accuracy, "accuracy", percent=True
    ),
    Objective(
        "class", at_the_end, class_error, accuracy, "accuracy", percent=True, defaults=_PLAIN
    ),
    Objective(
        "classes", SequenceModel, class_error, accuracy, "accuracy", count_classes, percent=True,
        defaults=_PLAIN,
    ),
    Objective("value", at_the_end, value_error, value_error, "mse", count_values, defaults=_PLAIN),
    Objective(
        "values", SequenceModel, value_error, value_error, "mse", count_values, defaults=_PLAIN
    ),
    Objective(
        "keys", SequenceModel, keys_error, keys_error, "nats", count_frames, defaults=_PLAIN
    ),
)  # fmt: skip
_OBJECTIVES = {each.name: each for each in _BUILT_IN}


def get(name: str) -> Objective:
    """The objective of that name.

    ``classification`` is that of labelled series: standardised input, noise, pooling. The others
    are a recurrent net with a linear head: ``class`` and ``value`` ask for one answer a sequence,
    ``classes``, ``values`` and ``keys`` (any number of keys at once) for one a step.

    Raises:
        UsageError: there is none.

    >>> get("keys").metric_name
    'nats'
    """
    if name not in _OBJECTIVES:
        raise UsageError(f"no objective is named {name!r}; there are {', '.join(_OBJECTIVES)}")
    return _OBJECTIVES[name]


def add(objective: Objective) -> Objective:
    """Make an objective of one's own known by its name.

    Raises:
        UsageError: the name is that of a built-in one.
    """
    if objective in _BUILT_IN:
        return objective
    if any(each.name == objective.name for each in _BUILT_IN):
        raise UsageError(
            f"an objective of one's own needs a name of its own; {objective.name!r} is built in"
        )
    _OBJECTIVES[objective.name] = objective
    return objective
