"""The recurrence under ``torch.func``: vmap and grad, in any order.

Two functions of autograd, the loop and its gradient, tell torch how they are mapped over an axis:

- the same weights for everyone: the axis becomes part of the batch, an ordinary call;
- weights of their own: the axis becomes the members of a population, one call for all of them.

Forward-mode derivatives, and engines that take no populations, go through plain torch operations
instead, which torch transforms by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
)
from torch.autograd import forward_ad
from torch.nn import Parameter

from cellwright.engines.mapped import Frame, Together, only_map
from cellwright.engines.protocol import Call, Cotangents, Engine, Result
from cellwright.engines.reference import differentiable
from cellwright.engines.signature import Signature
from cellwright.engines.tensors import own_precision, split


def are_active() -> bool:
    """Whether this runs inside a transform of ``torch.func``, or among dual numbers."""
    return bool(torch._C._are_functorch_transforms_active()) or in_forward_mode()


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents: inside ``torch.autograd.forward_ad.dual_level``."""
    return forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether a mode of torch's sees every operation."""
    traced = torch._C._get_tracing_state() is not None
    return bool(traced or torch._C._len_torch_dispatch_stack())


def objection(engine: Engine, signature: Signature, tensors: Sequence[Tensor]) -> str | None:
    """Why the engine cannot run inside the transforms that are active; None if it can."""
    kinds = {each.key() for each in get_interpreter_stack() or ()}
    if not engine.takes_populations(signature):
        return f"torch transforms those of engine {engine.name} by itself"
    if TransformType.Jvp in kinds or in_forward_mode():
        return "there are no forward-mode derivatives of its kernels"
    if kinds - {TransformType.Vmap, TransformType.Grad}:
        return "torch takes the program apart"
    if is_traced():
        return "torch is tracing the program"
    if any(type(_innermost(each)) not in (Tensor, Parameter) for each in tensors):
        return "there are tensors of a subclass"
    return None


def members(weights: Sequence[Tensor]) -> int | None:
    """How many sets of weights the active transforms stand for; None if all share theirs."""
    sizes: dict[int, int] = {}
    for each in weights:
        while is_functorch_wrapped_tensor(each):
            inner = get_unwrapped(each)
            if is_batchedtensor(each):
                sizes[maybe_get_level(each)] = inner.shape[maybe_get_bdim(each)]
            each = inner
    return math.prod(sizes.values()) if sizes else None


def run(call: Call, engine: Engine) -> Result:
    """Carry out a recurrence with an engine that has no objection."""
    tensors = [call.x, *call.states, *call.weights]
    kinds = {each.key() for each in get_interpreter_stack() or ()}
    keep = TransformType.Grad in kinds or (
        torch.is_grad_enabled() and any(_innermost(each).requires_grad for each in tensors)
    )
    frame = Frame(call.signature, engine, call.reverse, keep, len(call.weights))
    arguments = *tensors, *call.streams
    outputs = None if keep else _mapped_once(frame, arguments)
    if outputs is None:
        outputs = _Recurrence.apply(frame, *arguments)
    results = split(outputs, frame.results)
    return Result(results[0][0], results[1], results[2], [])


class _Info(NamedTuple):
    """What torch tells a function that is mapped."""

    batch_size: int


def _mapped_once(frame: Frame, arguments: Sequence[Tensor]) -> list[Tensor] | None:
    """Results under a single vmap and without gradients, or None elsewhere.

    The same as by torch's own way to a function's vmap, which takes longer than a small recurrence.
    """
    around = only_map(arguments)
    if around is None:
        return None
    dims = None, *around.dims
    with around.interpreter.lower():
        found = _Recurrence.vmap(_Info(around.size), dims, frame, *around.inside)
    return around.results(*found)


def _innermost(each: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(each):
        each = get_unwrapped(each)
    return each


class _Recurrence(torch.autograd.Function):
    """Arguments -> output, states, traces, and what the gradient needs."""

    @staticmethod
    def forward(frame: Frame, *arguments: Tensor) -> tuple[Tensor, ...]:
        call = frame.call(arguments)
        with own_precision(call.x):
            result = frame.engine.forward(call, keep=frame.keep)
        return (result.output, *result.states, *result.trace, *result.kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.frame, *arguments = inputs
        results = output[: sum(ctx.frame.results)]
        kept = output[len(results) :]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments, *kept)
        ctx.like = [(each.shape, each.dtype, each.device) for each in results]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        frame: Frame = ctx.frame
        cotangents = [
            torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
            for gradient, (shape, dtype, device) in zip(gradients, ctx.like, strict=False)
        ]  # and none for what was kept
        one, states, weights, streams = frame.arguments
        needed = ctx.needs_input_grad[1:]
        asked = replace(frame, need_x=needed[0], need_weights=any(needed[one + states :][:weights]))
        found = _Gradient.apply(asked, *cotangents, *ctx.saved_tensors)
        nothing = [None]
        return (
            None, *nothing * (not asked.need_x), *found,
            *nothing * (not asked.need_weights) * weights, *nothing * streams,
        )  # fmt: skip

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], frame: Frame, *arguments: Tensor
    ) -> tuple[tuple[Tensor, ...], Any]:
        together = Together(info.batch_size, frame, in_dims[1:])
        weights = split(together.dims, frame.arguments)[2]
        if frame.population is None and all(each is None for each in weights):
            outputs = _Recurrence.apply(frame, *together.rows(arguments, frame.argument_rows()))
            return together.rows_apart(outputs, frame.result_rows(), arguments[0])
        outputs = _Recurrence.apply(together.frame, *together.members(arguments))
        return together.members_apart(outputs)


class _Gradient(torch.autograd.Function):
    """Cotangents of results, arguments, what was kept -> the gradients that are needed."""

    @staticmethod
    def forward(frame: Frame, *tensors: Tensor) -> tuple[Tensor, ...]:
        cotangents, arguments, kept = _parts(frame, tensors)
        call = frame.call(arguments)
        (output,), states, trace = split(cotangents, frame.results)
        with own_precision(call.x):
            found = frame.engine.backward(
                call, kept, Cotangents(output, states, trace),
                need_x=frame.need_x, need_weights=frame.need_weights,
            )  # fmt: skip
        weights = found.weights if frame.need_weights else []
        return (*([] if found.x is None else [found.x]), *found.states, *weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.frame, *tensors = inputs
        cotangents, arguments, kept = _parts(ctx.frame, tensors)
        ctx.kept = len(kept)
        ctx.save_for_backward(*cotangents, *arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Second derivatives: those of the plain operations' own gradient."""
        frame: Frame = ctx.frame
        cotangents, arguments, _ = _parts(frame, ctx.saved_tensors)
        streams = split(arguments, frame.arguments)[3]
        variables = [*cotangents, *arguments[: len(arguments) - len(streams)]]

        def gradient(*given: Tensor) -> tuple[Tensor, ...]:
            return _plain_gradient(
                frame, given[: len(cotangents)], given[len(cotangents) :], streams
            )

        pull: Any = torch.func.vjp(gradient, *variables)[1]
        return (None, *pull(gradients), *[None] * (len(streams) + ctx.kept))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], frame: Frame, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], Any]:
        together = Together(info.batch_size, frame, in_dims[1:])
        _, arguments, kept = _parts(frame, together.dims)
        weights = split(arguments, frame.arguments)[2]
        alike = frame.population is None and all(each is None for each in weights)
        # What was kept would have to be repeated if it were shared.
        if alike and not frame.need_weights and None not in kept:
            axes = [*frame.result_rows()[: sum(frame.results)], *frame.argument_rows(),
                    *[1] * len(kept)]  # fmt: skip
            outputs = _Gradient.apply(frame, *together.rows(tensors, axes))
            return together.rows_apart(outputs, frame.gradient_rows(), tensors[0])
        outputs = _Gradient.apply(together.frame, *together.members(tensors))
        return together.members_apart(outputs)


def _parts(frame: Frame, tensors: Sequence[Any]) -> list[list[Any]]:
    """What a gradient takes: cotangents, arguments, and what was kept, if it is there."""
    counts = [sum(frame.results), sum(frame.arguments)]
    return split(tensors, [*counts, len(tensors) - sum(counts)])


def _plain_gradient(
    frame: Frame, cotangents: Sequence[Tensor], variables: Sequence[Tensor],
    streams: Sequence[Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    """What ``_Gradient`` computes, in torch's own operations."""
    one, states, _, _ = frame.arguments
    first = 0 if frame.need_x else one
    end = len(variables) if frame.need_weights else one + states

    def results(*wanted: Tensor) -> tuple[Tensor, ...]:
        return _plain(frame)(*variables[:first], *wanted, *variables[end:], *streams)

    pull: Any = torch.func.vjp(results, *variables[first:end])[1]
    return tuple(pull(tuple(cotangents)))


def _plain(frame: Frame) -> Callable[..., tuple[Tensor, ...]]:
    """Arguments -> output, states, traces in torch's own operations."""

    def alone(*arguments: Tensor) -> tuple[Tensor, ...]:
        call = replace(frame, population=None).call(arguments)
        with own_precision(call.x):
            result = differentiable(call)
        return (result.output, *result.states, *result.trace)

    return alone if frame.population is None else torch.func.vmap(alone)
