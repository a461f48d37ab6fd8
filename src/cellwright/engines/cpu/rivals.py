"""Two ways to the same bits: the one that takes less time now, the other tried now and then.

Which is faster can depend on what no shape tells: how soon threads see what others have written,
and what else runs on the machine.
"""

from __future__ import annotations

import math

TRIALS, AGAIN = 8, 32
"""Times in which the ways take turns at first, and between the later trials of the slower one."""


class Rivals:
    """Which of two ways to take. Nothing here waits: threads may disturb each other's times."""

    def __init__(self) -> None:
        self._times = [math.inf, math.inf]
        self._turn = 0

    def choose(self) -> int:
        """The number of the way to take."""
        turn, times = self._turn, self._times
        self._turn = turn + 1
        faster = 0 if times[0] <= times[1] else 1
        if turn < TRIALS:
            return turn & 1
        return faster if turn % AGAIN else 1 - faster

    def note(self, way: int, time: float) -> None:
        """Learn how long that way took."""
        before = self._times[way]
        if self._turn <= TRIALS:
            self._times[way] = min(time, before)
        else:
            # Other programs may hold one up for long.
            self._times[way] = before + (min(time, 2 * before) - before) / 4
