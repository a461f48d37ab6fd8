"""Whether weights are still what they were when they were made ready.

torch counts its changes of a tensor; what is written through ``weight.data`` or NumPy it does not
see. To read all weights at every step would cost as much as the step. So some words of every
tensor are looked at, which lie evenly over it: enough to notice an update, a copy, a filled gate.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

WORDS = 64
"""Elements of a tensor that are looked at: all of a small one, about so many of a large one."""


class Watch:
    """Remembers some elements of tensors.

    Args:
        tensors: contiguous, of float32 or float64 numbers.

    Attributes:
        place: address of what compiled code compares, see :mod:`.starting`.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        numbers: list[int] = []
        self._held: list[Tensor] = []
        for each in tensors:
            flat = each.detach().view(-1)
            step = max(1, flat.numel() // WORDS)
            if each.dim() > 1 and step % each.shape[-1] == 0:
                step += 1  # or only one column would be seen
            chosen = torch.arange(0, flat.numel(), step)
            halves = flat.view(torch.int32).view(-1, each.itemsize // 4)[chosen]
            for half, words in enumerate(halves.T.contiguous()):
                place = each.data_ptr() + 4 * half
                numbers += [place, words.data_ptr(), words.numel(), step * each.itemsize]
                self._held += [each, words]
        self._table = (ctypes.c_int64 * (1 + len(numbers)))(len(numbers) // 4, *numbers)
        self.place = ctypes.addressof(self._table)
