"""The recurrence as an operator of torch.

Two operators, the loop and its gradient, stand between the layers and the engines. Each is
one node for ``torch.compile`` and ``torch.export``, whatever the number of steps. Second
derivatives go through plain torch operations instead
(:func:`cellwright.engines.reference.differentiable`), which torch differentiates itself. What
happens under ``torch.func`` is in :mod:`cellwright.engines.transforms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cellwright.engines import beside, choice, direct, stacked, transforms
from cellwright.engines.keeping import kept_steps
from cellwright.engines.protocol import Call, Cotangents, Engine, Result, SideBySide
from cellwright.engines.reference import differentiable
from cellwright.engines.signature import Signature, parse
from cellwright.engines.tensors import own_precision, separate, split
from cellwright.ir import Node

AT_RUN_TIME = ""


def _engine(call: Call, name: str) -> Engine:
    """The engine of that name, or the one that suits the call's tensors."""
    if name != AT_RUN_TIME:
        return choice.get(name)
    return choice.choose(call.signature, call.x.device, call.x.dtype).engine


@torch.library.custom_op("cellwright::recurrence", mutates_args=())
def _recurrence(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    streams: Sequence[Tensor],
    signature: str,
    reverse: bool,
    keep: bool,
    engine: str,
) -> list[Tensor]:
    call = Call(parse(signature), x, states, weights, streams, reverse)
    with own_precision(x):
        result = _engine(call, engine).forward(call, keep=keep)
    outputs = [result.output, *result.states, *result.trace, *result.kept]
    return separate(outputs, [x, *states, *weights, *streams])


@_recurrence.register_fake
def _(x, states, weights, streams, signature, reverse, keep, engine):
    parsed = parse(signature)
    forward, size = parsed.plan.forward, parsed.size
    steps, rows, space = x.shape[0], x.shape[1], x.shape[3:]
    names = [each.name for each in parsed.plan.graph.states]

    def sequence(node: Node, steps: int = steps) -> Tensor:
        dtype = torch.bool if node.vector.boolean else x.dtype
        return x.new_empty((steps, rows, size[node.size], *space), dtype=dtype)

    save = parsed.options.save
    kept = [sequence(forward.next[name], kept_steps(save, steps)) for name in names if keep]
    if keep and save == "gates":
        saved = (*forward.saved.values(), *forward.saved_inputs.values())
        kept += [sequence(each) for each in saved]
    return [
        sequence(forward.output),
        *(each.new_empty(each.shape) for each in states),
        *(sequence(each) for each in forward.trace.values()),
        *kept,
    ]


@torch.library.custom_op("cellwright::recurrence_backward", mutates_args=())
def _recurrence_backward(
    d_output: Tensor,
    d_states: Sequence[Tensor],
    d_trace: Sequence[Tensor],
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    streams: Sequence[Tensor],
    kept: Sequence[Tensor],
    signature: str,
    reverse: bool,
    need_x: bool,
    engine: str,
) -> list[Tensor]:
    call = Call(parse(signature), x, states, weights, streams, reverse)
    cotangents = Cotangents(d_output, d_states, d_trace)
    with own_precision(x):
        found = _engine(call, engine).backward(call, kept, cotangents, need_x=need_x)
    d_x = x.new_empty(0) if found.x is None else found.x
    inputs = [d_output, *d_states, *d_trace, x, *states, *weights, *streams, *kept]
    return separate([d_x, *found.states, *found.weights], inputs)


@_recurrence_backward.register_fake
def _(d_output, d_states, d_trace, x, states, weights, streams, kept,
      signature, reverse, need_x, engine):  # fmt: skip
    d_x = x.new_empty(x.shape if need_x else 0)
    return [d_x, *(each.new_empty(each.shape) for each in (*states, *weights))]


def _remember_forward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, states, weights, streams, signature, reverse, _, engine = inputs
    plan = parse(signature).plan
    results = 1 + len(states) + len(plan.forward.trace)
    ctx.counts = [len(states), len(weights), len(streams), len(output) - results]
    ctx.call = signature, reverse, engine
    ctx.results = results
    ctx.need_x = x.requires_grad
    ctx.save_for_backward(x, *states, *weights, *streams, *output[results:])
    ctx.like = [(each.shape, each.dtype, each.device) for each in output[:results]]


def _differentiate_forward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    states, weights, streams, kept = split(rest, ctx.counts)
    given = [
        torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
        for gradient, (shape, dtype, device) in zip(gradients[: ctx.results], ctx.like, strict=True)
    ]
    signature, reverse, engine = ctx.call
    d_output, d_states, d_trace = given[0], given[1 : 1 + len(states)], given[1 + len(states) :]
    d_x, *found = torch.ops.cellwright.recurrence_backward(
        d_output, d_states, d_trace, x, states, weights, streams, kept,
        signature, reverse, ctx.need_x, engine,
    )  # fmt: skip
    d_before, d_weights = split(found, [len(states), len(weights)])
    nothing = [None] * len(streams)
    return d_x if ctx.need_x else None, d_before, d_weights, nothing, None, None, None, None


_recurrence.register_autograd(_differentiate_forward, setup_context=_remember_forward)


def _remember_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    d_output, d_states, d_trace, x, states, weights, streams, kept = inputs[:8]
    ctx.signature, ctx.reverse, ctx.need_x = inputs[8:11]
    ctx.counts = [1, len(d_states), len(d_trace), 1, len(states), len(weights), len(streams)]
    ctx.kept = len(kept)
    ctx.save_for_backward(d_output, *d_states, *d_trace, x, *states, *weights, *streams)


def _differentiate_backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    """Second derivatives: the forward pass again, with torch's autograd twice over it.

    All of it is recorded where autograd asks for it, so derivatives of any order follow.
    """
    further = torch.is_grad_enabled()
    parts = split(ctx.saved_tensors, ctx.counts)
    with torch.enable_grad():
        # Variables of their own: one may have been computed from another outside.
        given = [[_variable(each) for each in part] for part in parts[:6]]
        (d_output,), d_states, d_trace, (x,), states, weights = given
        result = _plain(Call(parse(ctx.signature), x, states, weights, parts[6], ctx.reverse))
        results = [result.output, *result.states, *result.trace]
        wanted = [*([x] if ctx.need_x else []), *states, *weights]
        found = torch.autograd.grad(
            results, wanted, [d_output, *d_states, *d_trace], create_graph=True,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        arriving = gradients if ctx.need_x else gradients[1:]
        pairs = [
            (value, gradient)
            for value, gradient in zip(found, arriving, strict=True)
            if value.requires_grad and gradient is not None
        ]
        flat = [each for part in given for each in part]
        second = torch.autograd.grad(
            [value for value, _ in pairs], flat, [gradient for _, gradient in pairs],
            create_graph=further, allow_unused=True,
        )  # fmt: skip
    (d2_output,), d2_states, d2_trace, (d2_x,), d2_before, d2_weights = split(
        second, ctx.counts[:6]
    )
    streams, kept = [None] * ctx.counts[6], [None] * ctx.kept
    return (
        d2_output, d2_states, d2_trace, d2_x, d2_before, d2_weights, streams, kept,
        None, None, None, None,
    )  # fmt: skip


def _variable(given: Tensor) -> Tensor:
    """``given`` as a variable that gradients are taken with respect to, by itself."""
    return given.view_as(given) if given.requires_grad else given.detach().requires_grad_()


_recurrence_backward.register_autograd(_differentiate_backward, setup_context=_remember_backward)


def _plain(call: Call) -> Result:
    """The recurrence in torch's own operations, in the dtype of its tensors."""
    with own_precision(call.x):
        return differentiable(call)


def _is_recorded() -> bool:
    """Whether this becomes part of a program: one that torch compiles, exports or traces."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def run(call: Call) -> Result:
    """Carry out a recurrence so that torch can differentiate, compile and export it."""
    recorded = _is_recorded()
    if not recorded and transforms.are_active():
        engine = _engine(call, AT_RUN_TIME)
        every = [call.x, *call.states, *call.weights, *call.streams]
        if transforms.objection(engine, call.signature, every):
            return _plain(call)
        return transforms.run(call, engine)
    keep = _keep([call])
    # Inside a compiled program the engine is chosen when it runs, not when it is traced.
    chosen = AT_RUN_TIME
    if not recorded:
        engine = _engine(call, AT_RUN_TIME)
        if direct.is_possible(call):
            return direct.run(call, engine, keep=keep)
        chosen = engine.name
    outputs = torch.ops.cellwright.recurrence(
        call.x, list(call.states), list(call.weights), list(call.streams),
        call.signature.text, call.reverse, keep, chosen,
    )  # fmt: skip
    states = len(call.states)
    trace = len(call.signature.plan.forward.trace)
    (output,), after, traced = split(outputs, [1, states, trace])
    return Result(output, after, traced, [])


def run_all(calls: Sequence[Call]) -> list[Result]:
    """Carry out the directions of a layer: side by side where that is faster."""
    first = calls[0]
    if len(calls) > 1 and not _is_recorded() and not transforms.are_active():
        engine = _engine(first, AT_RUN_TIME)
        keep = _keep(calls)
        way = engine.side_by_side(first.signature, first.x, keep=keep)
        if way is not None and all(map(direct.is_possible, calls)):
            return beside.run(calls, way, engine, keep=keep)
    return [run(call) for call in calls]


def stacking(signatures: Sequence[Signature], x: Tensor, *, keep: bool) -> SideBySide | None:
    """How the layers of a stack are carried out at the same time; None if they are not.

    Args:
        signatures: of the layers, which differ in their sizes only.
        x: of the first one; only its shape, dtype and device are read.
        keep: whether gradients are wanted.
    """
    if _is_recorded() or transforms.are_active():
        return None
    engine = choice.choose(signatures[0], x.device, x.dtype).engine
    return engine.stacked(signatures, x, keep=keep)


def run_stack(calls: Sequence[Call], way: SideBySide) -> list[Result]:
    """Carry out the layers of a stack at the same time.

    Args:
        calls: from the first layer; x of the others has the shape only.
        way: as :func:`stacking` has found it.
    """
    if all(map(direct.is_possible, calls)):
        engine = _engine(calls[0], AT_RUN_TIME)
        return stacked.run(calls, way, engine, keep=_keep(calls))
    found = [run(calls[0])]
    for call in calls[1:]:
        found.append(run(replace(call, x=found[-1].output)))
    return found


def _keep(calls: Sequence[Call]) -> bool:
    """Whether gradients are wanted of some of them, or may be of a program that is traced."""
    if torch._C._get_tracing_state() is not None:
        return True
    tensors = (each for call in calls for each in (call.x, *call.states, *call.weights))
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
