"""Lengths, resets and the random masks, checked and in the shapes that plans read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cellwright.errors import InputError
from cellwright.nn.state import check_dense

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def values_are_known() -> bool:
    """Whether tensors hold numbers now: not while compiling, exporting or under torch.func."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def read_lengths(given: Any, steps: int, batch: int, device: torch.device) -> Tensor:
    """Lengths as an integer tensor (batch,) on ``device``.

    Raises:
        InputError: for another shape, fractions, NaN, negative lengths or lengths over ``steps``.
    """
    if isinstance(given, Tensor):
        check_dense("lengths", given)
        lengths = given
    else:
        try:
            lengths = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"lengths: expected {batch} whole numbers, got {given!r}") from error
    if tuple(lengths.shape) != (batch,):
        raise InputError(
            f"lengths: expected shape ({batch},), one for each sequence of the batch, "
            f"got {tuple(lengths.shape)}"
        )
    if lengths.dtype not in INTEGERS:
        nan = values_are_known() and lengths.is_floating_point() and bool(lengths.isnan().any())
        found = f"NaN in a tensor of {lengths.dtype}" if nan else str(lengths.dtype)
        raise InputError(f"lengths: expected whole numbers such as torch.int64, got {found}")
    if values_are_known() and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0:
            raise InputError(f"lengths: a length cannot be negative, got {low}")
        if high > steps:
            raise InputError(f"lengths: x has {steps} steps, got a length of {high}")
    return lengths.to(device)


def active(lengths: Tensor, steps: int) -> Tensor:
    """(T, B, 1): whether a sequence has not ended yet."""
    t = torch.arange(steps, device=lengths.device)
    return (t[:, None] < lengths[None, :]).unsqueeze(-1)


def read_reset(
    given: Any, steps: int, batch: int, device: torch.device, *, batched: bool, batch_first: bool
) -> Tensor:
    """The reset mask as a boolean tensor (steps, batch) on ``device``.

    Args:
        given: by the user: (steps,) for one sequence alone, or (batch, steps) where
            ``batch_first``.
        steps, batch: of x.
        device: of x.
        batched, batch_first: the form of x.
    """
    shape: tuple[int, ...] = (batch, steps) if batch_first else (steps, batch)
    axes = "(batch, steps)" if batch_first else "(steps, batch)"
    if not batched:
        shape, axes = (steps,), "(steps,)"
    if not isinstance(given, Tensor):
        raise InputError(f"reset: expected a boolean tensor {axes}, got {type(given).__name__}")
    check_dense("reset", given)
    if tuple(given.shape) != shape:
        raise InputError(f"reset: expected shape {shape} = {axes}, got {tuple(given.shape)}")
    if given.dtype != torch.bool and given.dtype not in INTEGERS:
        raise InputError(f"reset: expected a boolean tensor, got {given.dtype}")
    mask = given.to(device=device, dtype=torch.bool)
    if not batched:
        return mask.unsqueeze(1)
    return mask.T if batch_first else mask


def reset_for(reset: Tensor, lengths: Tensor | None, *, reverse: bool) -> Tensor:
    """(T, B, 1): where the state starts afresh before a step of that direction.

    A mark at step t says that an episode begins there. Going backwards, the step after the
    border is t - 1, so the marks move one step towards the beginning; a mark beyond the end of
    a sequence is none of its own.
    """
    if reverse:
        if lengths is not None:
            reset = reset & active(lengths, reset.shape[0]).squeeze(-1)
        reset = torch.cat([reset[1:], torch.zeros_like(reset[:1])])
    return reset.unsqueeze(-1)


def keep_mask(rate: float, shape: Sequence[int], like: Tensor) -> Tensor:
    """Zoneout: True with probability ``rate``, where a unit keeps its old value."""
    return torch.rand(tuple(shape), device=like.device) < rate


def dropout_mask(rate: float, shape: Sequence[int], like: Tensor) -> Tensor:
    """Dropout: 0 with probability ``rate``, else 1 / (1 - rate)."""
    kept = torch.rand(tuple(shape), device=like.device) >= rate
    return kept.to(like.dtype) / (1.0 - rate)
