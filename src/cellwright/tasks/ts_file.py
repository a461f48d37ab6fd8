"""The ``.ts`` format of the UEA and UCR archives: a strict reader, and a writer.

A header of lines that begin with ``@``, then one line a series: its dimensions separated by
``:``, the values of a dimension by ``,``, and the label after the last ``:``::

    @problemName Steps
    @timeStamps false
    @univariate false
    @dimensions 2
    @equalLength false
    @classLabel true up down
    @data
    1.0,2.0,3.0:0.5,0.5,0.5:up
    3.0,1.0:0.5,0.25:down

Series may differ in length; the dimensions of one series may not. Time stamps and missing
values are not supported, and are errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.errors import DataError
from cellwright.tasks.text import read_text
from cellwright.train.files import write_text
from cellwright.train.series import SeriesSet, shortened

_KNOWN = (
    "problemname", "timestamps", "missing", "univariate", "dimension", "dimensions",
    "equallength", "serieslength", "classlabel", "targetlabel", "data",
)  # fmt: skip


@dataclass
class _Header:
    """What the lines before ``@data`` say; None where they do not."""

    dimensions: int | None = None
    steps: int | None = None
    equal_length: bool = False
    labelled: bool | None = None
    classes: tuple[str, ...] = ()


def read_ts(path: str | Path) -> SeriesSet:
    """Read a ``.ts`` or ``.ts.gz`` file.

    Returns:
        The series, (steps, dimensions) each; ``labels`` is None if the header says
        ``@classLabel false``.

    Raises:
        DataError: the file is missing, empty or malformed; the message names file and line.
    """
    path = Path(path)
    lines = read_text(path).rstrip().split("\n")
    header, first = _read_header(path, lines)
    values: list[np.ndarray] = []
    labels: list[str] = []
    numbers: list[int] = []
    for number, line in enumerate(lines[first:], start=first + 1):
        line = line.strip()
        if not line or line.startswith(("#", "%")):
            continue
        series, label = _read_series(f"{path}:{number}", line, header)
        values.append(series)
        labels.append(label)
        numbers.append(number)
    if not values:
        raise DataError(f"{path}:{len(lines)}: no series comes after @data")
    return SeriesSet(
        values=tuple(values),
        features=tuple(f"dimension {i + 1}" for i in range(values[0].shape[1])),
        names=tuple(str(i + 1) for i in range(len(values))),
        labels=tuple(labels) if header.labelled else None,
        classes=header.classes,
        path=str(path),
        lines=tuple(numbers),
    )


def _read_header(path: Path, lines: list[str]) -> tuple[_Header, int]:
    """The header, and how many lines it takes up to and with ``@data``."""
    header = _Header()
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line or line.startswith(("#", "%")):
            continue
        where = f"{path}:{number}"
        if not line.startswith("@"):
            raise DataError(
                f"{where}: expected a header line (it begins with @) or @data before the first "
                f"series; got {_clip(line)}"
            )
        key, *rest = line[1:].split() or [""]
        key = key.lower()
        if key == "data":
            if header.labelled is None:
                raise DataError(
                    f"{where}: the header has no @classLabel line; expected "
                    "'@classLabel true LABEL...' or '@classLabel false'"
                )
            return header, number
        _read_header_line(where, key, rest, header)
    raise DataError(f"{path}:{len(lines)}: the file ends without an @data line")


def _read_header_line(where: str, key: str, rest: list[str], header: _Header) -> None:
    if key not in _KNOWN:
        raise DataError(f"{where}: unknown header line @{key}; known are @{', @'.join(_KNOWN)}")
    if key == "timestamps" and _flag(where, key, rest):
        raise DataError(f"{where}: time stamps are not supported; expected '@timeStamps false'")
    elif key == "missing" and _flag(where, key, rest):
        raise DataError(f"{where}: missing values are not supported; expected '@missing false'")
    elif key == "targetlabel" and _flag(where, key, rest):
        raise DataError(f"{where}: a regression target was found; expected '@classLabel true ...'")
    elif key == "univariate" and _flag(where, key, rest):
        if header.dimensions not in (None, 1):
            raise DataError(f"{where}: @univariate true, but {header.dimensions} dimensions")
        header.dimensions = 1
    elif key in ("dimension", "dimensions"):
        count = _count(where, key, rest)
        if header.dimensions not in (None, count):
            raise DataError(
                f"{where}: @{key} {count}, but an earlier line says {header.dimensions}"
            )
        header.dimensions = count
    elif key == "equallength":
        header.equal_length = _flag(where, key, rest)
    elif key == "serieslength":
        header.steps = _count(where, key, rest)
    elif key == "classlabel":
        header.labelled = _flag(where, key, rest)
        header.classes = tuple(rest[1:])
        if header.labelled and not header.classes:
            raise DataError(f"{where}: @classLabel true names no labels")
        if not header.labelled and header.classes:
            raise DataError(f"{where}: @classLabel false, but labels follow")
        if len(set(header.classes)) < len(header.classes):
            raise DataError(f"{where}: @classLabel names a label twice")


def _read_series(where: str, line: str, header: _Header) -> tuple[np.ndarray, str]:
    fields = line.split(":")
    extra = int(bool(header.labelled))
    if header.dimensions is None:
        header.dimensions = max(1, len(fields) - extra)
    wanted = header.dimensions + extra
    if len(fields) != wanted:
        hint = "; is the line cut short?" if len(fields) < wanted else ""
        raise DataError(
            f"{where}: expected {header.dimensions} dimensions{' and a label' * extra}, "
            f"{wanted} fields with ':' between, got {len(fields)}{hint}"
        )
    label = fields.pop().strip() if header.labelled else ""
    if header.labelled and label not in header.classes:
        raise DataError(
            f"{where}: label {_clip(label)} is not in @classLabel; "
            f"expected one of {shortened(header.classes)}"
        )
    columns = [_read_values(where, index, field) for index, field in enumerate(fields, start=1)]
    for index, column in enumerate(columns, start=1):
        if len(column) != len(columns[0]):
            raise DataError(
                f"{where}: dimension {index} has {len(column)} values, dimension 1 has "
                f"{len(columns[0])}; the dimensions of one series must have the same length"
            )
    steps = len(columns[0])
    if header.steps is not None and header.equal_length and steps != header.steps:
        raise DataError(f"{where}: {steps} steps, but the header says @seriesLength {header.steps}")
    if header.equal_length and header.steps is None:
        header.steps = steps
    return np.array(columns, dtype=np.float64).T.copy(), label


def _read_values(where: str, dimension: int, field: str) -> list[float]:
    if not field.strip():
        raise DataError(f"{where}: dimension {dimension} has no values")
    values = []
    for position, text in enumerate(field.split(","), start=1):
        place = f"{where}: dimension {dimension}, value {position}"
        try:
            value = float(text)
        except ValueError:
            if text.strip() in ("?", ""):
                raise DataError(
                    f"{place} is missing; missing values are not supported: fill them in first"
                ) from None
            raise DataError(f"{place}: expected a number, got {_clip(text.strip())}") from None
        if not math.isfinite(value):
            raise DataError(f"{place}: expected a finite number, got {text.strip()}")
        values.append(value)
    return values


def _flag(where: str, key: str, rest: list[str]) -> bool:
    said = rest[0].lower() if rest else "nothing"
    if said not in ("true", "false"):
        raise DataError(f"{where}: expected '@{key} true' or '@{key} false', got {said}")
    return said == "true"


def _count(where: str, key: str, rest: list[str]) -> int:
    said = rest[0] if rest else "nothing"
    if len(rest) != 1 or not said.isascii() or not said.isdigit() or int(said) < 1:
        raise DataError(f"{where}: expected '@{key}' with a whole number above 0, got {said}")
    return int(said)


def _clip(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def write_ts(path: str | Path, series: SeriesSet, name: str = "Series") -> None:
    """Write series as a ``.ts`` file, such that `read_ts` returns the same values and labels.

    Raises:
        DataError: a label has characters that the format keeps for itself.
    """
    for label in series.classes:
        if not label or ":" in label or any(map(str.isspace, label)):
            raise DataError(f"label {label!r} cannot be written in the .ts format")
    labelled = series.labels is not None
    classes = f"true {' '.join(series.classes)}" if labelled else "false"
    equal = len(set(series.lengths)) == 1
    rows = [
        f"@problemName {'_'.join(name.split())}",
        "@timeStamps false",
        "@missing false",
        f"@univariate {str(series.num_features == 1).lower()}",
        f"@dimensions {series.num_features}",
        f"@equalLength {str(equal).lower()}",
        *([f"@seriesLength {series.lengths[0]}"] if equal else []),
        f"@classLabel {classes}",
        "@data",
    ]
    for index, each in enumerate(series.values):
        fields = [",".join(map(repr, column)) for column in each.T.tolist()]
        rows.append(":".join([*fields, *([series.labels[index]] if series.labels else [])]))
    write_text(Path(path), "\n".join(rows) + "\n")
