"""The recurrence outside of compiled programs: the same as the operator, with less around it.

An operator of torch passes through the dispatcher, which for a small recurrence costs more than
the recurrence. Ordinary calls on ordinary tensors go from autograd straight to the engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cellwright.engines.protocol import Call, Cotangents, Engine, Result
from cellwright.engines.tensors import own_precision, separate, split


def is_possible(call: Call) -> bool:
    """Whether nothing watches torch's operators: no tracing, no modes, no tensors of a subclass."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and all(
            type(each) is Tensor or type(each) is Parameter
            for each in (call.x, *call.states, *call.weights, *call.streams)
        )
    )


def run(call: Call, engine: Engine, *, keep: bool) -> Result:
    """Carry out a recurrence; ``keep`` what its gradient needs."""
    if not keep:
        with own_precision(call.x):
            return _forward(call, engine, keep=False)
    outputs = _Recurrence.apply(call, engine, call.x, *call.states, *call.weights)
    states, trace = len(call.states), len(call.signature.plan.forward.trace)
    (output,), after, traced = split(outputs, [1, states, trace])
    return Result(output, after, traced, [])


def _forward(call: Call, engine: Engine, *, keep: bool) -> Result:
    result = engine.forward(call, keep=keep)
    if engine.fresh:
        return result
    given = [call.x, *call.states, *call.weights, *call.streams]
    results = separate([result.output, *result.states, *result.trace], given)
    (output,), after, traced = split(results, [1, len(result.states), len(result.trace)])
    return Result(output, after, traced, result.kept)


class _Recurrence(torch.autograd.Function):
    """The loop, with its derived gradient."""

    @staticmethod
    def forward(ctx: Any, call: Call, engine: Engine, *tensors: Tensor) -> tuple[Tensor, ...]:
        with own_precision(call.x):
            result = _forward(call, engine, keep=True)
        ctx.set_materialize_grads(False)
        ctx.engine, ctx.signature, ctx.reverse = engine, call.signature, call.reverse
        ctx.counts = [
            1, len(call.states), len(call.weights), len(call.streams), len(result.kept)
        ]  # fmt: skip
        ctx.save_for_backward(call.x, *call.states, *call.weights, *call.streams, *result.kept)
        results = (result.output, *result.states, *result.trace)
        ctx.like = [(each.shape, each.dtype, each.device) for each in results]
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (x,), states, weights, streams, kept = split(ctx.saved_tensors, ctx.counts)
        given = [
            torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
            for gradient, (shape, dtype, device) in zip(gradients, ctx.like, strict=True)
        ]
        (d_output,), d_states, d_trace = split(
            given, [1, len(states), len(given) - len(states) - 1]
        )
        need_x = ctx.needs_input_grad[2]
        if torch.is_grad_enabled():
            # Somebody will differentiate the gradient: the operator knows how.
            d_x, *found = torch.ops.cellwright.recurrence_backward(
                d_output, d_states, d_trace, x, states, weights, streams, kept,
                ctx.signature.text, ctx.reverse, need_x, ctx.engine.name,
            )  # fmt: skip
            return None, None, d_x if need_x else None, *found
        call = Call(ctx.signature, x, states, weights, streams, ctx.reverse)
        cotangents = Cotangents(d_output, d_states, d_trace)
        with own_precision(x):
            result = ctx.engine.backward(call, kept, cotangents, need_x=need_x)
        return None, None, result.x, *result.states, *result.weights
