"""``cellwright reproduce``: a task's published setting, several seeds, published beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from cellwright.apps import show

if TYPE_CHECKING:
    from cellwright.tasks.reproduce import Job, Spread
    from cellwright.tasks.task import Entry


def reproduce(
    task: Annotated[
        str,
        Argument(
            metavar="TASK",
            help="A task (see: cellwright tasks), or path/to/file.py:task of your own.",
            show_default=False,
        ),
    ],
    case: Annotated[
        list[str] | None,
        Option(help="A case of the task, as T=500.", show_default="all of them"),
    ] = None,
    seeds: Annotated[
        int | None,
        Option(help="How many seeds, from 0.", min=1, show_default="as many as the case says"),
    ] = None,
    output: Annotated[
        Path | None, Option(help="Where the runs' folders go.", show_default="runs/reproduce-TASK")
    ] = None,
    processes: Annotated[int, Option(help="Runs at the same time.", min=1)] = 1,
) -> None:
    """Repeat a published result: several seeds, and what was published beside what was found.

    Runs that have ended are not repeated, and those that were killed go on: call it again.
    """
    from cellwright import tasks
    from cellwright.tasks import reproduce as reproduction

    entry = tasks.get(task)
    output = output or Path("runs") / f"reproduce-{entry.name}"
    todo = reproduction.jobs(task, reproduction.cases(entry, case or ()), output, seeds)
    reproduction.results_before(output, entry)
    show.say(f"{entry.name}: {len(todo)} runs in {output}")
    with show.on_interrupt("the same command goes on"):
        found = reproduction.run_all(todo, processes, lambda job, got: _tell(entry, job, got))
    show.say()
    _show(reproduction.spreads(entry, found))
    _show_ranking(entry, found)
    _show_published(entry, found)
    show.say(f"\nAll numbers are in {reproduction.write(output, entry, found)}")


def _tell(entry: Entry, job: Job, metrics: Mapping[str, Any]) -> None:
    values = "  ".join(
        f"{name} {number(float(metrics[name]))}"
        for name in (*entry.report, "seconds")
        if metrics.get(name) is not None
    )
    show.say(f"{job.case.name}, seed {job.seed}: {values}")


def number(value: float) -> str:
    """A number as a reader wants it: whole ones whole, others with four digits.

    >>> number(74000.0), number(0.123456), number(8.41237)
    ('74,000', '0.1235', '8.412')
    """
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _show(table: Mapping[str, Mapping[str, Spread]]) -> None:
    rows = []
    for case, measured in table.items():
        for index, (name, each) in enumerate(measured.items()):
            rows.append([
                "" if index else case, name, number(each.mean), number(each.deviation),
                number(each.median), f"{number(each.low)} to {number(each.high)}", str(each.count),
            ])  # fmt: skip
    show.table(
        {"case": "left", "": "left", "mean": "right", "deviation": "right", "median": "right",
         "range": "right", "seeds": "right"},
        rows,
    )  # fmt: skip


def _show_ranking(entry: Entry, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    from cellwright.tasks import ranking

    if entry.baseline not in found or len(found) < 2:
        return
    metric = entry.report[0]
    values = {case: [float(each[metric]) for each in runs] for case, runs in found.items()}
    rows = [
        [str(place), each.case, number(each.mean), number(each.median), number(each.best),
         "" if each.p is None else f"{each.p:.3f}"]
        for place, each in enumerate(ranking.rank(values, entry.baseline), 1)
    ]  # fmt: skip
    show.say(
        f"\nBy {metric}, with the probability of as large a difference from {entry.baseline} by "
        "chance:"
    )
    show.table(
        {"": "right", "case": "left", "mean": "right", "median": "right", "best": "right",
         "p": "right"},
        rows,
    )  # fmt: skip


def _show_published(entry: Entry, found: Mapping[str, Any]) -> None:
    published = [each for each in entry.published if each.case in ("", *found)]
    if published:
        show.say("\nPublished:")
    for each in published:
        case = f"{each.case}: " if each.case else ""
        measure = f" {each.measure}" if each.measure else ""
        note = f"; {each.note}" if each.note else ""
        show.say(f"  {case}{each.method} {number(each.value)}{measure} ({each.source}{note})")
