"""What ``cellwright train`` says of a run: before it begins, and when it has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.apps import show

if TYPE_CHECKING:
    from cellwright.tasks.runs import Run
    from cellwright.train.objectives import Objective


def announce(run: Run) -> None:
    """Say what is going to be trained, on what, and where."""
    from cellwright.train.streams import Streams

    settings, source = run.settings, run.source
    what = "windows of streams" if isinstance(run.train, Streams) else "series"
    test = f"{len(run.data.test)} test {what}"
    if source.task is None and source.test is None:
        test += (
            f" (a share of {source.test_share:g} of each label, drawn with seed {settings.seed})"
        )
    validation = "" if run.validation is None else f", {len(run.validation)} for validation"
    output = "label" if source.objective == "classification" else "output"
    features = show.plural(len(run.train.features), "feature")
    show.say(
        f"{source.name}: {len(run.train)} training {what}{validation}, {test}, "
        f"{features}, {show.plural(len(run.train.classes), output)}"
    )
    if source.options:
        show.say(", ".join(f"{name} {value}" for name, value in source.options.items()))
    if source.train is not None and source.test is None:
        beside = _file_beside(Path(source.train))
        if beside is not None:
            show.say(f"{beside.name} lies beside it; --test {beside} would test on that")
    directions = "both directions" if settings.bidirectional else "one direction"
    units = show.plural(settings.hidden_size, "unit")
    layers = show.plural(settings.num_layers, "layer")
    epochs = show.plural(settings.epochs, "epoch")
    show.say(
        f"{settings.cell}: {units}, {layers}, {directions}; "
        f"{epochs}, seed {settings.seed}; folder {run.folder.path}"
    )


def _file_beside(path: Path) -> Path | None:
    """``X_TEST.ts`` beside ``X_TRAIN.ts``, if there is one."""
    beside = path.with_name(path.name.replace("_TRAIN.", "_TEST."))
    return beside if beside != path and beside.exists() else None


def measured_columns(metric: str, *, streams: bool) -> dict[str, str]:
    """Columns of what was measured on series, or on streams."""
    return {"streams" if streams else "series": "right", metric: "right", "loss": "right"}


def wrong_column(*, streams: bool) -> str:
    """The heading above how many are wrong."""
    return "wrong windows" if streams else "wrong"


def show_results(metrics: dict[str, Any], objective: Objective) -> None:
    """Say what was measured."""
    metric = metrics["metric"]
    streams = "test_windows" in metrics
    columns = {"": "left", **measured_columns(metric, streams=streams)}
    rows = []
    for part in ("train", "validation", "test"):
        if f"{part}_loss" in metrics:
            rows.append([
                part,
                str(metrics[f"{part}_series"]),
                objective.show(metrics[f"{part}_{metric}"]),
                f"{metrics[f'{part}_loss']:.4f}",
            ])  # fmt: skip
            if f"{part}_wrong" in metrics:
                columns[wrong_column(streams=streams)] = "right"
                rows[-1].append(str(metrics[f"{part}_wrong"]))
    show.say()
    show.table(columns, rows)
    show.say(
        f"\n{metrics['parameters']:,} parameters, epoch {metrics['epoch_of_weights']} of "
        f"{metrics['epochs']}, {metrics['seconds']:.1f} s on the {metrics['engine']} engine"
    )
    if metrics.get("skipped"):
        show.say(f"{metrics['skipped']:,} updates were left out: their gradient was not finite")
    if metrics.get("solved"):
        show.say(f"Solved after {metrics['sequences']:,} sequences")


def show_published(run: Run, objective: Objective) -> None:
    """Say what others got with the task's metric, a line for each source and setting."""
    by_source: dict[str, list[str]] = {}
    for each in run.source.published:
        if not each.measure:
            where = f"{each.source}; {each.note}" if each.note else each.source
            value = f"{each.method} {objective.show_published(each.value)}"
            by_source.setdefault(where, []).append(value)
    for where, values in by_source.items():
        show.say(f"Published: {', '.join(values)} ({where})")
