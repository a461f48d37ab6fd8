"""``cellwright evaluate`` and ``cellwright predict``: what a trained model is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cellwright.apps import results, show
from cellwright.errors import UsageError

_Run = Annotated[Path, Argument(metavar="RUN", help="The folder of a run.", show_default=False)]
_Cell = Annotated[
    str | None,
    Option(help="path/to/file.py:cell, if the cell's file has moved.", show_default=False),
]

_Engine = Annotated[
    str | None,
    Option(help="What runs the cell: cpu or reference.", show_default="the run's own"),
]


def evaluate(
    run: _Run,
    data: Annotated[
        Path | None,
        Option(
            help="A labelled .ts or CSV file of the same form.",
            show_default="the run's own test series",
        ),
    ] = None,
    cell: _Cell = None,
    engine: _Engine = None,
) -> None:
    """Measure a trained model on its test series, or on a labelled file."""
    from cellwright.tasks import use

    found, description, name = use.evaluate(run, data, cell, engine)
    show.say(f"{description.cell} trained on {description.task}, measured on {name}")
    from cellwright.train import objectives

    objective = objectives.get(description.objective)
    streams = found.windows is not None
    columns = results.measured_columns(objective.metric_name, streams=streams)
    values = [str(found.count), objective.show(found.metric), f"{found.loss:.4f}"]
    if found.wrong is not None:
        columns[results.wrong_column(streams=streams)] = "right"
        values.append(str(found.wrong))
    show.table(columns, [values])


def predict(
    run: _Run,
    file: Annotated[
        Path,
        Argument(
            metavar="FILE",
            help="A .ts or CSV file of the same form; labels are not needed.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        Option(help="Write the answers to this CSV file.", show_default=False),
    ] = None,
    rows: Annotated[int, Option(help="How many answers to show.", min=0)] = 40,
    cell: _Cell = None,
    engine: _Engine = None,
) -> None:
    """Classify the series of a file with a trained model."""
    if output is not None and output.resolve() == file.resolve():
        raise UsageError(f"--output: {output} is the file to read; name another")
    from cellwright.tasks import use

    found = use.predict(run, file, cell, engine)
    labelled = found[0].label is not None
    columns = {"series": "left", "predicted": "left", "probability": "right"}
    columns |= {"label": "left"} if labelled else {}
    shown = [
        [each.series, each.predicted, f"{each.probability:.4f}", *([each.label or ""] * labelled)]
        for each in found
    ]
    if rows:
        show.table(columns, shown[:rows])
    if len(shown) > rows:
        show.say(f"... and {len(shown) - rows} more" if rows else f"{len(shown)} series")
    if labelled:
        right = sum(each.predicted == each.label for each in found)
        show.say(f"\n{right} of {len(found)} as labelled ({right / len(found):.2%})")
    if output is not None:
        rows_out = [
            [*line[:2], repr(each.probability), *line[3:]]
            for line, each in zip(shown, found, strict=True)
        ]
        _write(output, list(columns), rows_out)
        show.say(f"\n{len(found)} answers are in {output}")


def _write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    import csv
    import io

    from cellwright.train.files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
