"""CSV in long form: a row a step, with the series' name, the time, the features and the label.

::

    series_id, time, speed, angle, label
    s1, 0, 1.5, 0.1, left
    s1, 1, 1.4, 0.2, left
    s2, 0, 0.3, 0.0, right

The columns may stand in any order; the three that are not features are known by their names
(see `Columns`). Rows are put in the order of time; a series takes one label.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.errors import DataError
from cellwright.tasks.text import read_text
from cellwright.train.files import write_text
from cellwright.train.series import SeriesSet, shortened, sorted_labels

if TYPE_CHECKING:
    import pandas as pd

_ROLES = {
    "series": ("series_id", "series", "id", "case_id", "case"),
    "time": ("time", "t", "step", "timestep", "timestamp", "date"),
    "label": ("label", "class", "target"),
}
_LINE = "\0line"  # a column beside the file's own: no header can have this name


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are not features; None stands for one of the usual names.

    The usual names, in any case: ``series_id``, ``series``, ``id``, ``case_id``, ``case``;
    ``time``, ``t``, ``step``, ``timestep``, ``timestamp``, ``date``; ``label``, ``class``,
    ``target``.
    """

    series: str | None = None
    time: str | None = None
    label: str | None = None


def read_long_csv(path: str | Path, columns: Columns | None = None) -> SeriesSet:
    """Read a CSV file in long form, ``.csv`` or ``.csv.gz``.

    Args:
        path: the file; it has a header line.
        columns: names of the columns for series, time and label.

    Returns:
        The series in the order in which they begin in the file, (steps, features) each;
        ``labels`` is None if there is no column for them or it is empty throughout.

    Raises:
        DataError: the file is missing, empty or malformed; the message names file and line.
    """
    path = Path(path)
    frame = _read_rows(path)
    header = [name for name in frame.columns if name != _LINE]
    found = {role: _find(path, header, role, columns or Columns()) for role in _ROLES}
    series, time, label = found["series"], found["time"], found["label"]
    if series is None or time is None:  # _find has raised; this tells the type checker
        raise DataError(f"{path}:1: no columns for series and time")
    features = [name for name in header if name not in found.values()]
    if not features:
        raise DataError(
            f"{path}:1: no column is left for features; the columns are {', '.join(header)}"
        )
    if label is not None and not frame[label].str.strip().any():
        label = None
    for name in (series, label):
        if name is not None:
            _forbid_empty(path, frame, name)
    for name in features:
        frame[name] = _numbers(path, frame, name)
    frame[time] = _times(path, frame, time)
    return _gather(path, frame, series, time, label, features)


def _read_rows(path: Path) -> pd.DataFrame:
    """All fields as text, with the line at which each row ends in a column of its own."""
    import pandas as pd

    reader = csv.reader(io.StringIO(read_text(path)), strict=True, skipinitialspace=True)
    header: list[str] | None = None
    rows: list[list[str | int]] = []
    try:
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if header is None:
                header = [field.strip() for field in row]
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}:{reader.line_num}: expected {len(header)} columns as in the header, "
                    f"got {len(row)}"
                )
            rows.append([*row, reader.line_num])
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: this is not CSV: {error}") from None
    if header is None:
        raise DataError(f"{path}: the file is empty")
    for name in header:
        if not name or header.count(name) > 1:
            what = f"two columns named {name!r}" if name else "a column without a name"
            raise DataError(f"{path}:1: the header has {what}")
    if not rows:
        raise DataError(f"{path}:{reader.line_num}: no row comes after the header")
    return pd.DataFrame(rows, columns=[*header, _LINE])


def _find(path: Path, header: Sequence[str], role: str, columns: Columns) -> str | None:
    """The column that has this role; None only for a label that is not there."""
    wanted = getattr(columns, role)
    if wanted is not None:
        if wanted not in header:
            raise DataError(
                f"{path}:1: there is no column {wanted!r} for the {role}; "
                f"the columns are {', '.join(header)}"
            )
        return str(wanted)
    usual = _ROLES[role]
    fits = [name for name in header if name.lower().replace(" ", "_") in usual]
    if len(fits) > 1:
        raise DataError(
            f"{path}:1: {' and '.join(map(repr, fits))} could both be the {role}; "
            f"name the one that is meant with --{role}-column"
        )
    if not fits and role != "label":
        raise DataError(
            f"{path}:1: there is no column for the {role}; expected one named "
            f"{', '.join(usual)} (or name it with --{role}-column); "
            f"the columns are {', '.join(header)}"
        )
    return fits[0] if fits else None


def _forbid_empty(path: Path, frame: pd.DataFrame, name: str) -> None:
    frame[name] = frame[name].str.strip()
    empty = frame[name] == ""
    if empty.any():
        raise DataError(f"{path}:{frame[_LINE][empty.idxmax()]}: column {name!r} is empty")


def _numbers(path: Path, frame: pd.DataFrame, name: str) -> pd.Series:
    import pandas as pd

    values = pd.to_numeric(frame[name].str.strip(), errors="coerce").astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = bad.idxmax()
        text = str(frame[name][row]).strip()
        where = f"{path}:{frame[_LINE][row]}: column {name!r}"
        if text.lower() in ("", "?", "na", "nan", "null", "none"):
            raise DataError(
                f"{where}: the value is missing; missing values are not supported: "
                "fill them in first"
            )
        raise DataError(f"{where}: expected a finite number, got {text!r}")
    return values


def _times(path: Path, frame: pd.DataFrame, name: str) -> pd.Series:
    """Numbers, or dates in ISO 8601; they only put the rows in order."""
    import pandas as pd

    text = frame[name].str.strip()
    times = pd.to_numeric(text, errors="coerce").astype(np.float64)
    if np.isfinite(times.iloc[0]):
        bad = ~np.isfinite(times)
    else:
        times = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=True)
        bad = times.isna()
    if bad.any():
        row = bad.idxmax()
        raise DataError(
            f"{path}:{frame[_LINE][row]}: column {name!r}: expected a number or a date like "
            f"2024-01-31T12:00, the same in all rows, got {text[row]!r}"
        )
    return times


def _gather(
    path: Path,
    frame: pd.DataFrame,
    series: str,
    time: str,
    label: str | None,
    features: Sequence[str],
) -> SeriesSet:
    twice = frame.duplicated([series, time])
    if twice.any():
        row = twice.idxmax()
        raise DataError(
            f"{path}:{frame[_LINE][row]}: series {frame[series][row]!r} has the time "
            "of this row twice"
        )
    values, names, labels, lines = [], [], [], []
    for name, rows in frame.groupby(series, sort=False):
        if label is not None:
            other = rows[label] != rows[label].iloc[0]
            if other.any():
                row = other.idxmax()
                raise DataError(
                    f"{path}:{frame[_LINE][row]}: series {name!r} has label {rows[label][row]!r} "
                    f"here and {rows[label].iloc[0]!r} before; a series takes one label"
                )
            labels.append(str(rows[label].iloc[0]))
        values.append(rows.sort_values(time)[list(features)].to_numpy(dtype=np.float64))
        names.append(str(name))
        lines.append(int(rows[_LINE].iloc[0]))
    return SeriesSet(
        values=tuple(values),
        features=tuple(features),
        names=tuple(names),
        labels=tuple(labels) if label is not None else None,
        classes=sorted_labels(labels),
        path=str(path),
        lines=tuple(lines),
    )


def match_features(series: SeriesSet, features: Sequence[str]) -> SeriesSet:
    """The same series with their features in the order in which a model takes them.

    Raises:
        DataError: a feature is missing, or there is one that the model does not know.
    """
    from dataclasses import replace

    missing = [name for name in features if name not in series.features]
    other = [name for name in series.features if name not in features]
    if missing or other:
        raise DataError(
            f"{series.path}:1: expected the features {shortened(features)}; "
            + "; ".join(
                f"{what}: {shortened(names)}"
                for what, names in (("missing", missing), ("unknown", other))
                if names
            )
        )
    order = [series.features.index(name) for name in features]
    return replace(
        series,
        values=tuple(each[:, order] for each in series.values),
        features=tuple(features),
    )


def write_long_csv(path: str | Path, series: SeriesSet) -> None:
    """Write series as CSV in long form, such that `read_long_csv` returns the same.

    Columns: ``series_id``, ``time`` (0, 1, ...), the features and, if there are labels,
    ``label``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    labelled = ["label"] if series.labels is not None else []
    writer.writerow(["series_id", "time", *series.features, *labelled])
    for index, each in enumerate(series.values):
        end = [series.labels[index]] if series.labels is not None else []
        for step, row in enumerate(each.tolist()):
            writer.writerow([series.names[index], step, *map(repr, row), *end])
    write_text(Path(path), text.getvalue())
