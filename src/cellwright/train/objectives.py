"""What a model is trained for: the head, the loss, the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.errors import UsageError
from cellwright.train.classifier import SequenceClassifier


@dataclass(frozen=True)
class Objective:
    """A head with its loss and its metric.

    Attributes:
        name: what a task calls it by.
        model: makes the model; takes the cell, the numbers of features and of classes, and the
            settings.
        loss: (outputs, targets) -> mean loss.
        metric: (outputs, targets) -> mean of the metric.
        metric_name: as in ``metrics.json``, where it stands with ``test_`` before it.
    """

    name: str
    model: Callable[..., nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]
    metric_name: str


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers: logits (B, classes), targets (B,).

    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).item()
    0.5
    """
    return (logits.argmax(-1) == targets).double().mean()


_OBJECTIVES = {
    "classification": Objective(
        name="classification",
        model=SequenceClassifier,
        loss=F.cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
    )
}


def get(name: str) -> Objective:
    """The objective of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _OBJECTIVES:
        raise UsageError(f"no objective is named {name!r}; there are {', '.join(_OBJECTIVES)}")
    return _OBJECTIVES[name]
