"""A recurrent net with a linear head, at every step or at a sequence's end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import cellwright.nn as cwnn
from cellwright.errors import UsageError
from cellwright.lang import CellSpec
from cellwright.train.classifier import pool
from cellwright.train.examples import Examples
from cellwright.train.settings import Settings


def recurrent_layer(cell: CellSpec, features: int, settings: Settings) -> cwnn.Recurrent:
    """The recurrent layers that settings describe."""
    return cwnn.Recurrent(
        cell,
        features,
        settings.hidden_size,
        settings.num_layers,
        bidirectional=settings.bidirectional,
        dropout=settings.dropout if settings.num_layers > 1 else 0.0,
        sizes=dict(settings.sizes),
        **settings.layer,
    )


def output_size(cell: CellSpec, features: int, settings: Settings) -> int:
    """Units of what the layers return at a step."""
    sizes = cell.resolve_sizes(features, settings.hidden_size, settings.sizes)
    return (2 if settings.bidirectional else 1) * sizes[cell.states[0].size]


class SequenceModel(nn.Module):
    """Recurrent layers and a linear head.

    Args:
        cell: a cell.
        features: units of the input.
        outputs: units of the head.
        settings: of the layers; see `Settings`. ``pooling`` says what of a sequence the head
            reads where it answers at the end.
        every_step: whether the head answers at every step, or once a sequence.
        shortcut: whether the head at a step reads the step's input as well.

    Shapes:
        x: (T, B, features), lengths: (B,); returns (T, B, outputs), or (B, outputs) where the
        head answers once.

    Example:
        >>> import torch, cellwright as cw
        >>> model = SequenceModel(cw.cells.get("gru"), 3, 2, Settings(bidirectional=False))
        >>> model(torch.zeros(5, 7, 3), torch.full((7,), 5)).shape
        torch.Size([5, 7, 2])
    """

    def __init__(
        self,
        cell: CellSpec,
        features: int,
        outputs: int,
        settings: Settings,
        *,
        every_step: bool = True,
        shortcut: bool = False,
    ):
        super().__init__()
        if shortcut and not every_step:
            raise UsageError("shortcut: there is none to a head that answers once a sequence")
        self.every_step, self.shortcut = every_step, shortcut
        self.pooling, self.directions = settings.pooling, 2 if settings.bidirectional else 1
        self.recurrent = recurrent_layer(cell, features, settings)
        self.dropout = nn.Dropout(settings.dropout)
        parts = 2 if not every_step and self.pooling == "mean-max" else 1
        read = parts * output_size(cell, features, settings) + (features if shortcut else 0)
        self.head = nn.Linear(read, outputs)

    def prepare(self, train: Examples) -> None:
        """Measure what has to be known of the training sequences: nothing."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.carry(x, lengths, None, None)[0]

    def carry(
        self, x: Tensor, lengths: Tensor, reset: Tensor | None, state: Any
    ) -> tuple[Tensor, Any]:
        """Go on from a state, and return the state after the window as well.

        Args:
            x, lengths: as in `forward`.
            reset: (T, B) booleans, True where a sequence begins; None for nowhere.
            state: as the window before returned it; None at the very beginning.
        """
        y, state = self.recurrent(x, state, lengths=lengths, reset=reset)
        if not self.every_step:
            y = pool(y, lengths, self.pooling, self.directions)
        y = self.dropout(y)
        return self.head(torch.cat([y, x], -1) if self.shortcut else y), state


def at_the_end(cell: CellSpec, features: int, outputs: int, settings: Settings) -> SequenceModel:
    """A model whose head answers once a sequence."""
    return SequenceModel(cell, features, outputs, settings, every_step=False)
