"""Types of the values in an expression graph.

Sizes are names ("hidden", "input", "projection"), not numbers: a cell is traced once and
serves every size. A value has one row for each sequence of the batch; a ``Vector`` has
``size`` units a row. ``ONE`` is the size of a value with a single number a row, or of a
constant; it broadcasts against every other size.
"""

from __future__ import annotations

from dataclasses import dataclass

INPUT = "input"
HIDDEN = "hidden"
ONE = "one"


@dataclass(frozen=True)
class Vector:
    """A value with ``size`` units a row; ``boolean`` for the result of a comparison."""

    size: str
    boolean: bool = False

    def __str__(self) -> str:
        return f"bool[{self.size}]" if self.boolean else f"[{self.size}]"


@dataclass(frozen=True)
class Matrix:
    """A parameter that maps ``columns`` units to ``rows`` units.

    With ``blocks`` > 1 it is block-diagonal and stored as (rows, columns / blocks): a row
    holds the columns of its own block only.
    """

    rows: str
    columns: str
    blocks: int = 1

    def __str__(self) -> str:
        blocks = f" in {self.blocks} blocks" if self.blocks > 1 else ""
        return f"[{self.rows}, {self.columns}{blocks}]"


Type = Vector | Matrix
