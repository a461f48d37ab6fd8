"""A sequence in segments, for engines that keep all of a call or nothing.

Where a layer saves states or checkpoints only, such an engine runs its ordinary passes on one
segment after the other: forwards, to keep the states; and backwards, each segment after another
forward pass over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cellwright.engines.keeping import spacing
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result

Forward = Callable[[Call], Result]
"""An engine's forward pass that keeps what its backward pass reads."""

Backward = Callable[[Call, Sequence[Tensor], Cotangents], Gradients]


def forward(call: Call, run: Forward) -> Result:
    """Results of a call, and the states that its layer saves."""
    states = list(call.states)
    count = len(states)
    borders, parts = [states], []
    for inside in _segments(call):
        part = run(_part(call, inside, states))
        states = part.states
        borders.append(states)
        parts.append(Result(part.output, states, part.trace, part.kept[:count]))
    if call.reverse:
        parts.reverse()
    time = call.lead
    if call.signature.options.save == "checkpoints":
        kept = [torch.stack(every, time) for every in zip(*borders, strict=True)]
    else:
        kept = [torch.cat([part.kept[number] for part in parts], time) for number in range(count)]
    trace = [torch.cat(every, time) for every in zip(*(part.trace for part in parts), strict=True)]
    return Result(torch.cat([part.output for part in parts], time), states, trace, kept)


def backward(
    call: Call, kept: Sequence[Tensor], cotangents: Cotangents, run: Forward, gradient: Backward
) -> Gradients:
    """All gradients, from the states that were kept.

    Args:
        call: as it was given to the forward pass.
        kept: what :func:`forward` kept.
        cotangents: gradients of the loss with respect to the results.
        run, gradient: the engine's passes over one segment.
    """
    d_weights = [each.new_zeros(each.shape) for each in call.weights]
    d_states = list(cotangents.states)
    d_x: list[Tensor] = []
    for number, inside in reversed(list(enumerate(_segments(call)))):
        part = _part(call, inside, _states_before(call, kept, number))
        output, *trace = (
            _at(call, each, inside) for each in (cotangents.output, *cotangents.trace)
        )
        arriving = Cotangents(output, d_states, trace)
        found = gradient(part, run(part).kept, arriving)
        d_states = found.states
        # There are none where they are not asked for.
        for total, each in zip(d_weights, found.weights, strict=False):
            total += each
        if found.x is not None:
            d_x.append(found.x)
    if not call.reverse:
        d_x.reverse()
    return Gradients(torch.cat(d_x, call.lead) if d_x else None, d_states, d_weights)


def _segments(call: Call) -> list[slice]:
    """Steps of the segments, in the order of the loop."""
    steps = len(call.steps)
    size = spacing(steps)
    firsts = range(0, steps, size)
    if call.reverse:
        return [slice(max(steps - first - size, 0), steps - first) for first in firsts]
    return [slice(first, min(first + size, steps)) for first in firsts]


def _at(call: Call, value: Tensor, where: slice | int) -> Tensor:
    """Some steps of a value of every step, or one of them."""
    return value[(slice(None),) * call.lead + (where,)]


def _part(call: Call, inside: slice, states: Sequence[Tensor]) -> Call:
    """The call of one segment, of which everything is kept."""
    signature = call.signature
    usual = replace(signature, options=replace(signature.options, save="gates"))
    masks = zip(signature.plan.graph.streams, call.streams, strict=True)
    return replace(
        call,
        signature=usual,
        x=_at(call, call.x, inside),
        states=states,
        streams=[_at(call, mask, inside) if spec.per_step else mask for spec, mask in masks],
    )


def _states_before(call: Call, kept: Sequence[Tensor], number: int) -> Sequence[Tensor]:
    """The states before a segment."""
    if call.signature.options.save == "checkpoints":
        return [_at(call, each, number) for each in kept]
    if number == 0:
        return call.states
    first, steps = number * spacing(len(call.steps)), len(call.steps)
    return [_at(call, each, steps - first if call.reverse else first - 1) for each in kept]
