"""Training calls that come again: both passes written down once, see :mod:`.recorded`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, matrices, repeated, threads
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.kernels import Kernels, kernels
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.recorded import Recorded, Recording, StandIns, taken_apart
from cellwright.engines.cpu.turns import complete
from cellwright.engines.protocol import Call, Cotangents, Engine

LARGEST = 1 << 28
"""Bytes that a call keeps up to which it is worth while."""


def ready(call: Call, engine: Engine, stacked: bool) -> Training | None:
    """Calls like this one, if they are ready or are made so now."""
    return repeated.ready_training(call, stacked, partial(_make, engine=engine, stacked=stacked))


def _make(call: Call, engine: Engine, stacked: bool) -> Training | None:
    plan, options = call.signature.plan, call.signature.options
    if plan.graph.streams or plan.forward.once or plan.forward.trace or options.save != "gates":
        return None
    if call.population is not None or call.signature.spatial or not threads.share_scripts():
        return None
    made = kernels(call.signature.text, call.x.dtype == torch.float64, jit.features_limit())
    if not all(_is_plain(made, need_x, call.x.shape[1]) for need_x in (False, True)):
        return None
    found = Training(call, engine, stacked)
    return None if memory.is_large or found.kept_bytes > LARGEST else found


def _is_plain(made: Kernels, need_x: bool, rows: int) -> bool:
    """Whether gradients of parameters are what programs leave, with nothing to be added up."""
    how = need_x, made.joins(rows)
    sums = *made.sums(*how), *made.total_sums(*how)
    slots = {slot for each in sums for slot in each.results}
    _, *programs = made.backward(*how)
    blocks = any(each is not None and not each.can_bind for each in programs)
    once = matrices.turns(made.jobs(*how)) == 1
    return once and not blocks and slots == made.direct_sums(*how)


class Training:
    """Calls of one kind, in one thread of Python.

    Args:
        call: one of them.
        engine: whose passes they are.
        stacked: states have an axis of length one in front.

    Attributes:
        call: of stand-ins for the tensors.
        like: shape, dtype and device of output and states.
        kept_bytes: of the block that a forward pass keeps.
    """

    def __init__(self, call: Call, engine: Engine, stacked: bool):
        self.engine, self.stacked = engine, stacked
        self.like: Sequence[tuple[Any, ...]] = []
        self._place = get_ident(), threads.count(), jit.features_limit()
        self._given = StandIns()
        stand_in = partial(self._given.add, dtype=call.x.dtype)
        self.call = Call(
            call.signature, stand_in(call.x.shape),
            [stand_in(each.shape[-2:]) for each in call.states],
            [stand_in(each.shape) for each in call.weights], (), call.reverse,
        )  # fmt: skip
        self._forward = self._record_forward()
        self._backward: dict[tuple[bool, bool], Recording] = {}
        self._zeros = [torch.zeros(shape, dtype=dtype) for shape, dtype, _ in self.like]
        self._weights_from = 1 + len(call.states)

    def holds(self) -> bool:
        """Whether a pass may be carried out here and now."""
        return self._place == (get_ident(), threads.count(), jit.features_limit())

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Output, states and, in one piece, what is kept, of x, states and weights."""
        if not self._forward.holds:
            self._forward = self._record_forward()
        return self._forward.run(tensors)

    def backward(
        self, tensors: Sequence[Tensor], arriving: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of x, states and weights; None where a gradient is not asked for.

        Args:
            tensors: x, states and weights, then what the forward pass has kept.
            arriving: gradients of its results; None for zeros.
            needed: which are asked for.
        """
        kind = needed[0], any(needed[self._weights_from :])
        recording = self._backward.get(kind)
        if recording is None or not recording.holds:
            recording = self._backward[kind] = self._record_backward(*kind)
        others = [
            zero if each is None else each for each, zero in zip(arriving, self._zeros, strict=True)
        ]
        found: list[Tensor | None] = [*recording.run([*tensors, *others])]
        if not kind[0]:
            found.insert(0, None)
        return found if kind[1] else found + [None] * len(self.call.weights)

    def apart(self, kept: Tensor) -> list[Tensor]:
        """What a forward pass has kept, as a :class:`Result` has it."""
        return taken_apart(kept.contiguous(), self._parts)

    def _record_forward(self) -> Recording:
        slots = Recorded(self.call, self._given.copy())
        found = complete(ForwardPass(slots, keep=True).turns())
        block = slots.block
        assert block is not None
        self._parts, self._block, self.kept_bytes = slots.parts, block.shape, block.nbytes
        front = (1,) if self.stacked else ()
        results = [found.output, *found.states]
        shapes = [found.output.shape, *[(*front, *each.shape) for each in found.states]]
        self.like = [(tuple(shape), block.dtype, block.device) for shape in shapes]
        return Recording(slots, self._given, [*results, block], [*shapes, block.shape])

    def _record_backward(self, need_x: bool, need_weights: bool) -> Recording:
        call, given = self.call, self._given.copy()
        kept = taken_apart(given.add(self._block, call.x.dtype), self._parts)
        shapes = [self.like[0][0], *[each.shape for each in call.states]]
        output, *states = [given.add(shape, call.x.dtype) for shape in shapes]
        slots = Recorded(call, given.copy())
        needs = {"need_x": need_x, "need_weights": need_weights}
        found = complete(BackwardPass(slots, kept, Cotangents(output, states, []), **needs).turns())
        x = [] if found.x is None else [found.x]
        before = [shape for shape, *_ in self.like[1:]]
        shapes = [*[each.shape for each in x], *before, *[each.shape for each in found.weights]]
        return Recording(slots, given, [*x, *found.states, *found.weights], shapes)
