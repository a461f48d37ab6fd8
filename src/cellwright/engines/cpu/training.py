"""Training calls that come again: both passes written down once, see :mod:`.recorded`."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, matrices, repeated, threads
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.kernels import Kernels, kernels
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.recorded import Part, Recorded, Recording, StandIns, taken_apart
from cellwright.engines.cpu.turns import complete
from cellwright.engines.protocol import Call, Cotangents

LARGEST = 1 << 28
"""Bytes of what a call keeps up to which it is worth while."""


def ready(call: Call) -> Training | None:
    """Calls like this one, if they are ready or are made so now."""
    return repeated.ready_training(call, _make)


def _make(call: Call) -> Training | None:
    plan, options = call.signature.plan, call.signature.options
    if plan.graph.streams or plan.forward.once or plan.forward.trace or options.save != "gates":
        return None
    if call.population is not None or call.signature.spatial or not threads.share_scripts():
        return None
    made = kernels(call.signature.text, call.x.dtype == torch.float64, jit.features_limit())
    if not all(_is_plain(made, need_x) for need_x in (False, True)):
        return None
    found = Training(call, made)
    return found if found.is_possible() else None


def _is_plain(made: Kernels, need_x: bool) -> bool:
    """Whether gradients of parameters are what programs leave, with nothing to be added up."""
    slots = {slot for each in made.sums(need_x) for slot in each.results}
    _, *programs = made.backward(need_x)
    blocks = any(each is not None and not each.can_bind for each in programs)
    once = matrices.turns(made.jobs(need_x)) == 1
    return once and not blocks and slots == made.direct_sums(need_x)


class Training:
    """Calls of one kind, in one thread of Python.

    Args:
        call: one of them.
        made: its kernels.

    Attributes:
        parts: the arrays in the block that a forward pass keeps.
    """

    def __init__(self, call: Call, made: Kernels):
        self.signature, self.reverse = call.signature, call.reverse
        self.parts: list[Part] = []
        self._made = made  # stays with the programs
        self._dtype, self._shapes = call.x.dtype, [
            call.x.shape, *[each.shape[-2:] for each in call.states],
            *[each.shape for each in call.weights],
        ]  # fmt: skip
        self._count = len(call.states)
        self._kind = get_ident(), threads.count(), jit.features_limit()
        self._forward = self._record_forward()
        self._backward: dict[tuple[bool, bool], Recording] = {}
        self._zeros = [torch.zeros(each.shape[-2:], dtype=self._dtype) for each in call.states]

    @property
    def like(self) -> list[tuple[Any, ...]]:
        """Shape, dtype and device of output and states."""
        shapes = [self._output, *self._shapes[1 : 1 + self._count]]
        return [(shape, self._dtype, torch.device("cpu")) for shape in shapes]

    def apart(self, kept: Tensor) -> list[Tensor]:
        """What a forward pass has kept, as a :class:`Result` has it."""
        return taken_apart(_whole(kept), self.parts)

    def is_possible(self) -> bool:
        """Whether all working memory stays, and what is kept is no more than it should be."""
        return not memory.is_large and self._kept <= LARGEST

    def holds(self) -> bool:
        """Whether a pass may be carried out here and now."""
        return self._kind == (get_ident(), threads.count(), jit.features_limit())

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Output, states and, in one piece, what is kept, of x, states and weights."""
        if not self._forward.holds:
            self._forward = self._record_forward()
        return self._forward.run([*map(_whole, tensors)])

    def backward(
        self, tensors: Sequence[Tensor], arriving: Sequence[Tensor | None], *, need_x: bool,
        need_weights: bool,
    ) -> list[Tensor]:  # fmt: skip
        """Gradients: of x, if asked for, of the states, of the weights, if asked for.

        Args:
            tensors: x, states and weights, then what the forward pass has kept.
            arriving: gradients of its results; None for zeros.
            need_x, need_weights: what is asked for.
        """
        key = need_x, need_weights
        recording = self._backward.get(key)
        if recording is None or not recording.holds:
            recording = self._backward[key] = self._record_backward(*key)
        output, *states = arriving
        if output is None:
            output = torch.zeros(self._output, dtype=self._dtype)
        others = [
            zero if each is None else each for each, zero in zip(states, self._zeros, strict=True)
        ]
        return recording.run([*map(_whole, tensors), _whole(output), *map(_whole, others)])

    def _call(self, stand_ins: StandIns) -> Call:
        x, *others = [stand_ins.add(shape, self._dtype) for shape in self._shapes]
        states, weights = others[: self._count], others[self._count :]
        return Call(self.signature, x, states, weights, (), self.reverse)

    def _record_forward(self) -> Recording:
        stand_ins = StandIns()
        slots = Recorded(self._call(stand_ins), stand_ins)
        given = len(stand_ins.tensors)
        result = complete(ForwardPass(slots, keep=True).turns())
        assert slots.block is not None
        self.parts, self._kept = slots.parts, slots.block.nbytes
        self._block, self._output = slots.block.shape, result.output.shape
        return Recording(slots, given, [result.output, *result.states, slots.block])

    def _record_backward(self, need_x: bool, need_weights: bool) -> Recording:
        stand_ins = StandIns()
        call = self._call(stand_ins)
        kept = taken_apart(stand_ins.add(self._block, self._dtype), self.parts)
        shapes = [self._output, *self._shapes[1 : 1 + self._count]]
        output, *states = [stand_ins.add(shape, self._dtype) for shape in shapes]
        given = len(stand_ins.tensors)
        slots = Recorded(call, stand_ins)
        needs = {"need_x": need_x, "need_weights": need_weights}
        found = complete(BackwardPass(slots, kept, Cotangents(output, states, []), **needs).turns())
        x = [] if found.x is None else [found.x]
        return Recording(slots, given, [*x, *found.states, *found.weights])


def _whole(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()
