"""Single steps, again and again: weights are packed once, arguments are filled in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.kernels import kernels
from cellwright.engines.cpu.runtime import SHARE_FROM, Compiled
from cellwright.engines.signature import Signature

_empty = torch.empty_strided


class LayerStep:
    """One layer's step, for one size of batch, with the weights as they are now.

    Args:
        compiled: the loop, with the products of x inside.
        names: of the states.
        weights: the layer's weights.
        rows: of the batch.
    """

    def __init__(
        self, compiled: Compiled, names: Sequence[str], weights: Sequence[Tensor], rows: int
    ):
        self._weights = [each.detach().contiguous() for each in weights]
        self.arguments, self._held = compiled.prepare(self._weights, rows)
        slots = compiled.program.slots
        self.x, self.output = slots["x"], slots["output"]
        self.states = [(slots.get(f"initial.{name}"), slots[f"state.{name}"]) for name in names]
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4)(compiled.address)
        self._address, self.place = compiled.address, ctypes.addressof(self.arguments)
        self.rows = rows
        self.shared = rows * compiled.work >= SHARE_FROM
        self._code = compiled  # keeps the machine code where it is

    def run(self, x: int, output: int, states: Sequence[tuple[int, int]]) -> None:
        """One step; addresses of x, of the output, and of every state before and after."""
        arguments = self.arguments
        arguments[self.x] = x
        arguments[self.output] = output
        for (before, after), (old, new) in zip(self.states, states, strict=True):
            if before is not None:
                arguments[before] = old
            arguments[after] = new
        if self.shared:
            team = threads.count()
            threads.launch(self._address, self.place, self.rows, threads.SHARES, team)
        else:
            self.call(self.place, 0, self.rows, 0, 1)


class Stream:
    """All layers' steps for one size of batch.

    Args:
        signatures: of the layers, from the first.
        weights: of each layer.
        rows: of the batch.
        sizes: units of each state.
    """

    def __init__(
        self,
        signatures: Sequence[Signature],
        weights: Sequence[Sequence[Tensor]],
        rows: int,
        sizes: Sequence[int],
    ):
        dtype = weights[0][0].dtype
        double = dtype == torch.float64
        names = [each.name for each in signatures[0].plan.graph.states]
        self._layers = [
            LayerStep(kernels(each.text, double, jit.features_limit()).step(), names, held, rows)
            for each, held in zip(signatures, weights, strict=True)
        ]
        self._width = 8 if double else 4
        self._output = (rows, sizes[0]), (sizes[0], 1)
        count = len(signatures)
        self._shapes = [((count, rows, size), (rows * size, size, 1)) for size in sizes]
        self._steps = [rows * size * self._width for size in sizes]
        self._dtype = dtype
        if count == 1 and len(sizes) <= 2 and not self._layers[0].shared:
            self.step = self._step_once  # type: ignore[method-assign]
        self._between = [torch.empty((rows, sizes[0]), dtype=dtype) for _ in range(count - 1)]

    def _step_once(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The same for one small layer, where every microsecond counts."""
        dtype, layer = self._dtype, self._layers[0]
        output = _empty(*self._output, dtype=dtype)
        after = [_empty(*shape, dtype=dtype) for shape in self._shapes]
        arguments = layer.arguments
        arguments[layer.x] = x.data_ptr()
        arguments[layer.output] = output.data_ptr()
        for (before, following), old, new in zip(layer.states, states, after, strict=True):
            if before is not None:
                arguments[before] = old.data_ptr()
            arguments[following] = new.data_ptr()
        layer.call(layer.place, 0, layer.rows, 0, 1)
        return output, after

    def step(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The output and the states after a step; ``x`` and ``states`` are contiguous."""
        dtype = self._dtype
        output = _empty(*self._output, dtype=dtype)
        after = [_empty(*shape, dtype=dtype) for shape in self._shapes]
        pairs = [(old.data_ptr(), new.data_ptr()) for old, new in zip(states, after, strict=True)]
        source = x.data_ptr()
        last = len(self._layers) - 1
        for number, layer in enumerate(self._layers):
            into = output.data_ptr() if number == last else self._between[number].data_ptr()
            if number:
                pairs = [
                    (old + step, new + step)
                    for (old, new), step in zip(pairs, self._steps, strict=True)
                ]
            layer.run(source, into, pairs)
            source = into
        return output, after
