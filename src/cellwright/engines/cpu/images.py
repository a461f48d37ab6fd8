"""The arrays of a recurrence over space, channels last, by the names of the programs' slots."""

from __future__ import annotations

import torch
from torch import Tensor

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
        x: (T, B, channels, *space), whose extents, dtype and device all of them have.
    """

    def __init__(self, x: Tensor):
        self.steps, self.batch, _, *space = x.shape
        self.space, self.dtype, self.device = tuple(space), x.dtype, x.device
        self.places: dict[str, Place] = {}

    @property
    def working_dtype(self) -> torch.dtype:
        """The dtype in which everything is computed."""
        return self.dtype

    def dtype_of(self, slot: str) -> torch.dtype:
        """The dtype of new memory for a slot that is not boolean."""
        return self.dtype

    def hold(self, slot: str, tensor: Tensor, steps: int | None) -> None:
        """Let a slot be a tensor whose channels lie last."""
        self.places[slot] = Place(tensor, steps)

    def room(self, slot: str, units: int, steps: int | None, *, boolean: bool = False) -> Tensor:
        """Let a slot be new memory, for some steps or for a value without steps."""
        lead = (self.batch,) if steps is None else (steps, self.batch)
        dtype = torch.bool if boolean else self.dtype_of(slot)
        tensor = torch.empty((*lead, *self.space, units), dtype=dtype, device=self.device)
        self.hold(slot, tensor, steps)
        return tensor

    def put(self, slot: str, value: Tensor) -> None:
        """Let a slot be (T, B, channels, *space); copied only if the channels do not lie last."""
        self.hold(slot, self.moved(value, CHANNELS, last=True), self.steps)

    def put_fixed(self, slot: str, value: Tensor) -> None:
        """Let a slot be (B, channels, *space) at every step."""
        self.hold(slot, self.moved(value, CHANNELS - 1, last=True), None)

    def copy(self, slot: str) -> Tensor:
        """What a slot holds, as the layer has it, in memory of its own."""
        place = self.places[slot]
        axis = CHANNELS - 1 if place.steps is None else CHANNELS
        value = place.tensor.to(self.dtype) if place.tensor.is_floating_point() else place.tensor
        found = self.moved(value, axis, last=False)
        shared = found.data_ptr() == place.base
        return found.clone(memory_format=torch.contiguous_format) if shared else found

    def moved(self, value: Tensor, axis: int, *, last: bool) -> Tensor:
        """Channels moved from ``axis`` to the end, or back; copied only if their order changes."""
        turned = value.movedim(axis, -1) if last else value.movedim(-1, axis)
        return turned if turned.is_contiguous() else self.in_order(value, turned, axis, last=last)

    def in_order(self, value: Tensor, turned: Tensor, axis: int, *, last: bool) -> Tensor:
        """A copy of ``turned``, which is ``value`` with its channels moved, in its own order."""
        return turned.contiguous()
