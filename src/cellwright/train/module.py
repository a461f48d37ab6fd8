"""The training step, as a Lightning module, and checkpoints without pickle."""

from __future__ import annotations

import math
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cellwright.errors import CheckpointError, UsageError
from cellwright.train import storage
from cellwright.train.batches import seed_everything
from cellwright.train.examples import Batch, Loader
from cellwright.train.objectives import Objective
from cellwright.train.settings import Settings
from cellwright.train.streams import Flow
from cellwright.train.windows import Windows

KIND = "cellwright-training-state"

_PROGRESS = ("sequences", "right_in_a_row", "solved")
_OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


class TrainingModule(LightningModule):
    """One model, its optimiser, and how far training has come.

    Args:
        model: takes (x, lengths), and where states are carried over has a method ``carry``.
        objective: its loss and metric.
        settings: of the optimiser.
        batches: the training batches.
        identity: plain values that tell whether a checkpoint belongs to this model.
        streak: stop when so many sequences in a row were right; None to go on.

    Attributes:
        sequences: how many have been trained on.
        right_in_a_row: how many of them have been right since the last wrong one.
        solved: whether training has stopped for that reason.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Settings,
        batches: Loader,
        identity: dict[str, Any],
        streak: int | None = None,
    ):
        super().__init__()
        self.model: Any = model
        self.objective, self.settings, self.identity = objective, settings, identity
        self.batches = batches
        # Where an epoch's batches are not counted beforehand, the rate changes by the epoch.
        self.sized = isinstance(batches, Sized)
        self.steps = settings.epochs * (len(batches) if isinstance(batches, Sized) else 1)
        self.streak = streak
        self.sequences = self.right_in_a_row = 0
        self.solved = False
        self._states: dict[str, Any] = {}
        self._sums: dict[str, Any] = {}

    def on_train_start(self) -> None:
        if self.solved:
            self.trainer.should_stop = True

    def on_train_epoch_start(self) -> None:
        self._sums.clear()
        self.batches.epoch = self.current_epoch
        seed_everything(self.settings.seed, self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, outputs = self._measure("train", batch)
        if not torch.isfinite(loss):
            raise UsageError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: training has "
                f"diverged; try a smaller --learning-rate than {self.settings.learning_rate:g}"
            )
        self._count(batch, outputs)
        if self.solved or self.trainer.is_last_batch:
            self._log("train")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("validation", batch)

    def on_validation_epoch_end(self) -> None:
        self._log("validation")

    def _measure(self, part: str, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.reset is None:
            outputs = self.model(batch.x, batch.lengths)
        else:
            before = None if batch.reset[0].all() else self._states.get(part)
            outputs, state = self.model.carry(batch.x, batch.lengths, batch.reset, before)
            self._states[part] = tuple(each.detach() for each in state)
        loss = self.objective.loss(outputs, batch.targets)
        outputs = outputs.detach()
        metric = self.objective.metric(outputs, batch.targets)
        count = self.objective.count(batch.targets)
        sums = torch.stack([loss.detach().double(), metric.double(), loss.new_ones(()).double()])
        self._sums[part] = self._sums.get(part, 0.0) + sums * count
        return loss, outputs

    def _log(self, part: str) -> None:
        """Tell the means of an epoch; to do so at every step would take longer than the step."""
        loss, metric, count = self._sums.pop(part).tolist()
        values = {
            f"{part}_loss": loss / count,
            f"{part}_{self.objective.metric_name}": metric / count,
        }
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def _count(self, batch: Batch, outputs: Tensor) -> None:
        """Count the sequences, and those in a row that were right before they were learnt from."""
        begun = len(batch.lengths) if batch.reset is None else int(batch.reset.sum())
        self.sequences += begun
        if self.streak is None or self.objective.right is None:
            return
        right = self.objective.right(outputs, batch.targets).tolist()
        last_wrong = max((i for i, each in enumerate(right) if not each), default=None)
        if last_wrong is None:
            self.right_in_a_row += len(right)
        else:
            self.right_in_a_row = len(right) - 1 - last_wrong
        if self.right_in_a_row >= self.streak:
            self.solved = self.trainer.should_stop = True

    def configure_optimizers(self) -> Any:
        settings = self.settings
        options: dict[str, Any] = {"lr": settings.learning_rate}
        if settings.optimizer in ("rmsprop", "sgd"):
            options["momentum"] = settings.momentum
        make = _OPTIMIZERS[settings.optimizer]
        optimiser = make(self.parameters(), weight_decay=settings.weight_decay, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.rate)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step" if self.sized else "epoch"},
        }

    def rate(self, step: int) -> float:
        """The learning rate at a step, as a part of the largest."""
        if self.settings.schedule == "constant":
            return 1.0
        rise = max(1, round(0.1 * self.steps))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (self.steps - rise + 1)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity
        checkpoint["progress"] = {name: getattr(self, name) for name in _PROGRESS}
        checkpoint["carried"] = self._states
        if isinstance(self.batches, (Flow, Windows)):
            checkpoint["position"] = self.batches.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, here in self.identity.items():
            found = checkpoint.get("identity", {}).get(name)
            if found != here:
                raise CheckpointError(
                    f"the checkpoint belongs to another run, with another {name}: "
                    f"expected {here!r}, got {found!r}"
                )
        # Lightning may fetch the first batch before the epoch starts.
        self.batches.epoch = checkpoint["epoch"] + 1
        for name in _PROGRESS:
            setattr(self, name, checkpoint.get("progress", {}).get(name, getattr(self, name)))
        self._states = checkpoint.get("carried", {})
        if isinstance(self.batches, (Flow, Windows)):
            self.batches.load_state_dict(checkpoint["position"])


class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoints as safetensors files, written whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        storage.save(Path(path), KIND, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return storage.load(Path(path), KIND)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
