"""Loss, metric and answers of a trained model on series."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cellwright.engines import choice
from cellwright.train.batches import Batches
from cellwright.train.objectives import Objective
from cellwright.train.series import SeriesSet
from cellwright.train.settings import Settings, check_engine

_BATCH = 64  # fixed: the last bits of a result may depend on the size of a batch


@dataclass(frozen=True)
class Measured:
    """A mean over all series of a set.

    Attributes:
        loss, metric: as the objective defines them.
        count: number of series.
    """

    loss: float
    metric: float
    count: int


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block; the last bits of sums may depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def run_as(settings: Settings, engine: str | None = None) -> Iterator[None]:
    """The threads and the engine that settings name; ``engine`` stands above theirs.

    Raises:
        UsageError: there is no such engine.
    """
    if engine is not None:
        check_engine(engine)
    wanted = engine or settings.engine
    with threads(settings.threads), choice.engine(wanted) if wanted else nullcontext():
        yield


@torch.no_grad()
def outputs(model: nn.Module, series: SeriesSet) -> Tensor:
    """What the model says to each series, (series, classes) for a classifier."""
    was_training = model.training
    model.eval()
    try:
        found = [model(x, lengths) for x, lengths, _ in Batches(series, None, _BATCH)]
    finally:
        model.train(was_training)
    return torch.cat(found)


def measure(
    model: nn.Module, objective: Objective, series: SeriesSet, classes: tuple[str, ...]
) -> Measured:
    """Loss and metric on labelled series.

    Raises:
        DataError: a series has no label, or one that is not among the classes.
    """
    targets = torch.from_numpy(series.targets(classes))
    found = outputs(model, series)
    return Measured(
        loss=objective.loss(found, targets).item(),
        metric=objective.metric(found, targets).item(),
        count=len(series),
    )
