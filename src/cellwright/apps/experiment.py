"""``cellwright train`` for tasks that are learnt in their own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellwright.apps import show


def reference(source: str | None, output: Path | None) -> str | None:
    """The experiment that a command line names, or that a run in a folder is of.

    Args:
        source: the task or data file; None where a run is resumed.
        output: the run's folder.

    Returns:
        None where it is no experiment.
    """
    from cellwright import tasks
    from cellwright.tasks.task import Experiment
    from cellwright.train import folder

    if source is None and output is not None:
        data = folder.read_config(folder.reopen(output)).get("data")
        source = data.get("task") if isinstance(data, dict) else None
    if source is None or not (source in tasks.names() or tasks.is_reference(source)):
        return None
    return source if isinstance(tasks.get(source), Experiment) else None


def train(
    named: str,
    changes: Mapping[str, Any],
    output: Path | None,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Run an experiment, or go on with it, and say what came out."""
    from cellwright.tasks import trials
    from cellwright.train import folder

    if resume and output is not None:
        trial = trials.reopen(output, named, changes)
    else:
        trial = trials.prepare(named, changes, output, overwrite=overwrite)
    if not isinstance(trial, trials.Trial):
        show.say("This run has ended; there is nothing to resume.")
        _show(folder.read_metrics(trial))
        return
    show.say(f"{trial.experiment.name}: {trial.experiment.title}; folder {trial.folder.path}")
    with show.on_interrupt(show.to_resume(trial.folder.path)):
        metrics = trials.execute(trial, show.out)
    _show(metrics)
    for each in trial.experiment.published:
        measure = each.measure or trial.experiment.metric
        show.say(f"Published: {each.method}: {measure} {each.value:,g} ({each.source})")
    show.say(f"\nResults are in {trial.folder.path}")


def _show(metrics: Mapping[str, Any]) -> None:
    show.say()
    for name, value in metrics.items():
        show.say(f"{name}: {value:,}" if isinstance(value, (int, float)) else f"{name}: {value}")
