"""The recurrence outside of compiled programs: the same as the operator, with less around it.

An operator of torch passes through the dispatcher, which for a small recurrence costs more than
the recurrence. Ordinary calls on ordinary tensors go from autograd straight to the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cellwright.engines.protocol import Call, Cotangents, Engine, Result, Training
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
    ready = training(call, engine)
    if ready is not None:
        output, *after = again(ready, call.x, *call.states, *call.weights)
        return Result(output, after, [], [])
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
        call = Call(ctx.signature, x, states, weights, streams, ctx.reverse)
        cotangents = arriving(gradients, ctx.like, len(states))
        need_x = ctx.needs_input_grad[2]
        if torch.is_grad_enabled():
            return None, None, *differentiable_gradient(call, kept, cotangents, need_x, ctx.engine)
        with own_precision(x):
            result = ctx.engine.backward(call, kept, cotangents, need_x=need_x)
        return None, None, result.x, *result.states, *result.weights


def training(call: Call, engine: Engine, *, stacked: bool = False) -> Training | None:
    """Calls like this one, where the engine has them ready; see :meth:`Engine.training`."""
    return None if are_stored() else engine.training(call, stacked=stacked)


class _Again(torch.autograd.Function):
    """The same for calls that the engine has ready, with less around it."""

    @staticmethod
    def forward(ctx: Any, ready: Training, *tensors: Tensor) -> tuple[Tensor, ...]:
        *results, kept = ready.forward(tensors)
        ctx.set_materialize_grads(False)
        ctx.ready = ready
        ctx.save_for_backward(*tensors, kept)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ready, saved, needed = ctx.ready, ctx.saved_tensors, ctx.needs_input_grad
        if not ready.holds() or torch.is_grad_enabled() or _is_watched():
            return None, *_as_usual(ready, saved, gradients, needed[1])
        return None, *ready.backward(saved, gradients, needed[1:])


again = super(torch.autograd.Function, _Again).apply
"""``again(ready, x, *states, *weights)``: output and states after the last step.

What ``_Again.apply`` does besides is for the transforms of torch.func, which do not come here.
"""


def _as_usual(
    ready: Training, saved: Sequence[Tensor], gradients: Sequence[Tensor | None], need_x: bool
) -> list[Tensor | None]:
    """The gradients by the engine's own backward pass, or by the operator."""
    call, engine, *tensors = ready.call, ready.engine, *saved
    counts = [1, len(call.states), len(call.weights), 1]
    (x,), states, weights, (block,) = split(tensors, counts)
    cotangents = arriving(gradients, ready.like, counts[1])
    if ready.stacked:
        states = [each[0] for each in states]
        cotangents = replace(cotangents, states=[each[0] for each in cotangents.states])
    call, kept = replace(call, x=x, states=states, weights=weights), ready.apart(block)
    if torch.is_grad_enabled():
        d_x, *found = differentiable_gradient(call, kept, cotangents, need_x, engine)
    else:
        with own_precision(x):
            result = engine.backward(call, kept, cotangents, need_x=need_x)
        d_x, found = result.x, [*result.states, *result.weights]
    if ready.stacked:
        found = [
            each.unsqueeze(0) if number < counts[1] and each is not None else each
            for number, each in enumerate(found)
        ]
    return [d_x, *found]


def _is_watched() -> bool:
    """Whether something sees or changes every operation of torch."""
    return bool(torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack())


# What is kept is one tensor where a call is ready and several where it is not. Whoever is given
# them to store may count them, as torch.utils.checkpoint does.
_storing = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def are_stored() -> bool:
    """Whether somebody else stores what autograd saves."""
    return _storing is None or _storing(False) is not None


def arriving(
    gradients: Sequence[Tensor | None], like: Sequence[tuple[Any, ...]], states: int
) -> Cotangents:
    """Gradients of a call's results, zeros where none arrives; ``like`` tells their kinds."""
    output, *others = [
        torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
        for gradient, (shape, dtype, device) in zip(gradients, like, strict=True)
    ]
    return Cotangents(output, others[:states], others[states:])


def differentiable_gradient(
    call: Call, kept: Sequence[Tensor], given: Cotangents, need_x: bool, engine: Engine
) -> list[Tensor | None]:
    """Gradients of x, states and weights that somebody will differentiate: by the operator."""
    d_x, *found = torch.ops.cellwright.recurrence_backward(
        given.output, given.states, given.trace, call.x, call.states, call.weights, call.streams,
        kept, call.signature.text, call.reverse, need_x, engine.name,
    )  # fmt: skip
    return [d_x if need_x else None, *found]
