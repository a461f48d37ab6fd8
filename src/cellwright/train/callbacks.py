"""What happens beside the training step: the log, the checkpoints, the progress bar."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cellwright.train.files import write_rows

Row = dict[str, float]


class CtrlC(Callback):
    """Ends training on Ctrl-C, even where Python drops the exception.

    A KeyboardInterrupt that arrives while an object is being finalised is printed and lost. So
    the signal is noted too, and raised again before the next batch.
    """

    def __init__(self) -> None:
        self._asked = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to the signal inside the block, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def note(number: int, frame: FrameType | None) -> None:
            self._asked = True
            if callable(before):
                before(number, frame)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._asked:
            raise KeyboardInterrupt


class Journal(Callback):
    """Gather a row of numbers an epoch, and write them to a CSV file.

    The rows are part of a checkpoint, so that a resumed run's log has each epoch once.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = []
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows and trainer.is_global_zero:
            write_rows(self.path, self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: Row = {"epoch": trainer.current_epoch + 1}
        for name, value in sorted(trainer.callback_metrics.items()):
            row[name] = float(value)
        row["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = time.perf_counter() - self._began
        self.rows.append(row)
        if trainer.is_global_zero:
            write_rows(self.path, self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class Patience(EarlyStopping):
    """Stop after so many epochs without a lower loss; a run that stopped stays stopped."""

    def __init__(self, monitor: str, epochs: int):
        super().__init__(
            monitor, patience=epochs, check_finite=False, check_on_train_epoch_end=True
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Keeper(Checkpoint):
    """Write ``last.safetensors`` after every epoch, and ``best.safetensors`` after the best.

    Args:
        folder: where to.
        monitor: the metric whose lowest value is the best.
        highest: whether it is its highest value instead; of equal ones the first.
    """

    def __init__(self, folder: Path, monitor: str, *, highest: bool = False):
        self.folder, self.monitor, self.highest = folder, monitor, highest
        self.best_value = float("inf")
        self.best_epoch = 0

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.folder / "last.safetensors"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = float(trainer.callback_metrics[self.monitor]) * (-1 if self.highest else 1)
        if value < self.best_value:
            self.best_value, self.best_epoch = value, trainer.current_epoch + 1
            trainer.save_checkpoint(self.best, weights_only=False)
        trainer.save_checkpoint(self.last, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]


class Bar(ProgressBar):
    """One bar for the whole training, with loss and metric; lines where there is no terminal.

    Args:
        console: where to.
        metric_name: as in `Objective`.
    """

    def __init__(self, console: Console, metric_name: str):
        super().__init__()
        self._console, self._metric_name = console, metric_name
        self._shown = ""
        self._progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.max_epochs or 0
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )
        self._progress.add_task("", total=epochs, completed=trainer.current_epoch, shown="")
        self._progress.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._progress is not None:
            done = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            self._progress.update(self._progress.task_ids[0], completed=done)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        self._shown = describe(trainer.callback_metrics, self._metric_name)
        if self._progress is not None:
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=epoch, shown=self._shown)
        elif epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0:
            line = f"epoch {epoch}/{epochs}  {self._shown}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def disable(self) -> None:
        self._stop()

    def enable(self) -> None:
        pass


def describe(metrics: Mapping[str, Any], metric_name: str) -> str:
    """``loss 0.1234 accuracy 0.9876``, and after it the same two of validation, if measured."""
    parts = []
    for part, words in (("train", ("loss ", metric_name + " ")), ("validation", ("", ""))):
        if f"{part}_loss" in metrics:
            loss, metric = metrics[f"{part}_loss"], metrics[f"{part}_{metric_name}"]
            lead = "" if part == "train" else f"{part} "
            parts.append(f"{lead}{words[0]}{float(loss):.4f} {words[1]}{float(metric):.4f}")
    return "  ".join(parts)
