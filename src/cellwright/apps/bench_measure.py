"""Times of several things that take turns, and what the machine did meanwhile."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

TURN = 0.002
"""Seconds that a turn lasts at least: a side that is faster is called several times."""

FEWEST, MOST = 5, 201
"""Rounds."""

Side = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median, low, high: over the rounds; ``low`` and ``high`` are the quartiles.
        rounds: how many turns there were.
        calls: calls in a turn, whose mean is the turn's time.
    """

    median: float
    low: float
    high: float
    rounds: int
    calls: int

    @classmethod
    def of(cls, turns: list[float], calls: int) -> Timing:
        """The timing of turns with that many calls each."""
        each = [turn / calls for turn in turns]
        low, median, high = statistics.quantiles(each, n=4, method="inclusive")
        return cls(median, low, high, len(each), calls)

    def as_dict(self) -> dict[str, float | int]:
        """For a JSON file: milliseconds."""
        return {
            "median_ms": 1e3 * self.median,
            "low_ms": 1e3 * self.low,
            "high_ms": 1e3 * self.high,
            "rounds": self.rounds,
            "calls_a_round": self.calls,
        }


def interleave(
    sides: Mapping[str, Side], seconds: float = 1.0, *, settle: bool = False
) -> dict[str, Timing]:
    """Time all sides in turns: a, b, a, b, ...

    Args:
        sides: name -> what is called.
        seconds: how long all rounds together should take; there are at least ``FEWEST``.
        settle: call a side once, unmeasured, before each turn. For sides with threads of their
            own: those of the side before go on spinning for a while.

    Each side is called a few times before the first round, which compiles what it needs.
    """
    calls, spent = {}, 0.0
    for name, side in sides.items():
        calls[name], turn = _fill_a_turn(side)
        spent += turn
    turns: dict[str, list[float]] = {name: [] for name in sides}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would fall into the turn of one side or the other
    try:
        for _ in range(min(max(round(seconds / spent), FEWEST), MOST)):
            for name, side in sides.items():
                turns[name].append(_turn(side, calls[name], settle))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(turns[name], calls[name]) for name in sides}


def _fill_a_turn(side: Side) -> tuple[int, float]:
    """How many calls fill a turn, and the seconds that such a turn took."""
    side()
    calls = 1
    while (spent := _turn(side, calls, False)) < TURN:
        calls = max(calls + 1, min(10 * calls, int(1.2 * calls * TURN / spent)))
    return calls, spent


def _turn(side: Side, calls: int, settle: bool) -> float:
    if settle:
        side()
    begun = perf_counter()
    for _ in range(calls):
        side()
    return perf_counter() - begun


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Mean number of programs that wanted a processor in the last minute; None if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


class Others:
    """How much of the processors other programs took since this was made."""

    def __init__(self) -> None:
        self._begun, self._before = perf_counter(), self._used()

    def share(self) -> float | None:
        """From 0 to 1; None where the system does not tell."""
        now, seconds = self._used(), perf_counter() - self._begun
        if now is None or self._before is None or seconds < 0.2:
            return None
        taken = (now - self._before) / (seconds * (os.cpu_count() or 1))
        return min(max(taken, 0.0), 1.0)

    @staticmethod
    def _used() -> float | None:
        """Processor seconds of everything but this process and its children, on Linux."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            user, nice, system, _, _, irq, softirq, steal = map(int, fields)
        except (OSError, ValueError):
            return None
        own = os.times()
        mine = own.user + own.system + own.children_user + own.children_system
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - mine


BUSY = 0.05
"""Processors per thread in other programs' hands from which times are not to be trusted."""


def warning(threads: int, load: float | None, others: float | None) -> str | None:
    """What to say where the machine was busy with something else; None where it was not.

    Args:
        threads: that were measured with.
        load: the load average before.
        others: share of the processors that other programs took during the measurements.
    """
    if others is not None:
        every = os.cpu_count() or 1
        if others * every <= every - threads + BUSY * threads:
            return None
        return (
            f"other programs took {others:.0%} of the processors meanwhile: "
            f"measure again on a quiet machine"
        )
    if load is not None and load + threads > processors() + 0.5:
        return f"the load average was {load:.1f} before: measure again on a quiet machine"
    return None
