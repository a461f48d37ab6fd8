"""States of layers: named tuples with one tensor for each state of the cell."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from cellwright.errors import InputError


@cache
def state_type(names: tuple[str, ...]) -> type[tuple[Any, ...]]:
    """The named tuple for a cell with states of these names: ``state.h``, ``state.c``."""
    made = _named_tuple(names)
    made.__reduce__ = _reduce
    # Under this name it stands in an exported program.
    name = f"{__name__}.State({', '.join(names)})"
    _pytree._register_namedtuple(made, serialized_type_name=name)
    found: type[tuple[Any, ...]] = made
    return found


def _named_tuple(names: tuple[str, ...]) -> Any:
    return namedtuple("State", names, module=__name__)


def _reduce(state: Any) -> tuple[Any, ...]:
    return make_state, (state._fields, *state)


def make_state(names: Sequence[str], *tensors: Tensor) -> Any:
    """A state with these tensors; what a pickled state is read back with."""
    return state_type(tuple(names))(*tensors)


# torch.load reads a state back; an exported program can be read before a layer has been made,
# if the states are those of the catalogue's cells.
torch.serialization.add_safe_globals([make_state])
for _names in ("h", "c", "s", "h c", "y z", "h c n m", "h c i f o"):
    state_type(tuple(_names.split()))


def read_state(given: Any, names: Sequence[str]) -> list[Tensor]:
    """The tensors of a state that a user passed, in the cell's order.

    Args:
        given: a named tuple as layers return it, a tuple or list in the cell's order, a dict
            by name, or a single tensor for a cell with one state.
        names: of the cell's states.

    Raises:
        InputError: if the number or the names are not the cell's.
    """
    if isinstance(given, Tensor):
        given = (given,)
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise InputError(
                f"state: expected the states {', '.join(names)}, "
                f"got {', '.join(map(str, given)) or 'none'}"
            )
        given = [given[name] for name in names]
    if not isinstance(given, (tuple, list)):
        raise InputError(
            f"state: expected a tuple of {len(names)} tensors ({', '.join(names)}), "
            f"got {type(given).__name__}"
        )
    if len(given) != len(names):
        raise InputError(
            f"state: this cell has {len(names)} ({', '.join(names)}), got {len(given)} tensors"
        )
    for name, each in zip(names, given, strict=True):
        if not isinstance(each, Tensor):
            raise InputError(f"state.{name}: expected a tensor, got {type(each).__name__}")
    return list(given)


def check_dense(name: str, given: Tensor) -> None:
    """Raise :class:`InputError` for a tensor that is nested or sparse."""
    if given.is_nested:
        raise InputError(
            f"{name}: expected a dense tensor, got a nested one; "
            f"torch.nested.to_padded_tensor makes one"
        )
    if given.layout is not torch.strided:
        raise InputError(
            f"{name}: expected a dense tensor, got one of layout {given.layout}; "
            f"to_dense() makes one"
        )


def check_state(
    name: str, given: Tensor, expected: Sequence[int], like: Tensor, meaning: str
) -> None:
    """Raise :class:`InputError` unless a state has the right shape, dtype and device."""
    check_dense(f"state.{name}", given)
    if tuple(given.shape) != tuple(expected):
        raise InputError(
            f"state.{name}: expected shape {tuple(expected)} = {meaning}, got {tuple(given.shape)}"
        )
    if given.dtype != like.dtype:
        raise InputError(
            f"state.{name}: expected {like.dtype} as the layer's weights, got {given.dtype}"
        )
    if given.device != like.device:
        raise InputError(
            f"state.{name}: the layer is on {like.device}, the state on {given.device}"
        )


def zeros(
    sizes: Sequence[int],
    lead: Sequence[int],
    space: Sequence[int],
    like: Tensor,
) -> list[Tensor]:
    """States of zeros: (*lead, size, *space) each."""
    return [
        torch.zeros((*lead, size, *space), dtype=like.dtype, device=like.device) for size in sizes
    ]
