"""Memory for what a forward pass leaves to its backward pass, used again from call to call.

The system hands out new memory page by page and clears every page, which for the values that a
training step keeps costs as much as a good part of the computing.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from cellwright.engines.cpu.pages import whole_pages

MOST = 1 << 28
"""Bytes of memory that are kept for later calls, at most."""


class Pool:
    """Pieces of memory, each in use as long as any tensor points into it.

    Autograd decides how long that is: until the backward pass, or longer where somebody keeps the
    graph. Whether it is over is read from the piece's own count of owners.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._pieces: list[_Piece] = []
        self._lock = threading.Lock()

    def take(self, elements: int, dtype: torch.dtype) -> Tensor:
        """A flat tensor of that many elements with anything in it.

        Its memory is the caller's until no tensor points into it any more.
        """
        size = elements * dtype.itemsize
        with self._lock:
            free = [each for each in self._pieces if each.is_free()]
            fitting = [each for each in free if size <= each.size]
            if fitting:
                piece = min(fitting, key=lambda each: each.size)
            else:
                # In place of what is too small: there are as many as are in use at once.
                self._pieces = [each for each in self._pieces if each not in free]
                piece = _Piece(size)
                if sum(each.size for each in self._pieces) + piece.size <= self._most:
                    self._pieces.append(piece)
            return piece.memory[:size].view(dtype)


class _Piece:
    def __init__(self, size: int):
        self.memory = whole_pages(size, torch.uint8)
        self.size = self.memory.nbytes
        self._owners = self._count()

    def is_free(self) -> bool:
        """Whether nothing points into it."""
        return self._count() == self._owners

    def _count(self) -> int:
        return int(torch._C._storage_Use_Count(self.memory.untyped_storage()._cdata))


pool = Pool()
