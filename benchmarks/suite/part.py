"""What a part of the benchmark leaves: Markdown lines, data, and bars that are met or missed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cellwright.apps.bench_measure import Timing
from cellwright.apps.bench_shapes import FULL, Shape


@dataclass(frozen=True)
class Settings:
    """What all parts are told.

    Attributes:
        threads: of both sides.
        seconds: how long the rounds of one comparison take.
        shapes: to measure layers at.
        small: replace every size by a tiny one: a check of the script, not of the speed.
    """

    threads: int
    seconds: float
    shapes: Sequence[Shape]
    small: bool = False

    def pick(self, usual: Any, tiny: Any) -> Any:
        """``usual``, or ``tiny`` where only the script is checked."""
        return tiny if self.small else usual

    @property
    def complete(self) -> bool:
        """Whether the bars can be judged: no shape is left out, and none is a tiny one."""
        return not self.small and set(self.shapes) >= set(FULL)


@dataclass(frozen=True)
class Bar:
    """A figure that is to be reached; ``met`` is None where it was not measured."""

    text: str
    found: str
    met: bool | None

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"bar": self.text, "found": self.found, "met": self.met}


@dataclass
class Part:
    """One part, printed as it grows; ``busy`` if the machine was not quiet meanwhile."""

    name: str
    busy: bool = False
    lines: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str = "") -> None:
        """A line of Markdown."""
        print(text, flush=True)
        self.lines.append(text)

    def table(self, *columns: str) -> None:
        """The head of a table; what begins with a number follows it in `row`."""
        self.say()
        self.say(f"| {' | '.join(columns)} |")
        self.say(f"|---{'|---:' * (len(columns) - 1)}|")

    def row(self, *cells: object) -> None:
        """A row of the table."""
        self.say(f"| {' | '.join(map(str, cells))} |")

    def bar(self, text: str, found: str, met: bool | None) -> None:
        """Note a bar and what was found."""
        self.bars.append(Bar(text, found, met))


def milliseconds(timing: Timing) -> str:
    """A median with half the distance of its quartiles."""
    return in_unit(timing, 1e3)


def microseconds(timing: Timing) -> str:
    """A median with half the distance of its quartiles."""
    return in_unit(timing, 1e6)


def in_unit(timing: Timing, unit: float) -> str:
    value = unit * timing.median
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{shown} ±{(timing.high - timing.low) / 2 / timing.median:.0%}"


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))
