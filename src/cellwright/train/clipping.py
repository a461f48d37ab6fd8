"""Clipping of gradients, by torch's own functions, with a report of what was done."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Clipped:
    """What a clipping did.

    Attributes:
        norm: of all gradients together, before.
        scale: what they were multiplied by, 1 where the norm was within its limit.
        values: how many components were cut to the limit of a value.
        finite: whether the norm is; gradients are left alone where it is not.
    """

    norm: float
    scale: float
    values: int
    finite: bool

    @property
    def changed(self) -> bool:
        """Whether any gradient is another than before."""
        return self.scale < 1.0 or self.values > 0


def clip(
    parameters: Iterable[nn.Parameter], norm: float | None = None, value: float | None = None
) -> Clipped:
    """Limit gradients in place: their components first, then the norm of all of them.

    Args:
        parameters: those with gradients are looked at.
        norm: largest Euclidean norm of all gradients together (Pascanu, Mikolov & Bengio 2013).
        value: largest absolute value of a component (Mikolov 2012).

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip([weight], norm=1.0)
        Clipped(norm=5.0, scale=0.2, values=0, finite=True)
        >>> clip([weight], value=0.7).values, weight.grad
        (1, tensor([0.6000, 0.7000]))
    """
    chosen = [each for each in parameters if each.grad is not None]
    gradients = [each.grad for each in chosen if each.grad is not None]
    before = float(nn.utils.get_total_norm(gradients))
    if not math.isfinite(before):
        return Clipped(before, 1.0, 0, finite=False)
    cut, now = 0, before
    if value is not None:
        cut = sum(int((each.abs() > value).sum()) for each in gradients)
        nn.utils.clip_grad_value_(chosen, value)
        now = float(nn.utils.get_total_norm(gradients)) if cut else before
    scale = 1.0
    if norm is not None and now > norm:
        scale = norm / now
        nn.utils.clip_grads_with_norm_(chosen, norm, torch.tensor(now))
    return Clipped(before, scale, cut, finite=True)
