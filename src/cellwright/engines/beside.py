"""Recurrences that do not wait for each other, carried out at the same time.

To autograd they are one function. Its gradients have the bits that those of the recurrences, one
after the other, have: that of an x which they share is added up in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cellwright.engines import several
from cellwright.engines.direct import arriving, differentiable_gradient
from cellwright.engines.protocol import Call, Engine, Result, SideBySide
from cellwright.engines.tensors import own_precision, split


def run(calls: Sequence[Call], beside: SideBySide, engine: Engine, *, keep: bool) -> list[Result]:
    """Carry them out.

    Args:
        calls: recurrences with the same signature.
        beside: how ``engine`` does it.
        engine: whose results are fresh.
        keep: what the gradients need.
    """
    if not keep:
        with own_precision(calls[0].x):
            return beside.forward(calls, keep=False)
    backwards = calls[::-1]  # as autograd takes functions, the last first
    tensors = [each for call in backwards for each in (call.x, *call.states, *call.weights)]
    outputs = _Recurrences.apply(backwards, beside, engine, *tensors)
    return several.results(backwards, outputs)[::-1]


class _Recurrences(torch.autograd.Function):
    """The loops, with their derived gradients."""

    @staticmethod
    def forward(
        ctx: Any, calls: Sequence[Call], beside: SideBySide, engine: Engine, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        with own_precision(calls[0].x):
            found = beside.forward(calls, keep=True)
        ctx.beside, ctx.engine = beside, engine
        return several.save(ctx, calls, found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        calls, every_kept = several.saved_calls(ctx)
        given = split(gradients, [len(like) for like in ctx.like])
        cotangents = [
            arriving(arrived, like, len(call.states))
            for arrived, like, call in zip(given, ctx.like, calls, strict=True)
        ]
        need_x = ctx.needs_input_grad[3]
        found: list[Tensor | None] = []
        if torch.is_grad_enabled():
            for call, kept, each in zip(calls, every_kept, cotangents, strict=True):
                found += differentiable_gradient(call, kept, each, need_x, ctx.engine)
        else:
            with own_precision(calls[0].x):
                results = ctx.beside.backward(calls, every_kept, cotangents, need_x=need_x)
            for result in results:
                found += [result.x, *result.states, *result.weights]
        return None, None, None, *found
