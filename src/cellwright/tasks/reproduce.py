"""A task's published setting, over several seeds, beside what was published."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

from cellwright import tasks
from cellwright.errors import UsageError
from cellwright.tasks import runs, trials
from cellwright.tasks.sources import Source, absolute
from cellwright.tasks.task import Case, Entry, Experiment
from cellwright.train import folder
from cellwright.train.files import write_text


@dataclass(frozen=True)
class Job:
    """One run of a reproduction: a case with a seed, in a folder of its own."""

    reference: str
    case: Case
    seed: int
    output: Path


def cases(entry: Entry, chosen: Sequence[str] = ()) -> list[Case]:
    """The cases of a task, or those of these names.

    Raises:
        UsageError: there is no case of that name.
    """
    known = {each.name: each for each in entry.cases or (Case(entry.name),)}
    for name in chosen:
        if name not in known:
            raise UsageError(
                f"--case: the task {entry.name} has no case {name!r}; it has {', '.join(known)}"
            )
    return [known[name] for name in chosen] if chosen else list(known.values())


def jobs(
    reference: str, chosen: Sequence[Case], output: Path, seeds: int | None = None
) -> list[Job]:
    """The runs of a reproduction: each seed of every case.

    Args:
        reference: of the task.
        chosen: the cases.
        output: the folder; each run has one below it.
        seeds: how many of each case; None for as many as the case says.
    """
    reference = absolute(reference) if tasks.is_reference(reference) else reference
    return [
        Job(reference, case, seed, output / _folder_name(case.name) / f"seed-{seed}")
        for case in chosen
        for seed in range(case.seeds if seeds is None else seeds)
    ]


def _folder_name(name: str) -> str:
    return "".join(each if each.isalnum() or each in "-_=." else "-" for each in name)


def run(job: Job) -> dict[str, Any]:
    """Do one run, go on with it, or read its results if it has ended.

    Raises:
        CellwrightError: it failed.
    """
    changes = job.case.changes_for(job.seed)
    begun = (job.output / "config.yaml").exists()
    if isinstance(tasks.get(job.reference), Experiment):
        changes = {**job.case.options, **changes}
        if not begun:
            return trials.execute(trials.prepare(job.reference, changes, job.output))
        trial = _again(job, partial(trials.reopen, reference=job.reference, changes=changes))
        return (
            trials.execute(trial) if isinstance(trial, trials.Trial) else folder.read_metrics(trial)
        )
    source = Source.parse(job.reference, options=job.case.options)
    if not begun:
        return runs.execute(runs.prepare(source, changes, job.output))
    found = _again(job, partial(runs.reopen, source=source, changes=changes))
    return runs.execute(found) if isinstance(found, runs.Run) else folder.read_metrics(found)


Begun = TypeVar("Begun")


def _again(job: Job, reopen: Callable[[Path], Begun]) -> Begun:
    try:
        return reopen(job.output)
    except UsageError as error:
        raise UsageError(
            f"--output: {job.output} holds another run than {job.case.name} with seed {job.seed}: "
            f"{error}"
        ) from error


def run_all(
    todo: Sequence[Job],
    processes: int = 1,
    tell: Callable[[Job, Mapping[str, Any]], None] = lambda job, metrics: None,
) -> dict[str, list[dict[str, Any]]]:
    """Do all runs; returns the metrics of each case's runs, in the order of the seeds.

    Args:
        todo: the runs.
        processes: how many at once.
        tell: called after each.
    """
    done: dict[tuple[str, int], dict[str, Any]] = {}
    for job, metrics in _finished(todo, processes):
        done[job.case.name, job.seed] = metrics
        tell(job, metrics)
    return {
        name: [done[job.case.name, job.seed] for job in todo if job.case.name == name]
        for name in dict.fromkeys(job.case.name for job in todo)
    }


def _finished(todo: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if processes == 1:
        for job in todo:
            yield job, run(job)
        return
    # Started afresh: a forked process would share torch's threads. Ctrl-C is for the first one.
    before = set(active_children())
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    try:
        futures = {pool.submit(run, job): job for job in todo}
        for each in as_completed(futures):
            yield futures[each], each.result()
    except BaseException:
        # What is running goes on from its last checkpoint when it is called again. Lightning hears
        # gentler signals, and goes on to the end of a batch.
        for child in set(active_children()) - before:
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Spread:
    """How a number is spread over seeds.

    Attributes:
        mean, deviation: the deviation is that of a sample; 0 for one number.
        median, low, high: the middle, the least and the greatest.
        count: numbers.

    Example:
        >>> Spread.of([1.0, 2.0, 6.0])
        Spread(mean=3.0, deviation=2.6457513110645907, median=2.0, low=1.0, high=6.0, count=3)
    """

    mean: float
    deviation: float
    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of these numbers, of which there is at least one."""
        return cls(
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if len(values) > 1 else 0.0,
            median=statistics.median(values),
            low=min(values),
            high=max(values),
            count=len(values),
        )


def spreads(
    entry: Entry, found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, Spread]]:
    """The spread of what the task reports, for each case and name.

    What a run did not measure is left out.
    """
    table: dict[str, dict[str, Spread]] = {}
    for case, metrics in found.items():
        table[case] = {}
        for name in (*entry.report, "seconds"):
            values = [float(each[name]) for each in metrics if each.get(name) is not None]
            if values and all(map(math.isfinite, values)):
                table[case][name] = Spread.of(values)
    return table


def results_before(output: str | os.PathLike[str], entry: Entry) -> dict[str, Any]:
    """The metrics by case that ``results.json`` of a reproduction's folder has so far.

    Raises:
        UsageError: the folder holds something else, which a reproduction would spoil.
    """
    path = Path(output) / "results.json"
    if (path.parent / "config.yaml").exists():
        raise UsageError(f"--output: {output} holds a run; choose another folder")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["task"] != entry.name:
            raise UsageError(
                f"--output: {output} holds results of the task {before['task']}; choose another "
                "folder"
            )
        return {each.name: before["runs"][each.name] for each in cases(entry)
                if each.name in before["runs"]}  # fmt: skip
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--output: {path} is not what a reproduction writes ({error}); choose another folder"
        ) from error


def write(
    output: str | os.PathLike[str], entry: Entry, found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Path:
    """Write all metrics into ``results.json`` of the folder; returns the file.

    The task's cases that the file has from before and that were not run now stay.
    """
    path = Path(output) / "results.json"
    content = {"task": entry.name, "runs": {**results_before(output, entry), **found}}
    write_text(path, json.dumps(content, indent=2) + "\n")
    return path
