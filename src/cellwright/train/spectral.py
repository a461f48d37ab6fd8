"""How recurrent matrices stretch what they multiply: spectral radius, singular values, condition.

A gradient that goes back through a matrix step after step grows or vanishes with its singular
values; how much of it does depends on the gates as well. The spectral radius is the growth of
what goes round through one matrix alone, in the long run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from cellwright.ir import INPUT, Matrix
from cellwright.lang import ParameterSpec
from cellwright.nn.stack import RecurrentStack


@dataclass(frozen=True)
class Spectrum:
    """Of one block of one recurrent matrix.

    Attributes:
        module: the layer's name in the model; "" for the model itself.
        layer, direction: direction 1 runs from the end.
        matrix: as in the equations, as "U.f".
        head: the block on the diagonal.
        radius: largest absolute value of an eigenvalue; None where the matrix is not square.
        norm: largest singular value.
        condition: largest singular value / smallest; infinite where the smallest is zero.
    """

    module: str
    layer: int
    direction: int
    matrix: str
    head: int
    radius: float | None
    norm: float
    condition: float


def spectra(model: nn.Module) -> list[Spectrum]:
    """A row for every head of every recurrent matrix in a model.

    A recurrent matrix is one that does not multiply the input. In a convolution it is the sum
    over the kernel's positions: what it does to states that are the same everywhere.

    Example:
        >>> import cellwright as cw
        >>> layer = cw.nn.Recurrent("lstm", 3, 8, heads=2, init="orthogonal")
        >>> first = spectra(layer)[0]
        >>> first.matrix, first.head, round(first.norm, 5), round(first.condition, 5)
        ('U.i', 0, 1.0, 1.0)
    """
    return [
        row
        for name, module in model.named_modules()
        if isinstance(module, RecurrentStack)
        for layer in range(module.num_layers)
        for direction in range(module.num_directions)
        for row in _of_layer(module, name, layer, direction)
    ]


def _of_layer(module: RecurrentStack, name: str, layer: int, direction: int) -> list[Spectrum]:
    rows = []
    tensors = module.layer_weights(layer, direction)
    for stored, tensor in zip(module.stored(), tensors, strict=True):
        weights = tensor.detach().chunk(len(stored.members))
        for member, weight in zip(stored.members, weights, strict=True):
            if isinstance(member.type, Matrix) and member.type.columns != INPUT:
                for head, block in enumerate(_blocks(member, weight)):
                    rows.append(Spectrum(name, layer, direction, member.name, head, *_of(block)))
    return rows


def _blocks(member: ParameterSpec, weight: Tensor) -> Sequence[Tensor]:
    assert isinstance(member.type, Matrix)
    return weight.flatten(2).sum(2).chunk(member.type.blocks) if weight.dim() > 2 else (
        weight.chunk(member.type.blocks)
    )  # fmt: skip


def _of(block: Tensor) -> tuple[float | None, float, float]:
    if not bool(torch.isfinite(block).all()):
        nan = float("nan")
        return nan, nan, nan
    block = block.double().cpu()
    values = torch.linalg.svdvals(block)
    square = block.shape[0] == block.shape[1]
    radius = torch.linalg.eigvals(block).abs().max().item() if square else None
    smallest = values[-1].item()
    return radius, values[0].item(), values[0].item() / smallest if smallest else float("inf")


def table(rows: Sequence[Spectrum]) -> Any:
    """The rows as a table of rich."""
    from rich.table import Table

    shown = Table(box=None, header_style="bold")
    for each in fields(Spectrum):
        shown.add_column(
            each.name, justify="left" if each.name in ("module", "matrix") else "right"
        )
    for row in rows:
        shown.add_row(*map(_cell, astuple(row)))
    return shown


def _cell(value: Any) -> str:
    if value is None:
        return "not square"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
