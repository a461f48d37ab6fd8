"""Short sequences of the same extents again and again, without gradients.

What surrounds the loops of a small recurrence costs more than the loops. Where a signature runs
with the same extents once more, its arguments and its working memory are made ready and stay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.kernels import Kernels, kernels
from cellwright.engines.cpu.pages import quick_empty
from cellwright.engines.protocol import Call, Result

MOST = 1 << 28
"""Multiplications of a whole call up to which it is worth while."""

CALLS = 128
"""Kinds of calls that stay ready in each thread of Python; for one more all make room."""

LARGE = 1 << 20
"""Weights of a program from which on a second place for them is too much memory."""

Run = Callable[[Call], Result]


class _Ready(threading.local):
    """What this thread of Python has ready, and the kind of call that it ran last."""

    def __init__(self) -> None:
        self.runs: dict[object, Run | None] = {}  # None where there is no such way
        self.last: dict[object, object] = {}  # of each signature and direction


_ready = _Ready()


def ready(call: Call) -> Run | None:
    """A way to run calls like this one that has been made ready, or is now; else None."""
    x, limit = call.x, jit.features_limit()
    kind = (call.signature.text, x.shape, x.dtype, call.reverse, threads.count(), limit)
    if kind in _ready.runs:
        return _ready.runs[kind]
    # Batches of ever other lengths would be made ready in vain.
    layer = call.signature.text, call.reverse
    if _ready.last.get(layer) != kind:
        _ready.last[layer] = kind
        return None
    if len(_ready.runs) >= CALLS:
        _ready.runs.clear()
        _ready.last.clear()
    _ready.runs[kind] = _make_ready(call)
    return _ready.runs[kind]


def _make_ready(call: Call) -> Run | None:
    plan = call.signature.plan
    if plan.graph.streams or plan.forward.once or plan.forward.trace:
        return None
    made = kernels(call.signature.text, call.x.dtype == torch.float64, jit.features_limit())
    steps, rows = call.x.shape[:2]
    _, inputs, loop = made.forward(False, made.fuses(rows, threads.count()))
    programs = [each for each in (inputs, loop) if each is not None]
    work = steps * rows * sum(each.work for each in programs)
    small = 0 < work <= MOST and all(each.packed < LARGE for each in programs)
    if not small or not all(each.can_bind for each in programs):
        return None
    return _Bound(call, made).run


class _Bound:
    """The forward pass of calls like this one, with memory of its own."""

    def __init__(self, call: Call, made: Kernels):
        plan, sizes, dtype = call.signature.plan, call.signature.size, call.x.dtype
        steps, rows = call.x.shape[:2]
        programs, inputs, loop = made.forward(False, made.fuses(rows, threads.count()))
        self._at: dict[str, int] = {}
        self._start_inputs = None
        if inputs is not None:
            self._inputs = torch.empty(steps * rows * programs.width, dtype=dtype)
            self._at["inputs"] = self._inputs.data_ptr()
            self._start_inputs = inputs.bind(1, steps * rows)
        self._start_loop = loop.bind(steps, rows, reverse=call.reverse, ring=True)
        self._last = call.steps[-1]
        # The state that is left after the last of two steps in turn; None for the output.
        self._left: list[Tensor | None] = []
        for number, each in enumerate(plan.graph.states):
            if number == 0 and plan.forward.next[each.name] is plan.forward.output:
                self._left.append(None)
                continue
            ring = torch.empty((2, rows, sizes[each.size]), dtype=dtype)
            self._at[f"state.{each.name}"] = ring.data_ptr()
            self._left.append(ring[self._last & 1])
        self._initial = [f"initial.{each.name}" for each in plan.graph.states]
        self._places = made.places
        units = sizes[plan.forward.output.size]
        self._output = (steps, rows, units), (rows * units, units, 1), dtype

    def run(self, call: Call) -> Result:
        """Run it."""
        at = self._at
        output = quick_empty(*self._output)
        weights = [_whole(each) for each in call.weights]
        bases = [each.data_ptr() for each in weights]
        for slot, tensor, skipped in self._places:
            at[slot] = bases[tensor] + skipped
        x, *before = entering = [_whole(each) for each in (call.x, *call.states)]
        at["x"], at["output"] = x.data_ptr(), output.data_ptr()
        for slot, each in zip(self._initial, before, strict=True):
            at[slot] = each.data_ptr()
        if self._start_inputs is not None:
            self._start_inputs(at, weights)
        self._start_loop(at, weights)
        del entering  # until here the loops have read it
        after = [(output[self._last] if each is None else each).clone() for each in self._left]
        return Result(output, after, [], [])


def _whole(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()
