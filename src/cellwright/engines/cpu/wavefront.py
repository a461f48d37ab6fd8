"""The layers of a stack side by side: each begins as soon as the first steps of its x are there.

While one thread computes some steps of a layer, another computes, of the layer above, the steps
before; on the way back from the top layer down. The bits are those of one layer after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.engines.cpu import jit, repeated, threads
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.fronts import Parts, fronts, once
from cellwright.engines.cpu.kernels import kernels
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.pieces import Layer, Piecewise, in_pieces
from cellwright.engines.cpu.schedule import Table
from cellwright.engines.cpu.sharing import way
from cellwright.engines.cpu.turns import together
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.signature import Signature

LEAST = 2_000_000
"""Multiplications in the loops of all layers from which another thread pays, though it may have to
be woken."""

LEAST_TRAINING, TRAINING_STEPS, TRAINING_ROWS = 30_000_000, 300, 4
"""Multiplications and steps from which, and rows up to which, it pays with gradients: calls that
come again are ready only one layer after the other."""

FEW_ROWS, SMALL_WEIGHTS = 8, 150_000
"""Rows and weights up to which two threads gain by a layer each where they could share out its
loop: weights that are read by one thread and then by the other come from afar."""

PIECES, SHORTEST = 20, 6
"""Pieces of a sequence at most, and steps of one at least: a piece of few steps reads the weights
of x for few rows, and one of many lets the layer above wait."""


def are_faster(signatures: Sequence[Signature], x: Tensor, *, keep: bool) -> bool:
    """Whether the layers of a stack are faster as a wavefront, by the shapes.

    They are where the loop of each by itself would run on one thread. So they are on two threads
    where these would share out few rows, or the units of small layers: a thread then has more rows
    to use its weights for, and waits less often.
    """
    team = threads.count()
    if team < 2 or any(each.spatial for each in signatures):
        return False
    steps, rows = x.shape[0], x.shape[1]
    double = x.dtype == torch.float64
    limit = jit.features_limit()
    works = [kernels(each.text, double, limit).step_work for each in signatures]
    whole = steps * rows * sum(works)
    if steps <= SHORTEST or whole < LEAST:
        return False
    if keep and (steps < TRAINING_STEPS or rows > TRAINING_ROWS or whole < LEAST_TRAINING):
        return False
    if all(way(work, steps, rows)[1] == 1 for work in works):
        return True
    return team == 2 and rows <= FEW_ROWS and max(works) < SMALL_WEIGHTS


def piece_of(steps: int) -> int:
    """Steps of a piece, an even number."""
    return max(SHORTEST, -(-steps // PIECES) + 1 & -2)


def forward(calls: Sequence[Call], *, keep: bool) -> list[Result]:
    """Run the forward programs of every layer; x of all but the first is not read."""
    run = None if keep else repeated.ready_stack(calls, _ready)
    if run is not None:
        return run(calls)
    layers = [Layer(number) for number in range(len(calls))]
    piece = piece_of(calls[0].x.shape[0])
    passes: list[ForwardPass] = []
    try:
        for call, layer in zip(calls, layers, strict=True):
            call = replace(call, x=passes[-1].output) if passes else call
            slots = Piecewise(call, layer, piece, backward=False)
            passes.append(ForwardPass(slots, keep=keep))
        return _complete(passes, layers)
    finally:
        memory.release()


def backward(
    calls: Sequence[Call],
    kept: Sequence[Sequence[Tensor]],
    cotangents: Sequence[Cotangents],
    *,
    need_x: bool,
) -> list[Gradients]:
    """Run the backward programs of every layer.

    Gradients of the output are read of the last one only: those of the others are the gradients
    of x of the layers above.
    """
    layers = [Layer(number) for number in range(len(calls))]
    piece = piece_of(calls[0].x.shape[0])
    passes: list[BackwardPass] = []
    try:
        for number in reversed(range(len(calls))):
            given = cotangents[number]
            if passes:
                assert passes[-1].d_x is not None
                given = replace(given, output=passes[-1].d_x)
            slots = Piecewise(calls[number], layers[len(passes)], piece, backward=True)
            asked = {"need_x": need_x or number > 0, "need_weights": True}
            passes.append(BackwardPass(slots, kept[number], given, **asked))
        return _complete(passes, layers)[::-1]
    finally:
        memory.release()


def _complete(begun: Sequence[Any], layers: Sequence[Layer]) -> list[Any]:
    """The results of passes that go through the same spans together."""
    row_bytes = max(each.row_bytes for each in begun)
    for each in begun:
        each.row_bytes = row_bytes
    return together([each.turns() for each in begun], lambda: _run(layers))


def _run(layers: Sequence[Layer]) -> None:
    found = [each.written() for each in layers]
    if not found[0][1]:
        return
    parts = tuple(part for part, _ in found)
    given = b"".join(each for _, own in found for each in own)
    fronts(parts, min(threads.count(), len(layers))).run(np.frombuffer(given, dtype=np.int64))
    for each in layers:
        each.clear()


def _ready(calls: Sequence[Call]) -> repeated.RunTogether | None:
    """A way to run the forward programs of calls like these; None if there is none."""
    made = [repeated.bound_like(call, 1) for call in calls]
    bounds = [each for each in made if each is not None]
    if len(bounds) < len(made):
        return None
    steps, rows = calls[0].x.shape[:2]
    parts: list[Parts] = []
    given: list[Table] = []
    for bound in bounds:
        before, inside = [], []
        places = []
        for program in bound.programs:
            compiled = program.compiled
            *packing, launch = program.launches
            for each in packing:
                count = compiled.weights.arguments
                before.append(once(each.address, each.rows, count, 0))
                given.append(_at(each.arguments, count))
            inside.append(in_pieces(compiled, steps, rows, piece_of(steps), False, ring=True))
            places.append(_at(launch.arguments, len(compiled.program.slots)))
        given += places
        parts.append((tuple(before), tuple(inside), ()))
    found = fronts(tuple(parts), min(threads.count(), len(calls)))

    def run(calls: Sequence[Call]) -> list[Result]:
        entered, x = [], calls[0].x
        for bound, call in zip(bounds, calls, strict=True):
            entered.append(bound.enter(replace(call, x=x)))
            x = entered[-1][0]
        found.run(np.concatenate(given))
        return [bound.leave(*each) for bound, each in zip(bounds, entered, strict=True)]

    return run


def _at(address: int, count: int) -> Table:
    """So many numbers at an address, as they are at any time."""
    return np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address))
