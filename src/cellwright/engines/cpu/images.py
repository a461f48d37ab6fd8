"""The arrays of a recurrence over space, channels last, by the names of the programs' slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu.exchange import exchange

CHANNELS = 2
"""The axis of the channels in what a layer gives and gets: (T, B, channels, *space)."""


class Place:
    """Memory of a slot.

    Args:
        tensor: channels last.
        steps: of how many steps it holds the values, in turn; None if it is the same at all steps.
    """

    def __init__(self, tensor: Tensor, steps: int | None):
        self.tensor, self.steps = tensor, steps
        self.base = tensor.data_ptr()
        self._stride = tensor.stride(0) * tensor.element_size() if steps else 0

    def address(self, t: int) -> int:
        """Where the value of step ``t`` begins."""
        return self.base if self.steps is None else self.base + t % self.steps * self._stride

    def at(self, t: int) -> Tensor:
        """The value of step ``t``."""
        return self.tensor if self.steps is None else self.tensor[t % self.steps]


class Images:
    """Tensors (B, *space, channels), or (T, B, *space, channels), by slot.

    Args:
        steps, batch, space: extents of all of them.
        dtype: of those that are not boolean.
    """

    def __init__(self, steps: int, batch: int, space: Sequence[int], dtype: torch.dtype):
        self.steps, self.batch, self.space, self.dtype = steps, batch, tuple(space), dtype
        self.places: dict[str, Place] = {}

    def hold(self, slot: str, tensor: Tensor, steps: int | None) -> None:
        """Let a slot be a tensor whose channels lie last."""
        self.places[slot] = Place(tensor, steps)

    def room(self, slot: str, units: int, steps: int | None, *, boolean: bool = False) -> Tensor:
        """Let a slot be new memory, for some steps or for a value without steps."""
        lead = (self.batch,) if steps is None else (steps, self.batch)
        dtype = torch.bool if boolean else self.dtype
        tensor = torch.empty((*lead, *self.space, units), dtype=dtype)
        self.hold(slot, tensor, steps)
        return tensor

    def put(self, slot: str, value: Tensor) -> None:
        """Let a slot be (T, B, channels, *space); copied only if the channels do not lie last."""
        self.hold(slot, _moved(value, CHANNELS, last=True), self.steps)

    def put_fixed(self, slot: str, value: Tensor) -> None:
        """Let a slot be (B, channels, *space) at every step."""
        self.hold(slot, _moved(value, CHANNELS - 1, last=True), None)

    def copy(self, slot: str) -> Tensor:
        """What a slot holds, as the layer has it, in memory of its own."""
        place = self.places[slot]
        axis = CHANNELS - 1 if place.steps is None else CHANNELS
        found = _moved(place.tensor, axis, last=False)
        shared = found.data_ptr() == place.base
        return found.clone(memory_format=torch.contiguous_format) if shared else found


def _moved(value: Tensor, axis: int, *, last: bool) -> Tensor:
    """Channels moved from ``axis`` to the end, or back; copied only if their order changes."""
    turned = value.movedim(axis, -1) if last else value.movedim(-1, axis)
    if turned.is_contiguous():
        return turned
    if not (value.is_contiguous() and value.is_floating_point()):
        return turned.contiguous()
    moved = torch.empty(turned.shape, dtype=value.dtype)
    lead, channels = value.shape[:axis].numel(), value.shape[axis if last else -1]
    positions = value.numel() // max(lead * channels, 1)
    rows, columns = (channels, positions) if last else (positions, channels)
    exchange(value, moved, lead, rows, columns)
    return moved
