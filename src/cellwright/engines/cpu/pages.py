"""Large arrays on large pages, where the system gives them to those who ask.

Memory that is new to a process comes page by page, each on its first touch. For the arrays of a
long sequence that costs as much as a good part of the computing; in pages of 2 MiB, little.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

LARGE_PAGE = 1 << 21
FROM = 2 * LARGE_PAGE
"""Bytes from which an array asks for large pages."""

_MADV_HUGEPAGE = 14


@lru_cache(maxsize=1)
def _advise() -> Callable[[int, int, int], int] | None:
    """The system's ``madvise``, where there are large pages to ask for."""
    if not sys.platform.startswith("linux"):
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    made: Callable[[int, int, int], int] = found
    return made


def empty(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor with anything in it."""
    made = torch.empty(shape, dtype=dtype)
    if made.nbytes >= FROM:
        _ask(made)
    return made


def whole_pages(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor that begins on a large page and is as long as it takes to fill pages.

    For what is read again at every step: on small pages, which lie anywhere, its parts may drive
    each other out of the processor's cache.
    """
    pages = -(-elements * dtype.itemsize // LARGE_PAGE)
    made = torch.empty((pages + 1) * LARGE_PAGE // dtype.itemsize, dtype=dtype)
    _ask(made)
    skipped = -made.data_ptr() % LARGE_PAGE // dtype.itemsize
    return made[skipped : skipped + pages * LARGE_PAGE // dtype.itemsize]


def _ask(made: torch.Tensor) -> None:
    """Ask for large pages: where the system refuses, the array stands on small ones."""
    advise = _advise()
    if advise is not None:
        first = -(-made.data_ptr() // LARGE_PAGE) * LARGE_PAGE
        end = (made.data_ptr() + made.nbytes) // LARGE_PAGE * LARGE_PAGE
        advise(first, end - first, _MADV_HUGEPAGE)


def _plain_empty(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype)


# What compiled programs of torch allocate with: the same, with less of Python around it.
quick_empty: Callable[..., torch.Tensor] = getattr(
    getattr(getattr(torch._C, "_dynamo", None), "guards", None), "_empty_strided_cpu", _plain_empty
)
"""``quick_empty(shape, strides, dtype)``: a tensor with anything in it."""
