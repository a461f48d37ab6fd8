"""Which thread runs which piece of a stack of layers, and what each piece waits for.

The pieces of a layer run one after the other, and each waits for the same piece of the layer that
hands it its input. With two layers (0, 1) of four pieces on two threads:

    first thread    0a  0b  0c  0d
    second thread       1a  1b  1c  1d

The order follows from estimates of the work; what is right does not, for a piece waits until all
that it reads has been written (``fronts.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.int64]


class Work(NamedTuple):
    """What there is to do for a layer: a job before all pieces, every piece, a job behind them.

    Attributes:
        before, after: programs before the first piece and behind the last; perhaps none.
        pieces: how many there are.
        programs: of every piece.
        costs: of the job before, of a piece, of the job after, in any unit.
    """

    before: int
    pieces: int
    programs: int
    after: int
    costs: tuple[int, int, int]

    @property
    def jobs(self) -> list[int]:
        """Programs of each job."""
        return [self.before, *[self.programs] * self.pieces, self.after]

    def cost(self, job: int) -> int:
        """Of one job."""
        return self.costs[0 if job == 0 else 2 if job > self.pieces else 1]


WAITS = ("below", "needs_below", "own", "needs_own", "done")
"""What an entry waits for: so many jobs of the layer ``below``, and so many of its ``own``. How
many of its own are ``done`` behind it."""


class Schedule(NamedTuple):
    """Programs in the order in which every thread runs them.

    Attributes:
        tasks: which programs they are, counted layer by layer.
        waits: ``WAITS`` of each.
        begins: where those of each thread begin, then those of all of them in one row, for a
            thread alone, and the end.
    """

    tasks: Table
    waits: Table
    begins: Sequence[int]


@lru_cache(maxsize=1024)
def schedule(layers: tuple[Work, ...], team: int) -> Schedule:
    """The order for so many threads.

    Args:
        layers: in the order in which one waits for the other.
        team: how many threads.
    """
    firsts = [0, *accumulate(sum(work.jobs) for work in layers)]
    shares: list[list[int]] = [[] for _ in range(team + 1)]  # places in what follows
    tasks: list[int] = []
    waits: list[tuple[int, ...]] = []
    for share, layer, job in _assigned(layers, team):
        work = layers[layer]
        counts = work.jobs
        inside = layer > 0 and 1 <= job <= work.pieces
        needs = max(layer - 1, 0), job + 1 if inside else 0, layer, _reached(counts, job)
        for number in range(counts[job]):
            shares[share].append(len(tasks))
            shares[team].append(len(tasks))
            tasks.append(firsts[layer] + sum(counts[:job]) + number)
            waits.append((*needs, job + (number + 1 == counts[job])))
    order = [place for share in shares for place in share]
    begins = [*accumulate((len(share) for share in shares), initial=0)]
    return Schedule(np.array(tasks)[order], np.array(waits)[order], begins)


def _reached(counts: Sequence[int], job: int) -> int:
    """The number that a layer has reached when the job before this one is done."""
    return next((each + 1 for each in range(job - 1, -1, -1) if counts[each]), 0)


def _assigned(layers: Sequence[Work], team: int) -> Iterator[tuple[int, int, int]]:
    """Share, layer and job, each in the order in which they begin.

    Whoever is free takes the job behind which most work waits; of equals that of the layer which
    has come least far, and if possible of the layer whose weights it has just read.
    """
    ends = [[0] * (work.pieces + 2) for work in layers]  # of jobs that are done
    following = [0] * len(layers)
    waiting = _behind(layers)
    free, last = [0] * team, [-1] * team
    while any(next_ < work.pieces + 2 for next_, work in zip(following, layers, strict=True)):
        ready = {}
        for layer, (job, work) in enumerate(zip(following, layers, strict=True)):
            if job >= work.pieces + 2:
                continue
            start = ends[layer][job - 1] if job else 0
            if layer and 1 <= job <= work.pieces:
                if following[layer - 1] <= job:
                    continue
                start = max(start, ends[layer - 1][job])
            ready[layer] = start
        now = max(min(free), min(ready.values()))
        able = [layer for layer, start in ready.items() if start <= now]
        layer = max(able, key=lambda each: (waiting[each][following[each]], -following[each]))
        idle = [share for share in range(team) if free[share] <= now]
        share = next((each for each in idle if last[each] == layer), idle[0])
        job = following[layer]
        free[share] = ends[layer][job] = now + layers[layer].cost(job)
        last[share], following[layer] = layer, job + 1
        yield share, layer, job


def _behind(layers: Sequence[Work]) -> list[list[int]]:
    """The longest way from the beginning of each job to the end of everything."""
    found: list[list[int]] = [[0] * (work.pieces + 3) for work in layers]
    for layer in range(len(layers) - 1, -1, -1):
        work = layers[layer]
        for job in range(work.pieces + 1, -1, -1):
            longest = found[layer][job + 1]
            if layer + 1 < len(layers) and 1 <= job <= work.pieces:
                longest = max(longest, found[layer + 1][job])
            found[layer][job] = longest + work.cost(job)
    return found
