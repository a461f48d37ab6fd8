"""Memory for what a forward pass keeps: lent, and lent again when nobody holds it any more.

The next training step keeps arrays of the same sizes. Given back to the system in between, they
would come back page by page, each cleared on its first touch, which for a cell with many saved
values takes longer than its products.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, from_numpy

from cellwright.engines.cpu.pages import empty

FROM = 1 << 16
"""Bytes from which an array is lent: smaller ones the process keeps by itself."""

IDLE = 1 << 29
"""Bytes that wait to be lent again, at most."""

SPARE = 4
"""What is lent again may be longer than asked for, by one part in so many."""

_deterministic: Any = torch.utils.deterministic

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.bool: np.bool_}

APART = 320
"""Bytes between arrays of one piece of memory, at least, and what their places are a multiple of.

Arrays at the same place of a page drive each other out of the processor's caches.
"""

Bytes = Any  # a flat array of numpy's uint8


class _Block(NamedTuple):
    """Memory that several arrays share: the last of them to go takes it back."""

    whole: Bytes
    others: list[None]


class Lender:
    """Lends arrays; one comes back when the last tensor that shares its memory is gone.

    Nothing here waits: who finds another thread at work does without. So arrays may come back at
    any time (inside a garbage collection too), and a forked process may go on.
    """

    def __init__(self) -> None:
        self._lent: dict[int, tuple[object, _Block]] = {}
        self._returned: deque[Bytes] = deque()
        self._idle: list[Bytes] = []  # the last one came back last
        self._waiting = 0  # bytes of them
        self._busy = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with anything in it."""
        size = math.prod(shape) * dtype.itemsize
        if size < FROM:
            return empty(shape, dtype)
        return self._part(_Block(self._piece(size), []), 0, size, shape, dtype)

    def take_together(self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Tensor]:
        """Such tensors of these shapes and dtypes, in one piece of memory that comes back whole."""
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
        lent = [each >= FROM for each in sizes]
        begins = [0, *accumulate(-(-n // APART) * APART + APART if own else 0
                                 for n, own in zip(sizes, lent, strict=True))]  # fmt: skip
        if not begins[-1]:
            return [empty(shape, dtype) for shape, dtype in kinds]
        size = begins[-1] - APART if len(kinds) > 1 else sizes[0]
        block = _Block(self._piece(size), [None] * (sum(lent) - 1))
        return [
            self._part(block, begin, n, shape, dtype) if own else empty(shape, dtype)
            for begin, n, own, (shape, dtype) in zip(begins, sizes, lent, kinds, strict=False)
        ]

    def _piece(self, size: int) -> Bytes:
        """A piece of memory that waits, or a new one."""
        found = self._find(size)
        return empty((size,), torch.uint8).numpy() if found is None else found

    def _part(
        self, block: _Block, begin: int, size: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        array: Any = block.whole[begin : begin + size].view(_NUMPY[dtype]).reshape(shape)
        loan = weakref.ref(array, self._come_back)
        self._lent[id(loan)] = loan, block
        lent = from_numpy(array)
        if (
            _deterministic.fill_uninitialized_memory
            and torch.are_deterministic_algorithms_enabled()
        ):
            # As torch does with memory of its own.
            lent.fill_(math.nan if dtype.is_floating_point else True)
        return lent

    def clear(self) -> None:
        """Forget what waits to be lent again."""
        with self._busy:
            self._idle.clear()
            self._returned.clear()
            self._waiting = 0

    def _come_back(self, loan: object) -> None:
        block = self._lent.pop(id(loan))[1]
        if block.others:
            block.others.pop()
            return
        self._returned.append(block.whole)
        if self._busy.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._busy.release()

    def _collect(self) -> None:
        """Put what has come back to what waits; too much of it goes, the oldest first."""
        while self._returned:
            self._idle.append(self._returned.popleft())
            self._waiting += self._idle[-1].nbytes
        while self._waiting > IDLE:
            self._waiting -= self._idle.pop(0).nbytes

    def _find(self, size: int) -> Bytes | None:
        """The shortest array that waits and is long enough, but not much too long."""
        if not self._busy.acquire(blocking=False):
            return None
        try:
            self._collect()
            best, least = -1, size + size // SPARE + 1
            for place, each in enumerate(self._idle):
                if size <= each.nbytes < least:
                    best, least = place, each.nbytes
            if best < 0:
                return None
            self._waiting -= self._idle[best].nbytes
            return self._idle.pop(best)
        finally:
            self._busy.release()


lender = Lender()
