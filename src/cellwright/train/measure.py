"""Loss, metric and answers of a trained model on series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cellwright.engines import choice
from cellwright.errors import UsageError
from cellwright.train.batches import Batches
from cellwright.train.examples import Batch, Examples, Loader
from cellwright.train.objectives import Objective
from cellwright.train.series import SeriesSet
from cellwright.train.settings import Settings, check_engine

_BATCH = 64  # fixed: the last bits of a result may depend on the size of a batch


@dataclass(frozen=True)
class Measured:
    """Means over all sequences of a set.

    Attributes:
        loss, metric: as the objective defines them.
        count: number of sequences, or of streams.
        wrong: sequences (of streams: windows) that are not right; None where the objective does
            not say.
        row: sequences that are right before the first wrong one, in the order of the set; None
            where the objective does not say.
        windows: number of windows of streams; None for sequences.
        more: the means of the objective's other metrics.
    """

    loss: float
    metric: float
    count: int
    wrong: int | None = None
    row: int | None = None
    windows: int | None = None
    more: Mapping[str, float] = field(default_factory=dict)

    def as_metrics(self, part: str, metric_name: str) -> dict[str, float | int]:
        """Flat names for ``metrics.json``: ``test_accuracy``, ``test_loss``, ``test_series``."""
        values: dict[str, float | int] = {
            metric_name: self.metric, "loss": self.loss, "series": self.count, **self.more
        }  # fmt: skip
        if self.wrong is not None and self.row is not None:
            values |= {"wrong": self.wrong, "row": self.row}
        if self.windows is not None:
            values["windows"] = self.windows
        return {f"{part}_{name}": value for name, value in values.items()}


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in evaluation mode and no gradient is followed."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def outputs(model: nn.Module, series: SeriesSet) -> Tensor:
    """What the model says to each series, (series, classes) for a classifier."""
    unlabelled = Batches(series.inputs(), torch.zeros(len(series), dtype=torch.int64), _BATCH)
    with evaluating(model):
        return torch.cat([model(batch.x, batch.lengths) for batch in unlabelled])


def measure(
    model: nn.Module, objective: Objective, examples: Examples, classes: tuple[str, ...]
) -> Measured:
    """Loss and metric on sequences with targets.

    Raises:
        DataError: a series has no label, or one that is not among the classes.
    """
    loss = metric = 0.0
    more = dict.fromkeys(objective.more, 0.0)
    things = wrong = row = sequences = windows = 0
    with evaluating(model):
        for batch, found in answers(model, examples.batches(_BATCH, None, classes)):
            if batch.reset is None:
                sequences += len(batch.lengths)
            else:
                sequences += int(batch.reset.sum())
                windows += len(batch.lengths)
            count = objective.count(batch.targets)
            if not count:
                continue
            things += count
            loss += objective.loss(found, batch.targets).item() * count
            metric += objective.metric(found, batch.targets).item() * count
            for name, other in objective.more.items():
                more[name] += other(found, batch.targets).item() * count
            if objective.right is not None:
                right = objective.right(found, batch.targets)
                row += 0 if wrong else int(right.long().cumprod(0).sum())
                wrong += int((~right).sum())
    return Measured(
        loss=loss / things,
        metric=metric / things,
        count=sequences,
        wrong=wrong if objective.right is not None else None,
        row=row if objective.right is not None else None,
        windows=windows or None,
        more={name: value / things for name, value in more.items()},
    )


def until_wrong(
    model: nn.Module, objective: Objective, examples: Examples, classes: tuple[str, ...]
) -> tuple[int, bool]:
    """Sequences that are right before the first wrong one, and whether all are right.

    What comes after the batch with the first wrong one is not run.

    Raises:
        UsageError: the objective does not say when a sequence is right.
    """
    if objective.right is None:
        raise UsageError(
            f"the objective {objective.name} does not say when a sequence is right, so training "
            "cannot stop when all are; give it a right=, or the data no check="
        )
    row = 0
    with evaluating(model):
        for batch, found in answers(model, examples.batches(_BATCH, None, classes)):
            if not objective.count(batch.targets):
                continue
            right = objective.right(found, batch.targets)
            row += int(right.long().cumprod(0).sum())
            if not right.all():
                return row, False
    return row, True


def answers(model: Any, loader: Loader) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the model's outputs; states are carried over where the batches say so."""
    state = None
    for batch in loader:
        if batch.reset is None:
            yield batch, model(batch.x, batch.lengths)
        else:
            before = None if batch.reset[0].all() else state
            found, state = model.carry(batch.x, batch.lengths, batch.reset, before)
            yield batch, found
