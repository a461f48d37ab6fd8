"""The quick road of populations: a layer inside ``torch.func.vmap``, again and again.

As :mod:`.repeating`, for weights that are mapped, where no gradients are wanted and vmap is the
only transform.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellwright.engines import choice, transforms
from cellwright.engines.mapped import only_map
from cellwright.engines.protocol import Call
from cellwright.nn.repeating import Whole
from cellwright.nn.state import zeros

if TYPE_CHECKING:
    from cellwright.nn.stack import RecurrentStack


def prepare(layer: RecurrentStack, x: Tensor, states: Sequence[Any]) -> Whole | None:
    """Find out what calls like this one need; None where there is no quick road for them.

    What does not fit the layer is left to the ordinary road, which explains it.

    Args:
        layer: which is called without lengths, resets or a trace, on a batch.
        x: (T, B, input), or (B, T, input) where ``layer.batch_first``.
        states: (1, B, size) each; none of them for zeros.
    """
    turned, held = layer.batch_first, layer.held(0, 0)
    first = only_map([x, *states, *held])
    if first is None or layer.spatial or layer.num_layers > 1 or layer.bidirectional:
        return None
    steps, rows = x.shape[:2][::-1] if turned else x.shape[:2]
    dtype, device = held[0].dtype, x.device
    shapes = [(*x.shape[:2], layer.input_size), *((1, rows, size) for size in layer.state_sizes)]
    fits = all(
        each.shape == shape and each.dtype is dtype
        for each, shape in zip((x, *states), shapes, strict=False)
    )
    if not fits or 0 in (steps, rows, first.size) or choice.asked_for() is not None:
        return None
    signature = layer.signature(0, lengths=False, reset=False, trace=False)
    engine = choice.choose(signature, device, dtype).engine
    mapped_weights = any(dim is not None for dim in first.dims[1 + len(states) :])
    if not engine.fresh or signature.plan.graph.streams or not mapped_weights:
        return None
    if transforms.objection(engine, signature, [x, *states, *held]):
        return None
    layer.read_weights(0, 0, x)
    kinds, asked_for, forward = _kinds(first.dims, first.inside), choice.asked_for, engine.forward
    held_by, weights_from, count = layer.held, layer.weights_from, 1 + len(states)
    with first.interpreter.lower():
        alike = torch.zeros((), dtype=dtype, device=device)
        before = zeros(layer.state_sizes, (rows,), (), alike)
        before = [each.expand(first.size, *each.shape) for each in before]

    def run(
        x: Tensor, states: Sequence[Tensor], parameters: Iterable[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]] | None:
        now = only_map([x, *states, *held_by(0, 0)])
        if now is None or _kinds(now.dims, now.inside) != kinds or asked_for() is not None:
            return None
        if transforms.is_traced() or transforms.in_forward_mode():
            return None
        size = now.size
        with now.interpreter.lower():
            inside = [
                each if dim == 0
                else each.expand(size, *each.shape) if dim is None
                else each.movedim(dim, 0)
                for each, dim in zip(now.inside, now.dims, strict=True)
            ]  # fmt: skip
            x = inside[0].transpose(1, 2) if turned else inside[0]
            entering = [each.squeeze(1) for each in inside[1:count]] or before
            weights = weights_from(inside[count:])
            call = Call(signature, x, entering, weights, (), False, size)
            result = forward(call, keep=False)
            output = result.output.transpose(1, 2) if turned else result.output
            found = [output, *(each.unsqueeze(1) for each in result.states)]
        output, *after = now.results(found, [0] * len(found))
        return output, after

    return run


def _kinds(dims: Sequence[int | None], inside: Sequence[Tensor]) -> list[object]:
    """What tensors have to have in common with others in their place."""
    return [
        (dim, type(each), each.shape, each.dtype) for dim, each in zip(dims, inside, strict=True)
    ]
