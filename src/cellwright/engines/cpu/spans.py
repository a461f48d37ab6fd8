"""Which steps of a sequence are computed together.

A pass goes through a sequence span by span. What is not kept for the whole sequence (products with
x on the forward way, gradients of such products on the way back, values that are computed again)
then needs memory for one span only, and is still near the processor when it is read.
"""

from __future__ import annotations

from typing import NamedTuple

ROOM = 1 << 22
"""Bytes of working memory that a span may take."""

WHOLE = 11 << 20
"""Bytes up to which a sequence is a single span: parts of it would not stay any nearer."""

LEAST_ROWS = 512
"""Rows (steps x sequences) of a span, however much memory they take: fewer would have to read and
write the gradients of the matrices too often."""


class Span(NamedTuple):
    """Steps ``first`` to ``stop`` in the order of the loop, which may be from the last one."""

    first: int
    stop: int


def spans(steps: int, rows: int, row_bytes: int, unit: int = 1) -> list[Span]:
    """Spans of about the same length for a whole sequence.

    Args:
        steps, rows: of the sequence, and of the batch.
        row_bytes: working memory of one sequence's step.
        unit: of steps that have to stay together.
    """
    if unit == 1 and (steps * rows <= LEAST_ROWS or steps * rows * row_bytes <= WHOLE):
        return [Span(0, steps)]
    wanted = max(LEAST_ROWS, ROOM // row_bytes) // max(rows, 1) if row_bytes else steps
    units = -(-steps // unit)
    parts = -(-units // max(1, wanted // unit))
    size = -(-units // parts) * unit
    return [Span(first, min(first + size, steps)) for first in range(0, steps, size)]
