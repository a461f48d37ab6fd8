"""The training step, as a Lightning module, and checkpoints without pickle."""

from __future__ import annotations

from collections.abc import Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cellwright.errors import CheckpointError, UsageError
from cellwright.train import optimisation, shards, storage
from cellwright.train.batches import seed_everything
from cellwright.train.clipping import Clipped, clip
from cellwright.train.examples import Batch, Loader
from cellwright.train.finite import Report, find_nonfinite
from cellwright.train.objectives import Objective
from cellwright.train.settings import Settings
from cellwright.train.streams import Flow
from cellwright.train.windows import Windows

KIND = "cellwright-training-state"

_PROGRESS = ("sequences", "right_in_a_row", "solved", "skipped")


class TrainingModule(LightningModule):
    """One model, its optimiser, and how far training has come.

    Args:
        model: takes (x, lengths), and where states are carried over has a method ``carry``.
        objective: its loss and metric.
        settings: of the optimiser.
        batches: the training batches.
        identity: plain values that tell whether a checkpoint belongs to this model.
        streak: stop when so many sequences in a row were right; None to go on.
        monitor: the metric whose lowest value is the best.

    Attributes:
        sequences: how many have been trained on.
        skipped: updates that were left out because the gradient was not finite.
        right_in_a_row: how many of them have been right since the last wrong one.
        solved: whether training has stopped for that reason, or for a test on the way.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Settings,
        batches: Loader,
        identity: dict[str, Any],
        streak: int | None = None,
        monitor: str = "train_loss",
    ):
        super().__init__()
        self.model: Any = model
        self.objective, self.settings, self.identity = objective, settings, identity
        self.batches = batches
        # Where an epoch's batches are not counted beforehand, the rate changes by the epoch.
        self.sized = isinstance(batches, Sized)
        an_epoch = -(-len(batches) // settings.accumulate) if isinstance(batches, Sized) else 1
        self.steps = settings.epochs * an_epoch
        self.streak, self.monitor = streak, monitor
        self.sequences = self.right_in_a_row = self.skipped = 0
        self.solved = False
        self.learning_rate = settings.learning_rate  # where Lightning's finder looks
        self._states: dict[str, Any] = {}
        self._sums: dict[str, Any] = {}
        self._norms: list[Clipped] = []  # of the updates of an epoch
        self._since_update: list[tuple[Batch, Any]] = []  # batches with the states before them

    def on_train_start(self) -> None:
        if self.solved:
            self.trainer.should_stop = True

    def on_train_epoch_start(self) -> None:
        self._sums.clear()
        self._norms.clear()
        self.batches.epoch = self.current_epoch
        seed_everything(self.settings.seed, self.current_epoch, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        before = self._states.get("train")
        self._since_update.append((batch, before))
        loss, outputs = self._measure("train", batch)
        if not torch.isfinite(loss):
            if self.settings.nonfinite == "error":
                raise self._diverged(f"the loss became {loss.item()}")
            self._states.update({} if before is None else {"train": before})
            loss = loss * torch.nan  # so that every process leaves this update out
        self._count(batch, outputs)
        if self.solved or self.trainer.is_last_batch:
            self._log("train")
        return loss if batch.share == 1.0 else loss * batch.share

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self._complete_average()
        done = clip(
            self.parameters(), self.settings.gradient_clip, self.settings.gradient_clip_value
        )
        if not done.finite:
            if self.settings.nonfinite == "error":
                raise self._diverged(f"the norm of the gradient became {done.norm}")
            self.skipped += 1
            optimizer.zero_grad(set_to_none=True)  # no gradient, no update
        else:
            self._norms.append(done)
        self._since_update.clear()

    def _complete_average(self) -> None:
        """Lightning divides by ``accumulate`` also where an epoch ends with fewer batches."""
        missing = self.settings.accumulate / len(self._since_update)
        for each in self.parameters():
            if each.grad is not None and missing > 1:
                each.grad.mul_(missing)

    def _diverged(self, what: str) -> UsageError:
        """The error for a loss or gradient that is not finite, saying where that began."""
        report = Report()
        for batch, before in self._since_update:
            report = find_nonfinite(
                self.model,
                batch.x,
                loss=partial(self._loss, batch),
                call=lambda x, batch=batch, before=before: self._run(batch, before)[0],
            )
            if report.part:
                break
        if report.part == "input":
            return UsageError(
                f"{what} in epoch {self.current_epoch + 1}: {report} of a batch; mend the data"
            )
        begun = str(report) if report.part else "run again, with other chance, all is finite"
        return UsageError(
            f"{what} in epoch {self.current_epoch + 1}: training has diverged ({begun}); "
            f"try a smaller --learning-rate than {self.settings.learning_rate:g}, or leave such "
            f"updates out with --nonfinite skip"
        )

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.solved or self.trainer.is_last_batch:
            norms = self._norms
            values = {
                "gradient_norm": sum(each.norm for each in norms) / max(1, len(norms)),
                "clipped": sum(each.changed for each in norms) / max(1, len(norms)),
            }
            if self.settings.nonfinite == "skip":
                values["skipped"] = float(self.skipped)
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("validation", batch)

    def on_validation_epoch_end(self) -> None:
        self._log("validation")

    def _measure(self, part: str, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs, state = self._run(batch, self._states.get(part))
        if state is not None:
            self._states[part] = tuple(each.detach() for each in state)
        loss = self._loss(batch, outputs)
        outputs = outputs.detach()
        count = self.objective.count(batch.targets) if batch.share else 0
        if count and (part != "train" or bool(torch.isfinite(loss))):
            metric = self.objective.metric(outputs, batch.targets)
            one = loss.new_ones(())
            sums = torch.stack([loss.detach().double(), metric.double(), one.double()])
            self._sums[part] = self._sums.get(part, 0.0) + sums * count
        return loss, outputs

    def _log(self, part: str) -> None:
        """Tell the means of an epoch; to do so at every step would take longer than the step."""
        sums = self._sums.pop(part, torch.zeros(3, dtype=torch.float64))
        if self.settings.devices > 1:
            sums = shards.add_up(sums)
        loss, metric = (sums[:2] / sums[2]).tolist()
        values = {f"{part}_loss": loss, f"{part}_{self.objective.metric_name}": metric}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def _run(self, batch: Batch, before: Any) -> tuple[Tensor, Any]:
        """The outputs, and the state to carry over; None where every sequence ends."""
        if batch.reset is None:
            return self.model(batch.x, batch.lengths), None
        before = None if batch.reset[0].all() else before
        outputs, state = self.model.carry(batch.x, batch.lengths, batch.reset, before)
        return outputs, state

    def _loss(self, batch: Batch, outputs: Tensor) -> Tensor:
        if batch.share == 0 or not self.objective.count(batch.targets):
            return outputs.sum() * 0.0  # nothing to learn from, but part of the average
        return self.objective.loss(outputs, batch.targets)

    def _count(self, batch: Batch, outputs: Tensor) -> None:
        """Count the sequences, and those in a row that were right before they were learnt from."""
        begun = len(batch.lengths) if batch.reset is None else int(batch.reset.sum())
        right: list[bool] = []
        if self.streak is not None and self.objective.right is not None:
            right = self.objective.right(outputs, batch.targets).tolist()
        if self.settings.devices > 1:
            begun, right = shards.gather(begun, right, empty=batch.share == 0)
        self.sequences += begun
        if self.streak is None or self.objective.right is None:
            return
        last_wrong = max((i for i, each in enumerate(right) if not each), default=None)
        if last_wrong is None:
            self.right_in_a_row += len(right)
        else:
            self.right_in_a_row = len(right) - 1 - last_wrong
        if self.right_in_a_row >= self.streak:
            self.solved = self.trainer.should_stop = True

    def configure_optimizers(self) -> Any:
        interval = "step" if self.sized else "epoch"
        return optimisation.make(
            self.parameters(), self.settings, self.steps, interval, self.monitor
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity
        checkpoint["progress"] = {name: getattr(self, name) for name in _PROGRESS}
        checkpoint["carried"] = self._states
        if self.settings.devices > 1:
            checkpoint["carried"] = shards.gather_states(self._states)
        if isinstance(self.batches, (Flow, Windows, shards.Shards)):
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
        if isinstance(self.batches, shards.Shards):
            self._states = self.batches.own_states(self._states)
        if isinstance(self.batches, (Flow, Windows, shards.Shards)):
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
