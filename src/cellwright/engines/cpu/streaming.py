"""Single steps, again and again: weights are packed once, arguments are filled in place."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.kernels import Kernels, kernels
from cellwright.engines.cpu.pages import quick_empty
from cellwright.engines.cpu.threads import SHARES, Launch, Prepared
from cellwright.engines.cpu.watching import Watch
from cellwright.engines.signature import Signature

SHARE_FROM = 120_000
"""Multiplications in a step from which its units are shared out, to threads started for it."""

_address = Tensor.data_ptr


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class LayerStep:
    """One layer's step, for one size of batch, with the weights as they are now.

    Args:
        made: the layer's kernels.
        weights: the layer's weights.
        rows: of the batch.
        watch: what may not have changed when a step begins; None for nothing.

    Attributes:
        shared: its units are shared out to all threads.
        fill: ``fill(arguments, 0, *addresses)`` of x, the output, every state before the step and
            every state after it.
        arguments: where they are filled in.
        run: makes the step and returns 0; or 1, and makes none, where something has changed.
    """

    def __init__(
        self, made: Kernels, weights: Sequence[Tensor], rows: int, watch: Watch | None = None
    ):
        self._weights = [each.detach().contiguous() for each in weights]
        compiled = made.step()
        self.shared = rows * compiled.work >= SHARE_FROM
        # torch may be given more threads later.
        most = max(threads.count(), os.cpu_count() or 1) if self.shared else 1
        self.arguments, place, self._held = compiled.prepare(self._weights, rows, most)
        self.fill = struct.Struct(f"{len(made.step_slots)}q").pack_into
        brief = not self.shared
        watched = 0 if watch is None else watch.place
        launch = Prepared(Launch(compiled.address, place, rows, SHARES, most, brief, watched))
        self.run = launch.run
        self._kept = compiled, launch, watch  # the machine code and the launch stay where they are


class Stream:
    """All layers' steps for one size of batch.

    Args:
        signatures: of the layers, from the first.
        weights: of each layer.
        lead: the output's axes before its units, which multiply to the batch.
        sizes: units of each state.
        watched: the tensors from which the weights follow.

    Attributes:
        step: the output and the states after a step, of contiguous tensors x and states; None
            if the weights are seen to have changed.
    """

    def __init__(
        self,
        signatures: Sequence[Signature],
        weights: Sequence[Sequence[Tensor]],
        lead: Sequence[int],
        sizes: Sequence[int],
        watched: Sequence[Tensor],
    ):
        rows = math.prod(lead)
        self._dtype = weights[0][0].dtype
        double = self._dtype == torch.float64
        watches = [Watch(watched), *[None] * (len(signatures) - 1)]
        self._layers = [
            LayerStep(kernels(each.text, double, jit.features_limit()), held, rows, watch)
            for each, held, watch in zip(signatures, weights, watches, strict=True)
        ]
        shape = (*lead, sizes[0])
        self._output = shape, _strides(shape)
        count = len(signatures)
        self._shapes = [((count, rows, size), (rows * size, size, 1)) for size in sizes]
        self._steps = [rows * size * self._dtype.itemsize for size in sizes]
        self._between = [torch.empty((rows, sizes[0]), dtype=self._dtype) for _ in range(count - 1)]
        self.step = self._in_turn if count > 1 else self._single()

    def _single(self) -> Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, list[Tensor]] | None]:
        """The same for one layer, where every microsecond counts: nothing is looked up."""
        (layer,) = self._layers
        shapes, strides = zip(self._output, *self._shapes, strict=True)
        dtypes = (self._dtype,) * len(shapes)
        arguments, fill = layer.arguments, layer.fill

        def step(x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]] | None:
            output, *after = map(quick_empty, shapes, strides, dtypes)
            fill(arguments, 0, *map(_address, (x, output, *states, *after)))
            if layer.run():  # by the layer, so that all it points into stays
                return None
            return output, after

        return step

    def _in_turn(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]] | None:
        output = quick_empty(*self._output, self._dtype)
        after = [quick_empty(*each, self._dtype) for each in self._shapes]
        before_at, after_at = [*map(_address, states)], [*map(_address, after)]
        source: Any = x
        for layer, into in zip(self._layers, [*self._between, output], strict=True):
            layer.fill(
                layer.arguments, 0, source.data_ptr(), into.data_ptr(), *before_at, *after_at
            )
            if layer.run():
                return None
            before_at = [place + step for place, step in zip(before_at, self._steps, strict=True)]
            after_at = [place + step for place, step in zip(after_at, self._steps, strict=True)]
            source = into
        return output, after
