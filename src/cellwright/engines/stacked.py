"""The layers of a stack, carried out at the same time.

To autograd they are one function. Its gradients have the bits that those of one layer after the
other have: a layer hands the gradient of its x down as the gradient of the output below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from cellwright.engines import several
from cellwright.engines.direct import arriving, differentiable_gradient
from cellwright.engines.protocol import Call, Cotangents, Engine, Result, SideBySide
from cellwright.engines.tensors import own_precision, split


def run(calls: Sequence[Call], way: SideBySide, engine: Engine, *, keep: bool) -> list[Result]:
    """Carry them out.

    Args:
        calls: the layers from the first; x of the others has the shape only.
        way: how ``engine`` does it.
        engine: whose results are fresh.
        keep: what the gradients need.
    """
    if not keep:
        with own_precision(calls[0].x):
            return way.forward(calls, keep=False)
    tensors = [each for call in calls for each in (*call.states, *call.weights)]
    outputs = _Stack.apply(calls, way, engine, calls[0].x, *tensors)
    return several.results(calls, outputs)


class _Stack(torch.autograd.Function):
    """The loops of all layers, with their derived gradients."""

    @staticmethod
    def forward(
        ctx: Any, calls: Sequence[Call], way: SideBySide, engine: Engine, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        with own_precision(calls[0].x):
            found = way.forward(calls, keep=True)
        ctx.way, ctx.engine = way, engine
        below = [calls[0].x, *(each.output for each in found)]
        entered = [replace(call, x=x) for call, x in zip(calls, below, strict=False)]
        return several.save(ctx, entered, found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        calls, every_kept = several.saved_calls(ctx)
        given = split(gradients, [len(like) for like in ctx.like])
        need_x, *needs = ctx.needs_input_grad[3:]
        lengths = [states + weights for _, states, weights, *_ in ctx.counts]
        wanted = [any(each) for each in split(needs, lengths)]
        wanted[0] = wanted[0] or need_x
        # Below the first layer of which something is wanted nobody asks for a gradient.
        first = next(number for number, each in enumerate(accumulate(wanted)) if each)
        need_x = first == 0 and need_x
        cotangents: list[Cotangents] = []
        for call, like, arrived in zip(calls, ctx.like, given, strict=True):
            if len(cotangents) < len(given) - 1 and arrived[0] is None:
                arrived = [call.x.new_empty(0), *arrived[1:]]  # it comes from the layer above
            cotangents.append(arriving(arrived, like, len(call.states)))
        between = [each[0] for each in given[first:-1]]
        asked = calls[first:], every_kept[first:], cotangents[first:]
        if torch.is_grad_enabled() or not between or any(each is not None for each in between):
            found = _in_turn(*asked, between, need_x, ctx.engine)
        else:
            with own_precision(calls[0].x):
                results = ctx.way.backward(*asked, need_x=need_x)
            found = [[each.x, *each.states, *each.weights] for each in results]
        every: list[list[Tensor | None]] = [[None] * (1 + length) for length in lengths[:first]]
        every += found
        others = [each for _, *own in every for each in own]
        return None, None, None, every[0][0], *others


def _in_turn(
    calls: Sequence[Call],
    kept: Sequence[Sequence[Tensor]],
    cotangents: Sequence[Cotangents],
    between: Sequence[Tensor | None],
    need_x: bool,
    engine: Engine,
) -> list[list[Tensor | None]]:
    """Gradients of x, states and weights of each call, which somebody may differentiate.

    Args:
        between: further gradients of the outputs of all calls but the last, as they arise where
            first derivatives have been differentiated.
        calls, kept, cotangents, need_x: as for the backward pass of all of them together.
        engine: which carries them out.
    """
    found: list[list[Tensor | None]] = []
    for number in reversed(range(len(calls))):
        own = cotangents[number]
        if found:
            output, further = found[-1][0], between[number]
            assert output is not None
            own = replace(own, output=output if further is None else output + further)
        wanted = need_x or number > 0
        found.append(differentiable_gradient(calls[number], kept[number], own, wanted, engine))
    return found[::-1]
