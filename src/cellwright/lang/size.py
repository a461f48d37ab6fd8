"""Sizes that follow from use: unknown at first, joined where they have to agree."""

from __future__ import annotations

from cellwright.ir import HIDDEN, ONE


class Size:
    """A number of units that is not known yet; sizes that must agree are joined."""

    def __init__(self, name: str | None = None):
        self._name = name
        self._joined: Size | None = None

    def root(self) -> Size:
        """The size that stands for all that were joined with this one."""
        return self if self._joined is None else self._joined.root()

    def join(self, other: Size) -> bool:
        """Make both the same; False if they are known to differ."""
        mine, theirs = self.root(), other.root()
        if mine is theirs:
            return True
        if mine._name and theirs._name:
            return mine._name == theirs._name
        if mine._name:
            theirs._joined = mine
        else:
            mine._joined = theirs
        return True

    def resolve(self) -> str:
        """Its name; a size that nothing has fixed is ``hidden``."""
        return self.root()._name or HIDDEN

    @property
    def is_one(self) -> bool:
        """Whether it is a single number that broadcasts."""
        return self.root()._name == ONE

    def __str__(self) -> str:
        return self.root()._name or "not yet known"
