"""When a sequence is right, as the papers on long memory say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from cellwright.train import objectives

Right = Callable[[Tensor, Tensor], Tensor]


def value_within(tolerance: float) -> Right:
    """Every output of a sequence is less than ``tolerance`` from its target.

    Outputs and targets are (B, values).

    >>> import torch
    >>> value_within(0.04)(torch.tensor([[0.50], [0.55]]), torch.tensor([[0.51], [0.51]])).tolist()
    [True, False]
    """

    def right(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < tolerance).all(-1)

    return right


def class_within(tolerance: float) -> Right:
    """The probability of every class is less than ``tolerance`` from 1 or 0, whichever it is.

    Outputs are logits (B, classes), targets (B,). In 1997 the outputs were logistic units, each
    by itself; here they are probabilities that sum to 1, and the test on them is the same.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0], [0.5, 0.0]])
    >>> class_within(0.3)(logits, torch.tensor([0, 0])).tolist()
    [True, False]
    """

    def right(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = F.one_hot(targets, outputs.shape[-1])
        return ((outputs.softmax(-1) - wanted).abs() < tolerance).all(-1)

    return right


# Made once, because an objective is known by its name.
VALUE_WITHIN_004 = replace(
    objectives.get("value"), name="value-within-0.04", right=value_within(0.04)
)
CLASS_WITHIN_03 = replace(objectives.get("class"), name="class-within-0.3", right=class_within(0.3))
CLASS_WITHIN_02 = replace(objectives.get("class"), name="class-within-0.2", right=class_within(0.2))
