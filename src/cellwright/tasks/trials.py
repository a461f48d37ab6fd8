"""Runs of experiments: prepare, go on, execute, from the settings to the files of a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cellwright import tasks
from cellwright.errors import UsageError
from cellwright.tasks import records
from cellwright.tasks.own import errors_named
from cellwright.tasks.records import Record
from cellwright.tasks.sources import absolute
from cellwright.tasks.task import Experiment
from cellwright.train import folder
from cellwright.train.folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Trial:
    """A run of an experiment that is prepared: its folder made, nothing done yet.

    Attributes:
        reference: of the experiment, as `cellwright.tasks.get` takes it.
        experiment, settings: what was asked for.
        folder: where the files go.
    """

    reference: str
    experiment: Experiment
    settings: Any
    folder: RunFolder


def prepare(
    reference: str,
    changes: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Trial:
    """Check all settings and make the folder of a new run.

    Args:
        reference: of the experiment.
        changes: settings in which the run differs from its defaults.
        output: the folder; None for one under ``runs``.
        overwrite: whether an earlier run in that folder may be replaced.

    Raises:
        CellwrightError: a setting or the folder cannot be used. Nothing has been written then.
    """
    reference = absolute(reference) if tasks.is_reference(reference) else reference
    experiment = get(reference)
    settings = experiment.settings(changes)
    data = {"task": reference}
    made = records.begin(output, experiment.name, overwrite, data, asdict(settings))
    return Trial(reference, experiment, settings, made)


def get(reference: str) -> Experiment:
    """The experiment of that name.

    Raises:
        UsageError: there is none.
    """
    found = tasks.get(reference)
    if not isinstance(found, Experiment):
        raise UsageError(f"the task {found.name} is learnt from sequences; it is no experiment")
    return found


def reopen(
    output: str | os.PathLike[str],
    reference: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Trial | RunFolder:
    """A run that was begun and is to be continued; its folder alone if it has ended.

    Args:
        output: its folder.
        reference, changes: what the command line says again; it has to agree with the run.

    Raises:
        CellwrightError: there is no such run, its record is damaged, or what is said again
            differs from it.
    """
    record = Record.open(output)
    recorded, experiment, settings = record.read(_recorded)
    if reference is not None and tasks.get(reference).name != experiment.name:
        raise UsageError(
            f"the run in {record.folder.path} is on {experiment.name}; leave the task out to "
            "resume it"
        )
    record.check_same(settings, changes)
    if record.ended:
        return record.folder
    return Trial(recorded, experiment, settings, record.folder)


def _recorded(data: Any, settings: Any) -> tuple[str, Experiment, Any]:
    experiment = get(data["task"])
    return data["task"], experiment, experiment.settings(settings)


def execute(trial: Trial, console: Console | None = None) -> dict[str, Any]:
    """Do the run and write its results; returns what ``metrics.json`` says.

    Args:
        trial: as `prepare` or `reopen` gave it.
        console: where the progress goes; None for silence.

    Raises:
        CellwrightError: the run failed, or a file cannot be written.
    """
    with errors_named(trial.reference):
        found = trial.experiment.run(trial.settings, trial.folder.work, console)
    metrics = {
        "task": trial.experiment.name,
        "seed": trial.settings.seed,
        "metric": trial.experiment.metric,
        **found,
    }
    folder.write_metrics(trial.folder, metrics)
    trial.folder.finish()
    return metrics
