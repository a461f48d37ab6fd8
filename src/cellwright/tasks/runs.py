"""Whole runs: train and resume, from the data to the files of a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cellwright import cells
from cellwright.errors import InputError, UsageError
from cellwright.nn import explain
from cellwright.tasks import records
from cellwright.tasks.own import errors_named
from cellwright.tasks.records import Record
from cellwright.tasks.sources import Source, absolute
from cellwright.tasks.task import Data
from cellwright.train import curves, folder, objectives, processes
from cellwright.train.batches import seed_everything
from cellwright.train.examples import Examples, check_batch
from cellwright.train.finder import find_learning_rate
from cellwright.train.fit import Fitted, fit, require_tensorboard
from cellwright.train.folder import RunFolder
from cellwright.train.measure import measure, run_as
from cellwright.train.models import Description, save_model
from cellwright.train.series import SeriesSet, split_stratified
from cellwright.train.settings import Settings
from cellwright.train.windows import Windows

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Run:
    """A run that is prepared: its data read, its folder made, nothing trained yet.

    Attributes:
        source, settings: what was asked for.
        data: all training and all test series.
        train, validation: the parts of the training series; the second may be None.
        folder: where the files go.
        tensorboard: whether to log for TensorBoard.
    """

    source: Source
    settings: Settings
    data: Data
    train: Examples
    validation: Examples | None
    folder: RunFolder
    tensorboard: bool


def prepare(
    source: Source,
    changes: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    tensorboard: bool = False,
    find_rate: bool = False,
) -> Run:
    """Read the data, check all settings and make the folder of a new run.

    Args:
        source: the data.
        changes: settings in which the run differs from the task's defaults.
        output: the folder; None for one under ``runs``.
        overwrite: whether an earlier run in that folder may be replaced.
        tensorboard: also log for TensorBoard.
        find_rate: let a range test choose the learning rate, see `find_learning_rate`.

    Raises:
        CellwrightError: the data, a setting or the folder cannot be used. Nothing has been
            written then.

    Example:
        >>> import tempfile
        >>> run = prepare(Source.parse("japanese-vowels"), {"epochs": 1}, tempfile.mkdtemp())
        >>> len(run.train), run.settings.cell
        (270, 'lstm')
    """
    settings = source.settings(changes)
    settings = settings.replace(cell=absolute_cell(settings.cell))
    data, source = source.load(settings.seed)
    train, validation = _part(data, settings)
    _check_sizes(settings)
    _check_first_batch(source, train, settings)
    # Built once before the folder is touched: what else is wrong with the cell is found here.
    model = _build(source, settings, train)
    # Recorded by its name, so that a resumed run goes on with the very same engine.
    settings = settings.replace(engine=_engine(model, settings))
    if tensorboard:
        require_tensorboard()
    if find_rate:
        settings = settings.replace(learning_rate=_find_rate(source, settings, train))
    made = records.begin(output, source.name, overwrite, source.as_dict(), settings.as_dict())
    return Run(source, settings, data, train, validation, made, tensorboard)


def reopen(
    output: str | os.PathLike[str],
    source: Source | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    tensorboard: bool = False,
) -> Run | RunFolder:
    """A run that was begun and is to be continued; its folder alone if it has ended.

    Args:
        output: its folder.
        source, changes: what the command line says again; it has to agree with the run.
        tensorboard: also log for TensorBoard.

    Raises:
        CellwrightError: there is no such run, its files are damaged or its data has changed, or
            what is said again differs from it.
    """
    record = Record.open(output)
    recorded, settings = record.read(
        lambda data, settings: (Source.from_dict(data), Settings.from_dict(settings))
    )
    if source is not None:
        source.check_same(recorded, record.folder.path)
    said = dict(changes or {})
    if "cell" in said:
        said["cell"] = absolute_cell(said["cell"])
    record.check_same(settings, said)
    if record.ended:
        return record.folder
    data, recorded = recorded.load(settings.seed)
    train, validation = _part(data, settings)
    if tensorboard:
        require_tensorboard()
    return Run(recorded, settings, data, train, validation, record.folder, tensorboard)


def execute(run: Run, console: Console | None = None) -> dict[str, Any]:
    """Train, test and write the results; returns what ``metrics.json`` says.

    Args:
        run: as `prepare` or `reopen` gave it.
        console: where the progress goes; None for silence.

    Raises:
        CellwrightError: training diverged, or a file cannot be written.
    """
    others = [sys.executable, "-m", "cellwright.tasks.join", str(run.folder.path)]
    with run_as(run.settings), errors_named(run.source.task):
        with processes.beside(others, run.settings.devices):
            model, fitted = _fit(run, console)
        return _measure(run, model, fitted)


def take_part(run: Run) -> None:
    """Train as one of several processes; the first of them writes the results."""
    with run_as(run.settings):
        _fit(run, None)


def _fit(run: Run, console: Console | None) -> tuple[Any, Fitted]:
    settings = run.settings
    description = _describe(run.source, settings, run.train)
    # An epoch's chance comes from the numbers 0, 1, ...; the weights take one beyond them.
    seed_everything(settings.seed, settings.epochs)
    model: Any = description.build(cells.load(settings.cell))
    model.prepare(run.train)
    fitted = fit(
        model, objectives.get(description.objective), run.train, run.validation,
        description.classes, settings, run.folder.work, description.as_dict(),
        check=run.data.check, tensorboard=run.tensorboard, console=console,
    )  # fmt: skip
    return model, fitted


def _measure(run: Run, model: Any, fitted: Fitted) -> dict[str, Any]:
    settings = run.settings
    description = _describe(run.source, settings, run.train)
    objective = objectives.get(description.objective)
    parts = {"train": run.train, "validation": run.validation, "test": run.data.test}
    metrics: dict[str, Any] = {
        "task": run.source.name,
        "cell": description.cell,
        "seed": settings.seed,
        "engine": _engine(model, settings),
        "objective": objective.name,
        "metric": objective.metric_name,
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    for part, series in parts.items():
        if series is not None:
            found = measure(model, objective, series, description.classes)
            metrics |= found.as_metrics(part, objective.metric_name)
    metrics |= {
        "epochs": settings.epochs,
        "epoch_of_weights": fitted.epoch,
        "sequences": fitted.sequences,
        "solved": fitted.solved,
        "skipped": fitted.skipped,
        "threads": settings.threads,
        "seconds": round(fitted.seconds, 3),
    }
    save_model(run.folder.model, model, description)
    title = f"{run.source.name}: {description.cell}, {settings.hidden_size} units"
    shown = {"loss": metrics["test_loss"]}
    shown[objective.metric_name] = metrics[f"test_{objective.metric_name}"]
    curves.draw(run.folder.curves, fitted.rows, objective.metric_name, title, shown)
    folder.write_metrics(run.folder, metrics)
    run.folder.finish()
    return metrics


def _find_rate(source: Source, settings: Settings, train: Examples) -> float:
    description = _describe(source, settings, train)
    with run_as(settings):
        seed_everything(settings.seed, settings.epochs)
        model: Any = description.build(cells.load(settings.cell))
        model.prepare(train)
        objective = objectives.get(description.objective)
        found = find_learning_rate(model, objective, train, description.classes, settings)
    return float(f"{found.suggestion:.3g}")


def _engine(model: Any, settings: Settings) -> str:
    """The name of the engine that runs the model."""
    with run_as(settings):
        x = torch.zeros(2, 1, model.recurrent.input_size)
        return explain(model.recurrent, x).engine


def absolute_cell(reference: str) -> str:
    """A reference to a cell that does not depend on the current folder."""
    if reference in cells.names() or ".py" not in reference:
        return reference
    return absolute(reference)


def _check_sizes(settings: Settings) -> None:
    """What the layer would say as well, but in the words of the command line."""
    spec = cells.load(settings.cell)
    for name in spec.size_names:
        if name not in settings.sizes:
            half = max(1, settings.hidden_size // 2)
            raise UsageError(
                f"--size: cell {spec.name} has a size {name!r}; give it, as --size {name}={half}"
            )
    for name in settings.sizes:
        if name not in spec.size_names:
            known = ", ".join(spec.size_names) or "no size beside input and hidden"
            raise UsageError(f"--size: cell {spec.name} has no size {name!r}; it has {known}")


def _check_first_batch(source: Source, train: Examples, settings: Settings) -> None:
    """See that the data can be trained on, while nothing has been written yet."""
    batches = train.batches(settings.batch_size, settings.seed)
    if settings.tbptt is not None:
        batches = Windows(batches, settings.tbptt)
    with errors_named(source.task):
        check_batch(next(iter(batches)), len(train.features), source.name)


def _part(data: Data, settings: Settings) -> tuple[Examples, Examples | None]:
    if not settings.validation:
        return data.train, data.validation
    if data.validation is not None:
        raise UsageError("--validation: the task has its own validation data")
    if not isinstance(data.train, SeriesSet):
        raise UsageError("--validation: only labelled series can be parted; leave it out")
    return split_stratified(data.train, settings.validation, settings.seed, stream=3)


def _build(source: Source, settings: Settings, train: Examples) -> Any:
    """The model; what is wrong with an option of its layers is said in the command line's words."""
    try:
        return _describe(source, settings, train).build(cells.load(settings.cell))
    except InputError as error:
        named = str(error).partition(":")[0]
        raise UsageError(f"--layer {error}" if named in settings.layer else str(error)) from error


def _describe(source: Source, settings: Settings, train: Examples) -> Description:
    spec = cells.load(settings.cell)
    return Description(
        task=source.name,
        objective=source.objective,
        settings=settings,
        cell=spec.name,
        equations=spec.equations(),
        features=train.features,
        classes=train.classes,
        features_by_name=source.features_by_name,
    )
