"""A learning rate to begin with, by Lightning's finder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn

from cellwright.errors import UsageError
from cellwright.train.batches import seed_everything
from cellwright.train.examples import Examples
from cellwright.train.fit import quiet
from cellwright.train.module import SafetensorsIO, TrainingModule
from cellwright.train.objectives import Objective
from cellwright.train.settings import Settings
from cellwright.train.windows import Windows


@dataclass(frozen=True)
class Search:
    """What a range test has found.

    Attributes:
        rates, losses: each learning rate that was tried, with the smoothed loss after it.
        suggestion: the rate at which the loss falls most steeply.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float


class _Tried(TrainingModule):
    """A module that is trained without the bar that Lightning's finder draws anywhere."""

    def on_train_start(self) -> None:
        super().on_train_start()
        trainer: Any = self.trainer
        for each in trainer.callbacks:
            if hasattr(each, "progress_bar_refresh_rate"):
                each.progress_bar_refresh_rate = 0


def find_learning_rate(
    model: nn.Module,
    objective: Objective,
    train: Examples,
    classes: Sequence[str],
    settings: Settings,
    *,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 100,
) -> Search:
    """Train with a learning rate that grows from batch to batch, and see where the loss falls.

    The method is Smith's (2017, Cyclical learning rates). The model has its own weights again
    afterwards.

    Args:
        model, objective, train, classes, settings: as in `fit`.
        lowest, highest: the range; rates grow by the same factor from step to step.
        steps: how many are tried; fewer where the loss has grown to four times its lowest.

    Raises:
        UsageError: the loss falls nowhere in the range.
    """
    batches = train.batches(settings.batch_size, settings.seed, classes)
    if settings.tbptt is not None:
        batches = Windows(batches, settings.tbptt)
    tried = settings.replace(nonfinite="skip", devices=1)
    module = _Tried(model, objective, tried, batches, {})
    seed_everything(settings.seed, settings.epochs + 1)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=-1,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            plugins=[LightningEnvironment(), SafetensorsIO()],
        )
        found = Tuner(trainer).lr_find(
            module, batches, min_lr=lowest, max_lr=highest, num_training=steps,
            update_attr=False, attr_name="learning_rate",
        )  # fmt: skip
    assert found is not None
    suggestion = found.suggestion()
    if suggestion is None:
        raise UsageError(
            f"--find-learning-rate: the loss falls nowhere between {lowest:g} and {highest:g}; "
            "give --learning-rate"
        )
    return Search(list(found.results["lr"]), list(found.results["loss"]), suggestion)
