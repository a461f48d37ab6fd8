"""Calls side by side: each on a thread of its own, from beginning to end."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, repeated, threads
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.kernels import kernels
from cellwright.engines.cpu.members import Arguments, OneCall, Stride, lanes_driver
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.scripted import Scripted
from cellwright.engines.cpu.sharing import way
from cellwright.engines.cpu.turns import Turns, together
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.signature import Signature

T = TypeVar("T")

LEAST = 1_000_000
"""Multiplications in a direction's loop from which a thread for each pays, though it may have to
be woken."""

LEAST_TRAINING, SMALL_WEIGHTS = 10_000_000, 150_000
"""The same with gradients: calls that come again are ready only one after the other. And for one
row, weights up to which the backward loop is no faster if two threads share its units."""

LONG = 1 << 16
"""Rows times steps from which two directions at once no longer find room for what they keep."""


class Lane(OneCall):
    """The programs of one call, run by one thread.

    Args:
        number: of the lane; each has working memory of its own.
    """

    def __init__(self, number: int):
        super().__init__(f"lane {number}")
        self._tasks: list[int] = []

    @property
    def count(self) -> int:
        return len(self._tasks)

    def add(
        self, program: int, rows: int, arguments: Arguments, count: int,
        strides: Mapping[int, Stride], work: int,
    ) -> None:  # fmt: skip
        values = type(arguments).from_buffer_copy(arguments)
        self.held.append(values)
        self._tasks += [program, ctypes.addressof(values), rows]

    def written(self) -> ctypes.Array[ctypes.c_int64]:
        """Its programs, as the driver reads them."""
        return (ctypes.c_int64 * (1 + len(self._tasks)))(len(self._tasks) // 3, *self._tasks)

    def clear(self) -> None:
        """Forget what has run."""
        self._tasks, self.held = [], []


def are_faster(signature: Signature, x: Tensor, *, keep: bool) -> bool:
    """Whether both directions of a layer are faster on a thread each, by the shapes.

    They are where a loop by itself would run on one thread, and on two threads up to very many
    rows and steps: a thread then reads the weights of one direction only, and waits for nobody.
    """
    team = threads.count()
    if team < 2 or signature.spatial:
        return False
    steps, rows = x.shape[0], x.shape[1]
    double = x.dtype == torch.float64
    work = kernels(signature.text, double, jit.features_limit()).step_work
    if steps * rows * work < (LEAST_TRAINING if keep else LEAST):
        return False
    if keep and rows == 1 and work > SMALL_WEIGHTS:
        return False
    _, shared = way(work, steps, rows)
    return shared == 1 or (team == 2 and steps * rows < LONG)


def forward(calls: Sequence[Call], *, keep: bool) -> list[Result]:
    """Run the forward programs of every call."""
    run = None if keep else repeated.ready_together(calls)
    if run is not None:
        return run(calls)
    return _complete(calls, lambda slots, _: ForwardPass(slots, keep=keep).turns())


def backward(
    calls: Sequence[Call],
    kept: Sequence[Sequence[Tensor]],
    cotangents: Sequence[Cotangents],
    *,
    need_x: bool,
) -> list[Gradients]:
    """Run the backward programs of every call."""

    def begin(slots: Scripted, number: int) -> Turns[Gradients]:
        arriving = kept[number], cotangents[number]
        return BackwardPass(slots, *arriving, need_x=need_x, need_weights=True).turns()

    return _complete(calls, begin)


def _complete(calls: Sequence[Call], begin: Callable[[Scripted, int], Turns[T]]) -> list[T]:
    """The results of passes, of which a turn of each runs at the same time."""
    lanes = [Lane(number) for number in range(len(calls))]
    try:
        passes = [begin(Scripted(call, lanes[k]), k) for k, call in enumerate(calls)]
        return together(passes, lambda: _run(lanes))
    finally:
        memory.release()


def _run(lanes: Sequence[Lane]) -> None:
    busy = [each for each in lanes if each.count]
    if not busy:
        return
    written = [each.written() for each in busy]
    table = (ctypes.c_int64 * len(written))(*map(ctypes.addressof, written))
    team = min(threads.count(), len(busy))
    threads.launch(lanes_driver(), ctypes.addressof(table), len(busy), threads.ROWS, team)
    for each in busy:
        each.clear()
