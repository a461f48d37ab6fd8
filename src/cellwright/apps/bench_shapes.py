"""Shapes to measure at: T,B,I,H as a user writes them, and two lists of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from cellwright.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """Steps, rows of the batch, units of the input, units of the state."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"{self.T},{self.B},{self.I},{self.H}"

    def as_dict(self) -> dict[str, int]:
        """For a JSON file."""
        return {"T": self.T, "B": self.B, "I": self.I, "H": self.H}

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape that ``text`` says.

        Raises:
            UsageError: it says none, or one that does not fit this machine's memory.

        Example:
            >>> Shape.parse("100,16,128,64").H
            64
        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(
                f"--shapes: expected quick, full or T,B,I,H, as 100,16,128,128, got {text!r}"
            )
        shape = cls(*map(int, parts))
        if min(shape.T, shape.B, shape.I, shape.H) < 1:
            raise UsageError(f"--shapes: T, B, I and H have to be at least 1, got {text!r}")
        shape.check_memory()
        return shape

    def check_memory(self) -> None:
        """Raise `UsageError` for a shape that this machine has no memory for."""
        if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # Per step and row: x, and about a dozen values and gradients a unit; two sides.
        needed = 8 * (self.T * self.B * (self.I + 12 * self.H) + 12 * self.H * (self.I + self.H))
        if needed > there:
            raise UsageError(
                f"--shapes: {self} needs about {needed / 2**30:,.0f} GiB, "
                f"this machine has {there / 2**30:,.0f}"
            )


QUICK = (Shape(100, 1, 64, 64), Shape(100, 16, 128, 128), Shape(100, 64, 256, 256))
FULL = (
    Shape(100, 1, 64, 64),
    Shape(100, 1, 256, 256),
    Shape(100, 16, 128, 128),
    Shape(100, 64, 128, 128),
    Shape(100, 64, 256, 256),
    Shape(35, 20, 650, 650),
    Shape(100, 32, 512, 512),
    Shape(784, 128, 1, 128),
    Shape(50, 128, 1024, 1024),
    Shape(1000, 1, 1024, 1024),
)


def parse_shapes(given: Iterable[str]) -> list[Shape]:
    """The shapes that ``--shapes`` says: each once, in the order of their first mention.

    Raises:
        UsageError: something else was given.

    Example:
        >>> [str(each) for each in parse_shapes(["quick", "10,1,8,8 100,1,64,64"])][-1]
        '10,1,8,8'
    """
    lists = {"quick": QUICK, "full": FULL}
    found: dict[Shape, None] = {}
    for text in given:
        parts = text.split()
        if not parts:
            raise UsageError("--shapes: expected quick, full or T,B,I,H, got nothing")
        for part in parts:
            found |= dict.fromkeys(lists[part] if part in lists else [Shape.parse(part)])
    return list(found)
