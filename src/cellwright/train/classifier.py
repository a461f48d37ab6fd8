"""A classifier of sequences: any cell, pooled over time, with a linear head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import cellwright.nn as cwnn
from cellwright.errors import InputError
from cellwright.lang import CellSpec
from cellwright.train.settings import Settings

if TYPE_CHECKING:
    from cellwright.train.series import SeriesSet


class Standardise(nn.Module):
    """Subtract each feature's mean and divide by its standard deviation.

    Both are buffers: they are measured on the training series and stored with the weights. A
    feature that never changes is only shifted.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def measure(self, frames: Tensor) -> None:
        """Take mean and deviation from frames of shape (frames, features)."""
        frames = frames.double()
        deviation = frames.std(0, correction=0)
        # What is left of a constant by rounding is not a scale.
        constant = deviation <= 1e-9 * frames.abs().amax(0)
        self.mean.copy_(frames.mean(0))
        self.deviation.copy_(torch.where(constant, torch.ones_like(deviation), deviation))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Disturb(nn.Module):
    """Noise, an offset and cropping, in training only: like dropout, it does nothing after.

    Args:
        noise, offset, crop: see `Settings`.

    Shapes:
        x: (T, B, features), with lengths (B,); both are returned, T as it was.
    """

    def __init__(self, noise: float, offset: float, crop: float):
        super().__init__()
        self.noise, self.offset, self.crop = noise, offset, crop

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return x, lengths
        T, B, features = x.shape
        if self.crop:
            spare = torch.minimum((lengths * self.crop).long(), lengths - 1)
            left_out = _draw_up_to(spare)
            start = _draw_up_to(left_out)
            steps = (torch.arange(T, device=x.device)[:, None] + start).clamp(max=T - 1)
            x = x.gather(0, steps[..., None].expand(T, B, features))
            lengths = lengths - left_out
        if self.offset:
            x = x + self.offset * torch.randn(1, B, features, device=x.device)
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        return x, lengths

    def extra_repr(self) -> str:
        return f"noise={self.noise}, offset={self.offset}, crop={self.crop}"


def _draw_up_to(largest: Tensor) -> Tensor:
    """A whole number from 0 to ``largest`` for each of its entries, all equally likely."""
    drawn = (torch.rand(largest.shape, device=largest.device) * (largest + 1)).long()
    return torch.minimum(drawn, largest)  # the product may be rounded up to largest + 1


def pool(y: Tensor, lengths: Tensor, how: str, directions: int) -> Tensor:
    """One vector a sequence from its outputs (T, B, D): (B, D), or (B, 2 D) for "mean-max".

    Only the first ``lengths[b]`` steps of a sequence count; every length is at least 1.
    """
    valid = (torch.arange(y.shape[0], device=y.device)[:, None] < lengths)[..., None]
    if how == "last":
        last = y.gather(0, (lengths - 1)[None, :, None].expand(1, *y.shape[1:]))[0]
        if directions == 1:
            return last
        half = y.shape[-1] // 2
        return torch.cat([last[:, :half], y[0, :, half:]], -1)
    parts = []
    if how in ("mean", "mean-max"):
        parts.append(y.masked_fill(~valid, 0).sum(0) / lengths[:, None])
    if how in ("max", "mean-max"):
        parts.append(y.masked_fill(~valid, -torch.inf).amax(0))
    return torch.cat(parts, -1)


class SequenceClassifier(nn.Module):
    """Standardise, run a recurrent layer, pool over time, and weigh up the classes.

    Args:
        cell: a cell.
        features: units of the input.
        classes: number of classes.
        settings: the architecture and the dropout; see `Settings`.

    Shapes:
        x: (T, B, features), lengths: (B,) from 1 to T; returns logits (B, classes).

    Raises:
        InputError: the sizes do not suit the cell.

    Example:
        >>> import torch, cellwright as cw
        >>> model = SequenceClassifier(cw.cells.get("gru"), 3, 2, Settings(hidden_size=4))
        >>> model(torch.zeros(5, 7, 3), torch.full((7,), 5)).shape
        torch.Size([7, 2])
    """

    def __init__(self, cell: CellSpec, features: int, classes: int, settings: Settings):
        super().__init__()
        if classes < 2:
            raise InputError(f"classes: expected at least 2, got {classes}")
        self.pooling = settings.pooling
        self.standardise = Standardise(features)
        self.disturb = Disturb(settings.noise, settings.offset, settings.crop)
        self.recurrent = cwnn.Recurrent(
            cell,
            features,
            settings.hidden_size,
            settings.num_layers,
            bidirectional=settings.bidirectional,
            dropout=settings.dropout if settings.num_layers > 1 else 0.0,
            sizes=dict(settings.sizes),
            **settings.layer,
        )
        sizes = cell.resolve_sizes(features, settings.hidden_size, settings.sizes)
        self.directions = 2 if settings.bidirectional else 1
        units = self.directions * sizes[cell.states[0].size]
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(units * (2 if self.pooling == "mean-max" else 1), classes)

    def prepare(self, train: SeriesSet) -> None:
        """Measure the training series' mean and deviation."""
        self.standardise.measure(torch.cat([torch.from_numpy(each) for each in train.values]))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x, lengths = self.disturb(self.standardise(x), lengths)
        y, _ = self.recurrent(x, lengths=lengths)
        return self.head(self.dropout(pool(y, lengths, self.pooling, self.directions)))
