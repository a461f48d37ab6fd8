"""What an engine is: the one interface between the layers and what runs underneath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cellwright.engines.signature import Signature


@dataclass(frozen=True)
class Call:
    """One recurrence over a whole sequence, or a population of them.

    In a population every tensor, those of the results too, has one more axis in front: of the
    members. What members share may lie in memory once, with a stride of zero along that axis.

    Attributes:
        signature: the cell, options and sizes.
        x: input, (T, B, input) or, for a convolution, (T, B, input, *space).
        states: the states before the first step, (B, size) each, in the cell's order.
        weights: tensors in which the parameters lie, see ``signature.slices``.
        streams: masks in the order of the plan's streams: (T, B, size) or (B, size).
        reverse: from the last step to the first.
        population: members of a population; None for one recurrence alone.
    """

    signature: Signature
    x: Tensor
    states: Sequence[Tensor]
    weights: Sequence[Tensor]
    streams: Sequence[Tensor]
    reverse: bool
    population: int | None = None

    @property
    def lead(self) -> int:
        """Axes in front of those of one recurrence: that of the members, if there are any."""
        return 0 if self.population is None else 1

    @property
    def steps(self) -> range:
        """The steps in the order of the loop."""
        count = self.x.shape[self.lead]
        return range(count - 1, -1, -1) if self.reverse else range(count)

    def members(self) -> Iterator[Call]:
        """The recurrences of a population, each by itself."""
        assert self.population is not None
        for number in range(self.population):
            states, weights, streams = (
                [each[number] for each in part]
                for part in (self.states, self.weights, self.streams)
            )
            yield replace(
                self, x=self.x[number], states=states, weights=weights, streams=streams,
                population=None,
            )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What the forward pass yields; every list is in the plan's order.

    Attributes:
        output: (T, B, size).
        states: after the last step.
        trace: traced values, (T, B, size) each.
        kept: for the backward pass, as the option ``save`` says: with "gates" every state after
            each step, then the plan's ``saved`` and ``saved_inputs``, (T, B, size) each; with
            "states" only the states; with "checkpoints" the states before and after segments of
            the loop, in its order, see :mod:`cellwright.engines.keeping`.
    """

    output: Tensor
    states: list[Tensor]
    trace: list[Tensor]
    kept: list[Tensor]


@dataclass(frozen=True)
class Cotangents:
    """Gradients of the loss with respect to a :class:`Result`."""

    output: Tensor
    states: Sequence[Tensor]
    trace: Sequence[Tensor]

    def of_member(self, number: int) -> Cotangents:
        """Those of one member of a population."""
        states, trace = ([each[number] for each in part] for part in (self.states, self.trace))
        return Cotangents(self.output[number], states, trace)


@dataclass(frozen=True)
class Gradients:
    """Gradients of the loss with respect to a :class:`Call`.

    What was not asked for is None (``x``) or empty (``weights``).
    """

    x: Tensor | None
    states: list[Tensor]
    weights: list[Tensor]


class Engine(Protocol):
    """Carries out plans; engines derive from it, for what most of them have in common.

    Attributes:
        name: by which it is asked for.
        purpose: what it does, for people who ask why it was chosen.
        fresh: nothing that it returns shares memory with another result or with the call.
    """

    name: str
    purpose: str
    fresh: bool

    def objection(
        self, signature: Signature, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """Why this engine cannot run the signature there; None if it can."""

    def remark(self, signature: Signature) -> str | None:
        """What else there is to say of how it runs the signature; None if nothing is.

        By default: how products are computed, where that is not in the tensors' own precision.
        """
        if signature.options.precision == "fp32":
            return None
        return "products are of numbers rounded to bfloat16"

    def takes_populations(self, signature: Signature) -> bool:
        """Whether it carries out calls that are populations."""
        return not signature.spatial

    def way(self, signature: Signature, device: torch.device, dtype: torch.dtype) -> str:
        """Which of several forms it runs the signature in, and why; "" if it has only one."""
        return ""

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the loop; ``keep`` what the backward pass needs."""

    def backward(
        self,
        call: Call,
        kept: Sequence[Tensor],
        cotangents: Cotangents,
        *,
        need_x: bool,
        need_weights: bool = True,
    ) -> Gradients:
        """Run the gradient loop."""

    def training(self, call: Call, *, stacked: bool) -> Training | None:
        """Both passes of calls like this one, made ready; None where they are not.

        Args:
            call: it.
            stacked: states are (1, B, size), before and after, and their gradients too.
        """
        return None

    def side_by_side(self, signature: Signature, x: Tensor, *, keep: bool) -> SideBySide | None:
        """How both directions of a layer run at the same time; None where that is no faster.

        Args:
            signature: of the layer.
            x: (T, B, input); only its shape and dtype are read.
            keep: whether gradients are wanted.
        """
        return None

    def stacked(
        self, signatures: Sequence[Signature], x: Tensor, *, keep: bool
    ) -> SideBySide | None:
        """How the layers of a stack run at the same time; None where that is no faster.

        Its calls are the layers from the first. They begin with the x of the first and the
        gradient of the output of the last: x of the others has the shape only, until the backward
        pass, which does not read the gradients of their outputs.

        Args:
            signatures: of the layers, in one direction.
            x: (T, B, input) of the first; only its shape and dtype are read.
            keep: whether gradients are wanted.
        """
        return None

    def stream(
        self,
        signatures: Sequence[Signature],
        weights: Sequence[Sequence[Tensor]],
        lead: Sequence[int],
        sizes: Sequence[int],
        watched: Sequence[Tensor],
    ) -> PreparedSteps | None:
        """Single steps of a stack of layers with the weights as they are; None if it has none.

        Args:
            signatures: of the layers, from the first.
            weights: of each layer.
            lead: the output is (*lead, size), which multiplies to the rows of the batch.
            sizes: units of each state, which is (layers, rows, size).
            watched: contiguous tensors from which the weights follow.
        """
        return None


class Training(Protocol):
    """The passes of calls with the same signature, shapes and direction, made ready.

    What a forward pass keeps is one tensor, for the backward pass alone.

    Attributes:
        call: one of the calls, of tensors with nothing in them.
        engine: whose passes they are.
        stacked: as for :meth:`Engine.training`.
        like: shape, dtype and device of the output and of the states after the last step.
    """

    call: Call
    engine: Engine
    stacked: bool
    like: Sequence[tuple[Any, ...]]

    def holds(self) -> bool:
        """Whether they may be carried out here and now; else the engine's own passes are."""

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Output, states after the last step, and what is kept.

        Args:
            tensors: x, states and weights of a call.
        """

    def backward(
        self,
        tensors: Sequence[Tensor],
        arriving: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients of x, states and weights.

        Args:
            tensors: x, states and weights of a call, then what its forward pass has kept.
            arriving: gradients of the loss with respect to output and states; None for zeros.
            needed: which gradients are asked for.
        """

    def apart(self, kept: Tensor) -> list[Tensor]:
        """What is kept, as :class:`Result` has it."""


class PreparedSteps(Protocol):
    """Steps whose weights have been made ready once."""

    def step(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]] | None:
        """Output and states after a step; contiguous tensors of the prepared sizes.

        None, and nothing is computed, if the weights are seen not to be what they were.
        """


class SideBySide(Protocol):
    """Carries out calls at the same time: the directions of a layer, or the layers of a stack.

    Every result has the bits that it has when the calls are carried out one after the other.
    """

    def forward(self, calls: Sequence[Call], *, keep: bool) -> list[Result]:
        """As :meth:`Engine.forward` of each."""

    def backward(
        self,
        calls: Sequence[Call],
        kept: Sequence[Sequence[Tensor]],
        cotangents: Sequence[Cotangents],
        *,
        need_x: bool,
    ) -> list[Gradients]:
        """As :meth:`Engine.backward` of each; of a stack, ``need_x`` is about the first."""
