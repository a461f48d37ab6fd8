"""The meaning of ``@`` and of "over units": matrix products, or convolutions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional, grad

from cellwright.ir import Matrix


class Algebra(Protocol):
    """How products and reductions act on tensors whose first axis is the row."""

    def product(self, weight: Tensor, v: Tensor, kind: Matrix) -> Tensor:
        """``weight @ v`` for each row of the batch."""

    def transposed(self, weight: Tensor, v: Tensor, kind: Matrix) -> Tensor:
        """``weight.T @ v`` for each row of the batch."""

    def outer(self, delta: Tensor, v: Tensor, weight: Tensor, kind: Matrix) -> Tensor:
        """The gradient of ``weight``: delta x v, summed over rows."""

    def total(self, v: Tensor) -> Tensor:
        """Sum over the units of a row, kept as an axis of length 1."""

    def vector(self, parameter: Tensor) -> Tensor:
        """A vector parameter as a value of one row."""


class Dense:
    """``@`` is a matrix product; values are (rows, units)."""

    def product(self, weight: Tensor, v: Tensor, kind: Matrix) -> Tensor:
        if kind.blocks == 1:
            return v @ weight.T
        blocks = weight.unflatten(0, (kind.blocks, -1))
        parts = v.unflatten(-1, (kind.blocks, -1))
        return torch.einsum("...bc,brc->...br", parts, blocks).flatten(-2)

    def transposed(self, weight: Tensor, v: Tensor, kind: Matrix) -> Tensor:
        if kind.blocks == 1:
            return v @ weight
        blocks = weight.unflatten(0, (kind.blocks, -1))
        parts = v.unflatten(-1, (kind.blocks, -1))
        return torch.einsum("...br,brc->...bc", parts, blocks).flatten(-2)

    def outer(self, delta: Tensor, v: Tensor, weight: Tensor, kind: Matrix) -> Tensor:
        if kind.blocks == 1:
            return delta.T @ v
        delta = delta.unflatten(-1, (kind.blocks, -1))
        v = v.unflatten(-1, (kind.blocks, -1))
        return torch.einsum("nbr,nbc->brc", delta, v).flatten(0, 1)

    def total(self, v: Tensor) -> Tensor:
        return v.sum(-1, keepdim=True)

    def vector(self, parameter: Tensor) -> Tensor:
        return parameter.unsqueeze(0)


class Convolution:
    """``@`` is a convolution that keeps the size; values are (rows, channels, *space).

    A vector parameter has one number a channel, or one a channel and position.
    """

    def __init__(self, spatial: int):
        self.spatial = spatial
        self._forward = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
        self._input = (grad.conv1d_input, grad.conv2d_input, grad.conv3d_input)[spatial - 1]
        self._weight = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)[spatial - 1]

    def _padding(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(extent // 2 for extent in weight.shape[2:])

    def product(self, weight: Tensor, v: Tensor, kind: Matrix) -> Tensor:
        return self._forward(v, weight, padding=self._padding(weight), groups=kind.blocks)

    def transposed(self, weight: Tensor, v: Tensor, kind: Matrix) -> Tensor:
        channels = weight.shape[1] * kind.blocks
        shape = (v.shape[0], channels, *v.shape[2:])
        return self._input(shape, weight, v, padding=self._padding(weight), groups=kind.blocks)

    def outer(self, delta: Tensor, v: Tensor, weight: Tensor, kind: Matrix) -> Tensor:
        return self._weight(
            v, weight.shape, delta, padding=self._padding(weight), groups=kind.blocks
        )

    def total(self, v: Tensor) -> Tensor:
        return v.sum(1, keepdim=True)

    def vector(self, parameter: Tensor) -> Tensor:
        space = () if parameter.dim() > 1 else (1,) * self.spatial
        return parameter.reshape(1, *parameter.shape, *space)


def algebra(spatial: int) -> Algebra:
    """The algebra for values with that many dimensions of space."""
    return Convolution(spatial) if spatial else Dense()
