"""A call that is mapped over an axis, as one call without that axis.

The axis becomes part of the batch where the weights are the same along it, else the members of a
population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor
from torch._C._functorch import (
    TransformType,
    _add_batch_dim,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_bdim,
)
from torch._functorch.pyfunctorch import (
    VmapInterpreter,
    retrieve_current_functorch_interpreter,
)

from cellwright.engines.protocol import Call, Engine
from cellwright.engines.signature import Signature
from cellwright.engines.tensors import split


class OnlyMap(NamedTuple):
    """The only transform that is active, a vmap, and the tensors inside of it.

    Attributes:
        interpreter: torch's; what runs while it is lowered is not mapped.
        dims: which axis of each tensor is mapped; None where it is the same for all.
        inside: the tensors with that axis.
    """

    interpreter: VmapInterpreter
    dims: list[int | None]
    inside: list[Tensor]

    @property
    def size(self) -> int:
        """Of the axis."""
        return self.interpreter.batch_size()

    def results(self, found: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
        """Tensors from inside as the mapped function sees them."""
        level = self.interpreter.level()
        return [
            each if dim is None else _add_batch_dim(each, dim, level)
            for each, dim in zip(found, dims, strict=True)
        ]


def only_map(tensors: Sequence[Tensor]) -> OnlyMap | None:
    """The vmap that runs, where no other transform does and it maps some of these tensors."""
    stack = get_interpreter_stack() or ()
    if len(stack) != 1 or stack[0].key() != TransformType.Vmap:
        return None
    dims = [maybe_get_bdim(each) if is_batchedtensor(each) else None for each in tensors]
    if all(each is None for each in dims):
        return None
    interpreter = retrieve_current_functorch_interpreter()
    assert isinstance(interpreter, VmapInterpreter)
    inside = [get_unwrapped(each) if is_batchedtensor(each) else each for each in tensors]
    return OnlyMap(interpreter, dims, inside)


@dataclass(frozen=True)
class Frame:
    """A call without its tensors, and what is asked for.

    Attributes:
        keep: what the gradient needs is returned too.
        weights: how many tensors hold the weights.
        population: see :class:`Call`.
        need_x, need_weights: which gradients are wanted.
    """

    signature: Signature
    engine: Engine
    reverse: bool
    keep: bool
    weights: int
    population: int | None = None
    need_x: bool = False
    need_weights: bool = False

    @property
    def results(self) -> list[int]:
        """Numbers of outputs, states, traces."""
        plan = self.signature.plan
        return [1, len(plan.graph.states), len(plan.forward.trace)]

    @property
    def kept(self) -> int:
        """Number of tensors that the gradient needs beside the arguments."""
        plan, save = self.signature.plan, self.signature.options.save
        saved = len(plan.forward.saved) + len(plan.forward.saved_inputs)
        return len(plan.graph.states) + saved * (save == "gates") if self.keep else 0

    @property
    def arguments(self) -> list[int]:
        """Numbers of x, states, weights, streams."""
        plan = self.signature.plan
        return [1, len(plan.graph.states), self.weights, len(plan.graph.streams)]

    def call(self, arguments: Sequence[Tensor]) -> Call:
        """The call with these tensors."""
        (x,), states, weights, streams = split(arguments, self.arguments)
        return Call(self.signature, x, states, weights, streams, self.reverse, self.population)

    def argument_rows(self) -> list[int | None]:
        """Which axis of each argument is the batch; weights have none."""
        streams = [1 if each.per_step else 0 for each in self.signature.plan.graph.streams]
        _, states, weights, _ = self.arguments
        return [1, *[0] * states, *[None] * weights, *streams]

    def result_rows(self) -> list[int]:
        """Which axis of each result is the batch, those that are kept at the end."""
        _, states, traces = self.results
        return [1, *[0] * states, *[1] * (traces + self.kept)]

    def gradient_rows(self) -> list[int]:
        """Which axis of each gradient is the batch; those of weights are not among them."""
        return [*[1] * self.need_x, *[0] * self.results[1]]


@dataclass(frozen=True)
class Together:
    """Tensors with one axis more, or without, as those of a single call.

    Attributes:
        size: of that axis.
        before: the call of one of them.
        dims: which axis it is of each tensor; None where it is the same for all.
    """

    size: int
    before: Frame
    dims: tuple[int | None, ...]

    @property
    def frame(self) -> Frame:
        """The population's."""
        inner = self.before.population
        return replace(self.before, population=self.size * (1 if inner is None else inner))

    def rows(self, tensors: Sequence[Tensor], axes: Sequence[int | None]) -> list[Tensor]:
        """The axis as part of the batch."""
        return [
            each if axis is None else self._at(each, dim, axis).flatten(axis, axis + 1)
            for each, dim, axis in zip(tensors, self.dims, axes, strict=True)
        ]

    def rows_apart(
        self, outputs: Sequence[Tensor], axes: Sequence[int], first: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Results of a batch, and where in each the axis is; ``first`` was (T, B, units)."""
        batch = self._at(first, self.dims[0], 0).shape[2]
        apart = (
            each.unflatten(axis, (self.size, batch))
            for each, axis in zip(outputs, axes, strict=True)
        )
        return tuple(apart), tuple(axes)

    def members(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The axis as the members of a population."""
        moved = [self._at(each, dim, 0) for each, dim in zip(tensors, self.dims, strict=True)]
        return moved if self.before.population is None else [each.flatten(0, 1) for each in moved]

    def members_apart(
        self, outputs: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Results of a population, and where in each the axis is."""
        inner = self.before.population
        apart = outputs if inner is None else [e.unflatten(0, (self.size, inner)) for e in outputs]
        return tuple(apart), tuple(0 for _ in outputs)

    def _at(self, each: Tensor, dim: int | None, axis: int) -> Tensor:
        if dim is not None:
            return each.movedim(dim, axis)
        shape = (*each.shape[:axis], self.size, *each.shape[axis:])
        return each.unsqueeze(axis).expand(shape)
