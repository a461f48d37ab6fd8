"""Working memory that is used again from call to call."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from cellwright.engines.cpu.pages import whole_pages

KEEP_BELOW = 1 << 28
"""Bytes up to which a piece of working memory is kept for the next call."""


class Memory(threading.local):
    """Working memory of one thread, by name; what a call leaves in it has no meaning."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}
        self._large: dict[tuple[str, torch.dtype], Tensor] = {}

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
            (self._large if large else self._held)[key] = held
        return held

    def release(self) -> None:
        """Give back what is too large to be kept; the end of every call."""
        if self._large:
            self._large.clear()


memory = Memory()
