"""What a finished run is for: to be measured again, and to classify new series."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellwright import tasks
from cellwright.errors import CheckpointError, UsageError
from cellwright.tasks.long_csv import Columns
from cellwright.tasks.own import errors_named
from cellwright.tasks.sources import Source, conform_features, read_series
from cellwright.tasks.task import Task
from cellwright.train import folder, objectives
from cellwright.train.examples import Examples
from cellwright.train.folder import RunFolder
from cellwright.train.measure import Measured, measure, outputs, run_as
from cellwright.train.models import Description, load_model
from cellwright.train.series import SeriesSet
from cellwright.train.settings import Settings


def evaluate(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    cell: str | None = None,
    engine: str | None = None,
) -> tuple[Measured, Description, str]:
    """Measure a run's model on its own test series, or on a file.

    Args:
        run: the run's folder.
        data: a labelled file of the same form; None for the run's own test series.
        cell: where the cell is, if its file has moved.
        engine: the name of the engine; None for the run's own.

    Returns:
        What was measured, what the model is, and what it was measured on.

    Raises:
        CellwrightError: the run or the file cannot be used, or a label is unseen in training.
    """
    model, description, found = _open(run, cell)
    config = folder.read_config(found)
    if data is None:
        source = _source_of(found, config)
        series: Examples = source.load(description.settings.seed)[0].test
        name = f"the test series of {source.name}"
    else:
        _check_classifies(description)
        series, name = _read_like(Path(data), description, config), str(data)
    objective = objectives.get(description.objective)
    named = None if data is not None else source.task
    with run_as(description.settings, engine), errors_named(named):
        return measure(model, objective, series, description.classes), description, name


@dataclass(frozen=True)
class Prediction:
    """What a model says to one series.

    Attributes:
        series: the series' name.
        predicted: the likeliest class.
        probability: of it.
        label: the series' own label, or None.
    """

    series: str
    predicted: str
    probability: float
    label: str | None


def predict(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    cell: str | None = None,
    engine: str | None = None,
) -> list[Prediction]:
    """Classify the series of a file with a run's model.

    Args:
        run: the run's folder.
        data: a file of the same form as in training; labels are not needed.
        cell: where the cell is, if its file has moved.
        engine: the name of the engine; None for the run's own.

    Raises:
        CellwrightError: the run or the file cannot be used.
    """
    model, description, found = _open(run, cell)
    _check_classifies(description)
    series = _read_like(Path(data), description, folder.read_config(found))
    with run_as(description.settings, engine):
        probabilities = outputs(model, series).softmax(-1)
    best = probabilities.max(-1)
    return [
        Prediction(name, description.classes[index], value, label)
        for name, index, value, label in zip(
            series.names,
            best.indices.tolist(),
            best.values.tolist(),
            series.labels or [None] * len(series),
            strict=True,
        )
    ]


def _source_of(found: RunFolder, config: Mapping[str, Any]) -> Source:
    try:
        return Source.from_dict(config["data"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{found.config}: its content is damaged: {error!r}") from error


def _settings_of(found: RunFolder, config: Mapping[str, Any]) -> Settings:
    try:
        return Settings.from_dict(config["settings"])
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise CheckpointError(f"{found.config}: its content is damaged: {error!r}") from error


def _open(run: str | os.PathLike[str], cell: str | None) -> tuple[Any, Description, RunFolder]:
    found = folder.finished(run)
    config = folder.read_config(found)
    source = _source_of(found, config)  # a task's module knows its objective
    if source.task is not None and not isinstance(tasks.get(source.task), Task):
        raise UsageError(
            f"{found.path}: the run is of {source.name}, which is learnt and tested in its own "
            f"way; its results are in {found.metrics}"
        )
    model, description = load_model(found.model, cell)
    recorded = {"task": source.name, **_settings_of(found, config).as_dict()}
    for name, value in {"task": description.task, **description.settings.as_dict()}.items():
        if recorded[name] != value:
            raise CheckpointError(
                f"{found.model}: these are weights of another run, whose {name} is {value!r}; "
                f"{found.config} says {recorded[name]!r}"
            )
    return model, description, found


def _check_classifies(description: Description) -> None:
    if description.objective != "classification":
        raise UsageError(
            f"the run is of the task {description.task}, whose objective is "
            f"{description.objective!r}; series of a file are for runs that classify series"
        )


def _read_like(path: Path, description: Description, config: Mapping[str, Any]) -> SeriesSet:
    """A file read as the training file was, with the features that the model takes."""
    columns = Columns(**config.get("data", {}).get("columns", {}))
    series = read_series(path, columns)
    return conform_features(series, description.features, description.features_by_name)
