"""Weights in the order in which the micro-kernels read them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cellwright.engines.cpu.targets import Group
from cellwright.ir import Matrix, Node


def pack(
    members: Group, parameters: Mapping[str, Tensor], sizes: Mapping[str, int], lanes: int
) -> Tensor:
    """The weights of a group as (unit blocks, K, targets, blocks, lanes), zeros behind the last.

    K runs over the columns of all operands in their order.
    """
    units = sizes[members.size]
    step = members.blocks * lanes
    count = -(-units // step)
    widths = [sizes[operand.size] for operand in members.operands]
    first = next(iter(parameters.values()))
    packed = torch.zeros(
        (count, sum(widths), len(members.targets), members.blocks, lanes), dtype=first.dtype
    )
    for number, target in enumerate(members.targets):
        start = 0
        for product, width in zip(target.products, widths, strict=True):
            weight = _matrix(product, parameters)
            _copy(packed[:, start : start + width, number], weight, step)
            start += width
    return packed


def _matrix(product: Node, parameters: Mapping[str, Tensor]) -> Tensor:
    """(units, columns) of a product, dense."""
    parameter = product.inputs[0]
    weight = dense(parameters[str(parameter.attribute("name"))], parameter.matrix)
    return weight.T if product.op == "matvec_transposed" else weight


def dense(weight: Tensor, kind: Matrix) -> Tensor:
    """A block-diagonal matrix with its zeros."""
    if kind.blocks == 1:
        return weight
    return torch.block_diag(*weight.chunk(kind.blocks))


def _copy(into: Tensor, weight: Tensor, step: int) -> None:
    """Write (units, K) into (blocks, K, parts, lanes)."""
    whole = weight.shape[0] // step
    _, depth, parts, lanes = into.shape
    if whole:
        rows = weight[: whole * step].reshape(whole, parts, lanes, depth)
        into[:whole].copy_(rows.permute(0, 3, 1, 2))
    left = weight.shape[0] - whole * step
    if left:
        padded = weight.new_zeros((step, depth))
        padded[:left] = weight[whole * step :]
        into[whole].copy_(padded.reshape(parts, lanes, depth).permute(2, 0, 1))
