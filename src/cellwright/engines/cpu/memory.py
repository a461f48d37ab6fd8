"""Working memory that is used again from call to call."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from cellwright.engines.cpu.pages import whole_pages

KEEP_BELOW = 1 << 28
"""Bytes up to which a piece of working memory is kept for the next call."""


class Memory(threading.local):
    """Working memory of one thread, by name; what a call leaves in it has no meaning.

    Attributes:
        version: as long as this stays, so does what has been taken; but for what is large.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}
        self._large: dict[tuple[str, torch.dtype], Tensor] = {}
        self.version = 0

    def take(self, name: str, elements: int, dtype: torch.dtype) -> Tensor:
        """A flat tensor of at least that many elements, with anything in it.

        It stays until :meth:`release`, or for the next call where it is not too large for that.
        """
        key = name, dtype
        held = self._held.get(key)
        if self._large:
            held = self._large.get(key, held)
        if held is None or held.numel() < elements:
            held = whole_pages(max(elements, 1), dtype)
            large = held.numel() * held.element_size() > KEEP_BELOW
            self.version += key in self._held and not large
            (self._large if large else self._held)[key] = held
        return held

    @property
    def is_large(self) -> bool:
        """Whether some of it will not stay."""
        return bool(self._large)

    def release(self) -> None:
        """Give back what is too large to be kept; the end of every call."""
        if self._large:
            self._large.clear()


memory = Memory()
