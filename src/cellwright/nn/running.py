"""The call of a recurrent layer: its layers and directions, with the masks that they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cellwright.engines import Call, Result, Signature, run_stack
from cellwright.nn import masks

if TYPE_CHECKING:
    from cellwright.nn.stack import RecurrentStack

Results = tuple[Tensor, list[Tensor], dict[str, Tensor]]


def run(
    stack: RecurrentStack,
    x: Tensor,
    states: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    trace: bool,
) -> Results:
    """All layers over (T, B, input, *space).

    Args:
        stack: the layers.
        x: the checked input.
        states: (layers x directions, B, size, *space) each.
        lengths: (B,) or None.
        reset: (T, B) or None.
        trace: whether to return traced values.

    Returns:
        output (T, B, directions x size, *space); states as given; traces by name,
        (layers x directions, T, B, size, *space).
    """
    signatures = [
        stack.signature(layer, lengths=lengths is not None, reset=reset is not None, trace=trace)
        for layer in range(stack.num_layers)
    ]

    def call(layer: int, direction: int, x: Tensor) -> Call:
        signature, number = signatures[layer], layer * stack.num_directions + direction
        return Call(
            signature,
            x,
            [each[number] for each in states],
            stack.read_weights(layer, direction, x),
            _streams(stack, signature, x, lengths, reset, reverse=direction == 1),
            direction == 1,
        )

    way = stack.stacking(signatures, x)
    if way is not None:
        calls = [call(0, 0, x)]
        for layer in range(1, stack.num_layers):
            units = signatures[layer].size["input"]
            calls.append(call(layer, 0, x.new_empty(()).expand(*x.shape[:2], units)))
        results = run_stack(calls, way)
        return _gathered(signatures, results, results[-1].output)
    results = []
    for layer in range(stack.num_layers):
        found = stack.recur([call(layer, each, x) for each in range(stack.num_directions)], layer)
        results += found
        outputs = [each.output for each in found]
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        if stack.applies_dropout and layer < stack.num_layers - 1:
            x = nn.functional.dropout(x, stack.dropout)
    return _gathered(signatures, results, x)


def _gathered(
    signatures: Sequence[Signature], results: Sequence[Result], output: Tensor
) -> Results:
    """What layers and directions leave, as the user gets it."""
    names = list(signatures[0].plan.forward.trace)
    states = zip(*(each.states for each in results), strict=True)
    traces = zip(*(each.trace for each in results), strict=True)
    return (
        output,
        [_stacked(each) for each in states],
        {name: _stacked(each) for name, each in zip(names, traces, strict=True)},
    )


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(list(parts))


def _streams(
    stack: RecurrentStack,
    signature: Signature,
    x: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
) -> list[Tensor]:
    """The masks that a plan reads, in its order."""
    steps, batch, space = x.shape[0], x.shape[1], x.shape[3:]
    flat = (1,) * stack.spatial
    found = []
    for spec in signature.plan.graph.streams:
        kind, _, state = spec.name.partition(".")
        size = signature.size[spec.size]
        if kind == "active":
            assert lengths is not None
            mask = masks.active(lengths, steps)
            found.append(mask.reshape(*mask.shape, *flat))
        elif kind == "reset":
            assert reset is not None
            mask = masks.reset_for(reset, lengths, reverse=reverse)
            found.append(mask.reshape(*mask.shape, *flat))
        elif kind == "zoneout":
            rate = dict(stack.zoneout)[state]
            found.append(masks.keep_mask(rate, (steps, batch, size, *space), x))
        else:
            assert kind == "dropout", f"unknown stream {spec.name}"
            found.append(masks.dropout_mask(stack.recurrent_dropout, (batch, size, *flat), x))
    return found
