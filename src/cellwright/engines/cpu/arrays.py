"""Where values lie in memory while a plan runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from cellwright.ir import Node


class Index(Enum):
    """How an array's position follows the time loop."""

    NONE = "none"  # the same rows at every step
    TIME = "time"  # rows of step t
    BEFORE = "before"  # a state before the step: its array one step earlier, or the initial state
    EVEN = "even"  # two buffers that are exchanged at every step: the one to read
    ODD = "odd"  # the one to write
    OWN = "own"  # the same rows at every step, and every share of the units has its own


class Kind(Enum):
    """What the elements are."""

    ROWS = "rows"  # one number for each row and unit
    ROW = "row"  # one number for each row
    UNITS = "units"  # one number for each unit: a vector parameter
    UNIT = "unit"  # a single number


@dataclass(frozen=True)
class Array:
    """Element (t, row, unit) lies at ``slot`` + t x B x stride + row x stride + offset + unit.

    Attributes:
        slot: name of the argument that holds the address.
        kind: which of row and unit count.
        index: how t counts.
        stride: elements from one row to the next.
        offset: of the first unit.
        boolean: elements are bytes.
        initial: for ``BEFORE``, the slot of the state before the first step.
    """

    slot: str
    kind: Kind
    index: Index = Index.NONE
    stride: int = 1
    offset: int = 0
    boolean: bool = False
    initial: str = ""

    def moved(self, units: int) -> Array:
        """The same array, that many units further on."""
        return replace(self, offset=self.offset + units)


Sources = dict[Node, Array]
Stores = dict[Node, list[Array]]
