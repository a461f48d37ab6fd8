"""Small help with tensors for what stands between layers and engines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def own_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off: it would compute parts of a recurrence in another dtype than x's."""
    if not torch._C._is_any_autocast_enabled():
        return nullcontext()
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def separate(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> list[Tensor]:
    """Outputs in memory of their own, contiguous, as an operator of torch has to return them.

    Nor may one be a view: a user could not change it in place.
    """
    taken = {each.untyped_storage().data_ptr() for each in inputs}
    separate = []
    for each in outputs:
        if each._is_view() or each.untyped_storage().data_ptr() in taken:
            each = each.clone(memory_format=torch.contiguous_format)
        separate.append(each.contiguous())
        taken.add(separate[-1].untyped_storage().data_ptr())
    return separate


def split(items: Sequence[Item], counts: Sequence[int]) -> list[list[Item]]:
    """``items`` in parts of these lengths."""
    parts, start = [], 0
    for count in counts:
        parts.append(list(items[start : start + count]))
        start += count
    return parts
