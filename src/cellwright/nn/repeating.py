"""The quick road of whole sequences that come again, with gradients or without.

What the ordinary road finds out about a call (which engine, which signature, that the tensors fit)
is found out once, and holds as long as nothing changes that it follows from. Weights are read anew
at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, is_grad_enabled
from torch.autograd import forward_ad

from cellwright.engines import choice, direct
from cellwright.engines.protocol import Call, Training
from cellwright.nn.state import zeros
from cellwright.nn.stepping import are_plain, comparison

if TYPE_CHECKING:
    from cellwright.nn.stack import RecurrentStack

Whole = Callable[
    [Tensor, Sequence[Tensor], Iterable[Tensor | None]], tuple[Tensor, list[Tensor]] | None
]
"""Output and states after a sequence, of x, the states (none of them for zeros) and the layer's
parameters as they are registered now; None if what was found out holds no longer."""


def prepare(layer: RecurrentStack, x: Tensor, states: Sequence[Tensor]) -> Whole | None:
    """Find out what calls like this one need; None where there is no quick road for them.

    What does not fit the layer is left to the ordinary road, which explains it.

    Args:
        layer: which is called without lengths, resets or a trace, on a batch.
        x: (T, B, input), or (B, T, input) where ``layer.batch_first``.
        states: (1, B, size) each; none of them for zeros.
    """
    if layer.spatial or layer.num_layers > 1 or layer.bidirectional:
        return None
    if choice.asked_for() is not None:
        return None
    steps, rows = x.shape[:2][::-1] if layer.batch_first else x.shape[:2]
    weights = layer.own_weights(0)
    if weights is None or steps == 0 or rows == 0:
        return None
    like, turned = weights[0], layer.batch_first
    shapes = [(1, rows, size) for size in layer.state_sizes][: len(states)]
    given = [x, *states]
    if not are_plain(given, [(*x.shape[:2], layer.input_size), *shapes], like.dtype):
        return None
    keep = is_grad_enabled()
    if keep and not any(each.requires_grad for each in [*given, *weights]):
        return None
    layer.check_weights(weights, 0, 0, x)
    signature = layer.signature(0, lengths=False, reset=False, trace=False)
    engine = choice.choose(signature, x.device, x.dtype).engine
    if not engine.fresh or signature.plan.graph.streams:
        return None
    before = zeros(layer.state_sizes, (1, rows), (), like)
    if keep and not direct.is_possible(Call(signature, x, before, weights, (), False)):
        return None
    remembered = [*layer.parameters(recurse=False)]
    alike, asked_for = comparison([*given, *remembered]), choice.asked_for
    weights_now, forward = partial(layer.weights_from, layer.held(0, 0)), engine.forward
    ready: Training | None = None

    def run(
        x: Tensor, states: Sequence[Tensor], parameters: Iterable[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]] | None:
        nonlocal ready
        for now, then in zip(parameters, remembered, strict=False):
            if now is not then:
                return None
        if asked_for() is not None or not alike(x, *states, *remembered):
            return None
        if forward_ad._current_level >= 0:  # no part of a tensor's kind, so alike does not tell
            return None
        if turned:
            x = x.transpose(0, 1)
        entering, weights = states or before, weights_now()
        if keep:
            if ready is None or not ready.holds() or direct.are_stored():
                call = Call(signature, x, entering, weights, (), False)
                ready = direct.training(call, engine, stacked=True)
            if ready is not None:
                output, *after = direct.again(ready, x, *entering, *weights)
                return output.transpose(0, 1) if turned else output, after
        call = Call(signature, x, [each[0] for each in entering], weights, (), False)
        result = direct.run(call, engine, keep=True) if keep else forward(call, keep=False)
        output = result.output.transpose(0, 1) if turned else result.output
        return output, [each.unsqueeze(0) for each in result.states]

    return run
