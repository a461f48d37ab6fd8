"""What a layer of any cell is called with, checked: sequences, single steps, states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellwright.errors import InputError
from cellwright.nn.state import check_dense, check_state, read_state

if TYPE_CHECKING:
    from cellwright.nn.cell_layer import CellLayer


def check_batch(batch: Any) -> None:
    """Raise :class:`InputError` unless this is a number of sequences, or None."""
    if batch is None:
        return
    if isinstance(batch, bool) or not isinstance(batch, (int, torch.SymInt)) or batch < 1:
        raise InputError(f"batch: expected a positive whole number, got {batch!r}")


def in_dtype_of(layer: CellLayer, x: Any, name: str = "x") -> Tensor:
    """``x`` in the layer's dtype, or an :class:`InputError`; its shape is not looked at."""
    if not isinstance(x, Tensor):
        what = "a tensor or a PackedSequence" if name == "x" else "a tensor, one step"
        raise InputError(f"{name}: expected {what}, got {type(x).__name__}")
    check_dense(name, x)
    like = layer.reference_weight()
    if x.device != like.device:
        raise InputError(f"{name}: the layer is on {like.device}, {name} on {x.device}")
    if x.dtype != like.dtype:
        if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
            return x.to(like.dtype)
        raise InputError(
            f"{name}: expected {like.dtype} as the layer's weights, got {x.dtype}; "
            f"convert one of them"
        )
    return x


def is_batch(layer: CellLayer, x: Tensor) -> bool:
    """Whether ``x`` is a batch of sequences; :class:`InputError` if it is no sequence either."""
    space = ["space"] * layer.spatial
    first = ["batch", "steps"] if layer.batch_first else ["steps", "batch"]
    axes = f"({', '.join([*first, 'units', *space])})"
    alone = f"({', '.join(['steps', 'units', *space])})"
    own = 2 + layer.spatial  # axes of one sequence
    shape = tuple(x.shape)
    if x.dim() not in (own, own + 1):
        raise InputError(
            f"x: expected {own + 1} axes {axes}, or {own} for one sequence {alone}, "
            f"got shape {shape}"
        )
    batched = x.dim() > own
    if shape[2 if batched else 1] != layer.input_size:
        raise InputError(
            f"x: expected {layer.input_size} units (input_size) in {axes if batched else alone}"
            f", got shape {shape}"
        )
    if shape[1 if batched and layer.batch_first else 0] == 0:
        raise InputError(f"x: there are no steps, got shape {shape}")
    if batched and shape[0 if layer.batch_first else 1] == 0:
        raise InputError(f"x: the batch is empty, got shape {shape} = {axes}")
    layer.check_space(shape[3 if batched else 2 :])
    return batched


def is_batch_of_one_step(layer: CellLayer, x_t: Tensor) -> bool:
    """As :func:`is_batch`, for what :meth:`CellLayer.step` is given."""
    own = 1 + layer.spatial  # axes of one sequence at one step
    if x_t.dim() not in (own, own + 1) or x_t.shape[-own] != layer.input_size:
        unbatched = ", ".join([str(layer.input_size), *["space"] * layer.spatial])
        raise InputError(
            f"x_t: expected shape (batch, {unbatched}), or ({unbatched}) unbatched, "
            f"got {tuple(x_t.shape)}"
        )
    batched = x_t.dim() > own
    if batched and x_t.shape[0] == 0:
        raise InputError("x_t: the batch is empty")
    layer.check_space(tuple(x_t.shape[2 if batched else 1 :]))
    return batched


def read_states(
    layer: CellLayer, given: Any, batch: int | None, space: tuple[int, ...]
) -> list[Tensor]:
    """The states that a user gave: (layers x directions, batch, size, *space) each.

    Args:
        layer: whose states they are.
        given: by the user, without the axis of the batch where ``batch`` is None.
        batch: number of sequences; None for one alone, a batch of 1 in what is returned.
        space: the extents of space.
    """
    like = layer.reference_weight()
    tensors = read_state(given, layer.state_names)
    if torch.is_autocast_enabled(like.device.type):
        tensors = [t.to(like.dtype) if t.is_floating_point() else t for t in tensors]
    lead = (layer.num_layers * layer.num_directions, *(() if batch is None else (batch,)))
    axes = (
        f"(layers x directions{'' if batch is None else ', batch'}, "
        f"size{', *space' if space else ''})"
    )
    for name, each, size in zip(layer.state_names, tensors, layer.state_sizes, strict=True):
        check_state(name, each, (*lead, size, *space), like, axes)
    return [each.unsqueeze(1) for each in tensors] if batch is None else tensors
