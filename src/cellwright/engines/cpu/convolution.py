"""Torch's convolutions over values whose channels lie last.

With the channels last torch's libraries need not reorder an image, and a position's channels
are a row of the compiled programs. A product with the transpose is a convolution as well, with
the kernel turned round, which is no slower than torch's own transposed one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _images(v: Tensor) -> Tensor:
    """(N, *space, channels) as torch's images; a line is an image one high."""
    return (v.unsqueeze(1) if v.dim() == 3 else v).movedim(-1, 1)


def _kernel(weight: Tensor) -> Tensor:
    return weight.unsqueeze(2) if weight.dim() == 3 else weight


def turned(weight: Tensor, blocks: int) -> Tensor:
    """The kernel whose convolution is the product with the transpose."""
    space = tuple(range(3, weight.dim() + 1))
    parts = weight.unflatten(0, (blocks, -1)).transpose(1, 2)
    return parts.flip(space).flatten(0, 1).contiguous()


def _geometry(kernel: Tensor) -> tuple[list[int], list[int], list[int], bool, list[int]]:
    """Strides, padding, dilation, whether transposed, padding of the output: sizes stay."""
    extents = kernel.shape[2:]
    ones, zeros = [1] * len(extents), [0] * len(extents)
    return ones, [extent // 2 for extent in extents], ones, False, zeros


def convolve(weight: Tensor, v: Tensor, blocks: int) -> Tensor:
    """The convolution that keeps the size: (N, *space, channels) to (N, *space, results)."""
    kernel = _kernel(weight)
    found = torch.convolution(_images(v), kernel, None, *_geometry(kernel), blocks)
    return found.movedim(1, -1).reshape(*v.shape[:-1], weight.shape[0]).contiguous()


def gradient(weight: Tensor, delta: Tensor, v: Tensor) -> Tensor:
    """The gradient of a weight from (N, *space, results) and (N, *space, channels)."""
    kernel = _kernel(weight)
    _, found, _ = torch.ops.aten.convolution_backward(
        _images(delta), _images(v), kernel, None, *_geometry(kernel), 1, [False, True, False]
    )
    return found.reshape(weight.shape)
