"""The training step, as a Lightning module, and checkpoints without pickle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cellwright.errors import CheckpointError, UsageError
from cellwright.train import storage
from cellwright.train.batches import Batches, seed_everything
from cellwright.train.objectives import Objective
from cellwright.train.settings import Settings

KIND = "cellwright-training-state"


class TrainingModule(LightningModule):
    """One model, trained by AdamW under a rising and falling learning rate.

    Args:
        model: takes (x, lengths).
        objective: its loss and metric.
        settings: of the optimiser.
        batches: the training batches.
        identity: plain values that tell whether a checkpoint belongs to this model.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Settings,
        batches: Batches,
        identity: dict[str, Any],
    ):
        super().__init__()
        self.model = model
        self.objective, self.settings, self.identity = objective, settings, identity
        self.batches = batches
        self.steps = len(batches) * settings.epochs

    def on_train_epoch_start(self) -> None:
        self.batches.epoch = self.current_epoch
        seed_everything(self.settings.seed, self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._measure("train", batch)
        if not torch.isfinite(loss):
            raise UsageError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: training has "
                f"diverged; try a smaller --learning-rate than {self.settings.learning_rate:g}"
            )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        self._measure("validation", batch)

    def _measure(self, part: str, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, lengths, targets = batch
        outputs = self.model(x, lengths)
        loss = self.objective.loss(outputs, targets)
        metric = self.objective.metric(outputs.detach(), targets)
        values = {f"{part}_loss": loss.detach(), f"{part}_{self.objective.metric_name}": metric}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.rate)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def rate(self, step: int) -> float:
        """The learning rate at a step, as a part of the largest: linear rise, cosine fall."""
        rise = max(1, round(0.1 * self.steps))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (self.steps - rise + 1)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, here in self.identity.items():
            found = checkpoint.get("identity", {}).get(name)
            if found != here:
                raise CheckpointError(
                    f"the checkpoint belongs to another run, with another {name}: "
                    f"expected {here!r}, got {found!r}"
                )


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
