"""Training a model on series, by Lightning."""

from __future__ import annotations

import importlib.util
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from rich.console import Console
from torch import nn

from cellwright.errors import UsageError
from cellwright.train import processes, storage
from cellwright.train.averaging import Average
from cellwright.train.callbacks import Bar, CtrlC, Journal, Keeper, Patience, Row
from cellwright.train.checks import Check
from cellwright.train.examples import Examples, Loader
from cellwright.train.module import KIND, SafetensorsIO, TrainingModule
from cellwright.train.objectives import Objective
from cellwright.train.sequences import Generated
from cellwright.train.settings import Settings
from cellwright.train.shards import share_out
from cellwright.train.windows import Windows


@dataclass(frozen=True)
class Fitted:
    """How training went.

    Attributes:
        rows: numbers of each epoch, as in ``log.csv``.
        epoch: the epoch whose weights the model has.
        seconds: time in training, over all its parts if it was resumed.
        sequences: how many were trained on.
        solved: whether training stopped because enough sequences in a row were right, or all
            of those on which it is tested on the way.
        skipped: updates that were left out because the gradient was not finite.
    """

    rows: list[Row]
    epoch: int
    seconds: float
    sequences: int
    solved: bool
    skipped: int = 0


def fit(
    model: nn.Module,
    objective: Objective,
    train: Examples,
    validation: Examples | None,
    classes: Sequence[str],
    settings: Settings,
    folder: Path,
    identity: dict[str, Any],
    *,
    check: Examples | None = None,
    tensorboard: bool = False,
    console: Console | None = None,
) -> Fitted:
    """Train a model in place, writing the log and the checkpoints into a folder.

    With validation series, the model ends with the weights of the epoch with the lowest
    validation loss (or the highest metric, where the objective says so); without, or where all of
    ``check`` was right, with those of the last epoch. If the folder has a checkpoint, training goes
    on from it, and ends with the same bits as if it had not been interrupted.

    Args:
        model: takes (x, lengths), gives what the objective takes.
        objective: loss and metric.
        train, validation: sequences with targets.
        classes: the labels, in the order in which the model numbers them.
        settings: of the training.
        folder: for ``log.csv`` and ``checkpoints/``.
        identity: plain values that a checkpoint must agree with.
        check: sequences to test on after every epoch; training ends once all of them are right.
        tensorboard: also log for TensorBoard.
        console: where the progress bar goes; None for no bar.

    Raises:
        CheckpointError: the folder's checkpoint cannot be used.
        DataError: a label of the series is not among the classes.
        UsageError: training diverged, TensorBoard is not installed, a file cannot be written, or
            it is tested on the way while averages are kept.
    """
    if check is not None and settings.average is not None:
        raise UsageError(
            "--average: the task tests the weights on the way and stops when they are right, and "
            "their average is other weights; leave --average out"
        )
    batches = train.batches(settings.batch_size, settings.seed, classes)
    loaders = None if validation is None else validation.batches(256, None, classes)
    if settings.tbptt is not None:
        batches = Windows(batches, settings.tbptt)
    rank, count = processes.rank(), objective.count
    batches = share_out(batches, rank, settings.devices, count)
    if loaders is not None:
        loaders = share_out(loaders, rank, settings.devices, count)
    streak = train.streak if isinstance(train, Generated) else None
    monitor = "train_loss" if validation is None else "validation_loss"
    module = TrainingModule(model, objective, settings, batches, identity, streak, monitor)
    journal = Journal(folder / "log.csv")
    by_metric = validation is not None and objective.best_by_metric
    best = f"validation_{objective.metric_name}" if by_metric else monitor
    keeper = Keeper(folder / "checkpoints", best, highest=by_metric)
    interrupt = CtrlC()
    bar = [Bar(console, objective.metric_name)] if console is not None and not rank else []
    loggers: list[Logger] = []
    if tensorboard and not rank:
        require_tensorboard()
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    precision: Any = settings.precision
    methods: list[Callback] = []
    if settings.average is not None:
        methods.append(Average(settings.average))
    if settings.patience is not None:
        methods.append(Patience(monitor, settings.patience))
    if check is not None:
        methods.append(Check(check, tuple(classes)))  # before the log and the checkpoints
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            devices=settings.devices,
            strategy=processes.strategy(settings.devices),
            precision=precision,
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            logger=loggers or False,
            callbacks=[*methods, journal, *bar, keeper, interrupt],
            enable_progress_bar=bool(bar),
            enable_checkpointing=True,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            default_root_dir=folder,
            plugins=[LightningEnvironment(), SafetensorsIO()],
        )
        resume = keeper.last if keeper.last.exists() else None
        with interrupt.heard():
            _run(trainer, module, batches, loaders, resume)
    chosen = int(journal.rows[-1]["epoch"])
    checked = check is not None and module.solved
    if validation is not None and not checked and not rank:
        state = storage.load(keeper.best, KIND)["state_dict"]
        module.load_state_dict(state)
        chosen = keeper.best_epoch
    model.eval()
    seconds = sum(row["seconds"] for row in journal.rows)
    return Fitted(journal.rows, chosen, seconds, module.sequences, module.solved, module.skipped)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice and announcements to itself; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\.")
            warnings.filterwarnings("ignore", "GPU available but not used", UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def require_tensorboard() -> None:
    """Raise `UsageError` unless TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard: TensorBoard is not installed; "
            "install it with: pip install 'cellwright[tensorboard]'"
        )


def _run(
    trainer: Trainer,
    module: TrainingModule,
    batches: Loader,
    validation: Loader | None,
    resume: Path | None,
) -> None:
    """`Trainer.fit`, with Ctrl-C as the KeyboardInterrupt that it is."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, batches, validation, ckpt_path=resume)
    except SystemExit:
        # Lightning turns Ctrl-C into exit code 1, and ignores it from then on.
        if trainer.interrupted:
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise
