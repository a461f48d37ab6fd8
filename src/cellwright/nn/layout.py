"""How the parameters of a cell lie in a layer's tensors.

The members of a group that have the same shape are one tensor, stacked along the first axis in
the order of the equations: ``W.i, W.f, W.g, W.o`` are the rows of ``W_l0``, (4 H, I). Members of
unlike shapes are tensors of their own, named ``GROUP_MEMBER_l0``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellwright.engines import Slice
from cellwright.errors import InputError
from cellwright.lang import ParameterSpec


@dataclass(frozen=True)
class Stored:
    """A tensor of a layer: its name (without the layer's suffix) and the members it holds."""

    name: str
    members: tuple[ParameterSpec, ...]


def arrange(parameters: Sequence[ParameterSpec]) -> tuple[Stored, ...]:
    """The tensors that hold ``parameters``."""
    groups: dict[str, list[ParameterSpec]] = {}
    for each in parameters:
        groups.setdefault(each.group, []).append(each)
    stored: list[Stored] = []
    for group, members in groups.items():
        alike = len({member.type for member in members}) == 1 and group != "initial"
        if alike:
            stored.append(Stored(group, tuple(members)))
        else:
            stored += [Stored(f"{each.group}_{each.member}", (each,)) for each in members]
    for index, tensor in enumerate(stored):
        for other in stored[:index]:
            if other.name == tensor.name:
                raise InputError(
                    f"the parameters {other.members[0].name} and {tensor.members[0].name} would "
                    f"both be stored as {tensor.name}; rename one of them in the cell"
                )
    return tuple(stored)


def slices(
    stored: Sequence[Stored], wanted: Sequence[ParameterSpec], rows: Mapping[str, int]
) -> tuple[Slice, ...]:
    """Where each of ``wanted`` lies; ``rows`` is the length of a parameter's first axis."""
    names = {each.name for each in wanted}
    found = []
    for index, tensor in enumerate(stored):
        start = 0
        for member in tensor.members:
            stop = start + rows[member.name]
            if member.name in names:
                found.append(Slice(member.name, index, start, stop))
            start = stop
    return tuple(found)
