"""What of a loop is shared out among threads: the rows of the batch, or the units of every row."""

from __future__ import annotations

from cellwright.engines.cpu import threads

SHARE_FROM, SHARE_EACH = 50_000, 8_000
"""Multiplications in a step from which the units of a small batch are shared out, and of each
thread then, at least. Where threads reach each other's memory fast, less than that pays too."""

CLOSE_FROM, CLOSE_TO = 12_000, 120_000
"""Multiplications in a step between which it follows from the machine, and from what else runs on
it, whether the units are better shared out."""

LARGE_WEIGHTS, MANY_ROWS = 300_000, 48
"""Weights that do not fit a processor's own cache are better shared out than read by every
thread, unless each thread has many rows to use them for."""

ALONE_BELOW, SHARE_ALONE_BELOW, CLOSE_ALONE_BELOW = 4_000_000, 1_500_000, 800_000
"""Multiplications in a whole run below which one thread does it: where rows would be shared out,
where units would, and where it is not known whether that is faster."""

POINTWISE_ALONE_BELOW = 16_384
"""Elements of a pass without products below which one thread does it."""

SUMS_ALONE_BELOW = 1 << 18
"""Numbers that sums over rows and steps read below which one thread does them."""


def way(work: int, steps: int, rows: int) -> tuple[int, int]:
    """What of a loop is shared out among how many threads: ``threads.ROWS`` or ``threads.SHARES``.

    Args:
        work: multiplications of a row in a step.
        steps, rows: extents of the loop.
    """
    team, in_step = threads.count(), rows * work
    if _by_rows(work, rows, team):
        return threads.ROWS, team if in_step * steps >= ALONE_BELOW else 1
    if in_step < SHARE_FROM or in_step * steps < SHARE_ALONE_BELOW:
        return threads.SHARES, 1
    return threads.SHARES, max(1, min(team, in_step // SHARE_EACH))


def other_way(work: int, steps: int, rows: int) -> tuple[int, int] | None:
    """Another way that may be faster than :func:`way`; None where there is hardly any."""
    team, in_step = threads.count(), rows * work
    close = CLOSE_FROM <= in_step < CLOSE_TO and in_step * steps >= CLOSE_ALONE_BELOW
    if team < 2 or not close or _by_rows(work, rows, team):
        return None
    if way(work, steps, rows)[1] > 1:
        return threads.SHARES, 1
    return threads.SHARES, max(2, min(team, in_step // SHARE_EACH))


def _by_rows(work: int, rows: int, team: int) -> bool:
    """Whether rows rather than units are shared out, if anything is."""
    return rows >= 2 * team and (rows >= MANY_ROWS * team or work < LARGE_WEIGHTS)
