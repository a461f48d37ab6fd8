"""Optimisers and schedules of the learning rate, by torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from cellwright.train.settings import Settings

_OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def make(
    parameters: Iterable[nn.Parameter], settings: Settings, steps: int, interval: str, monitor: str
) -> dict[str, Any]:
    """Optimiser and schedule as Lightning takes them.

    Args:
        parameters: what is trained.
        settings: of the training.
        steps: of the whole training, in the schedule's interval.
        interval: "step" or "epoch", of the schedules that go by steps.
        monitor: the loss that the schedule "plateau" follows.
    """
    options: dict[str, Any] = {"lr": settings.learning_rate}
    if settings.optimizer in ("rmsprop", "sgd"):
        options["momentum"] = settings.momentum
    optimiser = _OPTIMIZERS[settings.optimizer](
        parameters, weight_decay=settings.weight_decay, **options
    )
    schedule: dict[str, Any] = {"interval": "epoch"}
    if settings.schedule == "plateau":
        schedule["monitor"] = monitor
        schedule["scheduler"] = lr_scheduler.ReduceLROnPlateau(
            optimiser, factor=settings.decay, patience=settings.decay_epochs - 1, threshold=0.0
        )
    elif settings.schedule == "step":
        schedule["scheduler"] = lr_scheduler.StepLR(
            optimiser, settings.decay_epochs, settings.decay
        )
    else:
        schedule["interval"] = interval
        change = partial(rate, kind=settings.schedule, steps=steps)
        schedule["scheduler"] = lr_scheduler.LambdaLR(optimiser, change)
    return {"optimizer": optimiser, "lr_scheduler": schedule}


def rate(step: int, kind: str, steps: int) -> float:
    """The learning rate at one of so many steps, as a part of the largest.

    >>> [round(rate(step, "cosine", 10), 2) for step in (0, 5, 9)]
    [1.0, 0.5, 0.02]
    """
    if kind == "constant":
        return 1.0
    rise = max(1, round(0.1 * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))
