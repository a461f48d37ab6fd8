"""The quick road of single steps: prepared ones, as long as nothing about them changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from cellwright.engines import choice, transforms
from cellwright.engines.protocol import PreparedSteps

if TYPE_CHECKING:
    from cellwright.nn.stack import RecurrentStack


Step = Callable[
    [Tensor, Sequence[Tensor], Iterable[Tensor | None]], tuple[Tensor, Sequence[Tensor]] | None
]
"""Output and states after a step of x, states and the layer's parameters as they are registered
now; None if anything has changed since the step was prepared."""


def _count_as_changed(optimiser: Optimizer, arguments: Any, keywords: Any) -> None:
    """Count what a fused optimiser does to weights as the change that it is.

    torch's other ways to change a tensor in place raise its version; its fused optimisers for
    the CPU do not (2.13), and prepared steps would go on with the weights of before.
    """
    for group in optimiser.param_groups:
        if group.get("fused"):
            for each in group["params"]:
                increment_version(each)


register_optimizer_step_post_hook(_count_as_changed)


def _guarded(
    prepared: PreparedSteps, parameters: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Step:
    """A prepared step that sees to it that everything is as it was.

    Args:
        prepared: by the engine.
        parameters: all of the layer, which are compared by identity, place and version.
        tensors: x and the states, as a step takes them.
    """
    remembered = [(each, each.data_ptr(), each._version) for each in parameters]
    shapes, dtype = [each.shape for each in tensors], tensors[0].dtype
    alike, run, asked_for = comparison(tensors), prepared.step, choice.asked_for

    def step(
        x: Tensor, states: Sequence[Tensor], parameters: Iterable[Tensor | None]
    ) -> tuple[Tensor, Sequence[Tensor]] | None:
        for now, (then, place, version) in zip(parameters, remembered, strict=False):
            if now is not then or then._version != version or then.data_ptr() != place:
                return None
        if asked_for() is not None or forward_ad._current_level >= 0:
            return None
        if not alike(x, *states):
            given = x, *states
            if not are_plain(given, shapes, dtype) or not _are_contiguous(given):
                return None
        return run(x, states)

    return step


def comparison(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """A quick test whether tensors are plain, and of the very shapes, strides and types of these.

    It also tells whether torch runs under the same modes and transforms as now. torch's compiler
    guards its programs with it.
    """
    sizes: Any = [list(each.shape) for each in tensors]  # torch's own stub has another type
    strides: Any = [list(each.stride()) for each in tensors]
    made = torch._C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    )
    found: Callable[..., bool] = made.check
    return found


def are_plain(
    tensors: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> bool:
    """Whether tensors have these shapes, and nothing watches torch."""
    if transforms.is_traced() or transforms.are_active():
        return False
    return all(
        type(each) is Tensor
        and each.layout is torch.strided
        and not each.is_nested
        and each.shape == shape
        and each.dtype is dtype
        and each.is_cpu
        for each, shape in zip(tensors, shapes, strict=True)
    )


def _are_contiguous(tensors: Iterable[Tensor]) -> bool:
    return all(each.is_contiguous() for each in tensors)


def prepare(
    layer: RecurrentStack, x: Tensor, states: Sequence[Any], lead: tuple[int, ...]
) -> Step | None:
    """Make a layer's steps ready for tensors like these; None where that cannot be done.

    What does not fit the layer is left to the ordinary road, which explains it.

    Args:
        layer: whose steps they are.
        x: (*lead, input), where ``lead`` multiplies to the batch.
        states: (layers, batch, size) each.
        lead: the axes of x and the output before the units.
    """
    if layer.bidirectional or layer.spatial:
        return None
    found = [layer.own_weights(number) for number in range(layer.num_layers)]
    weights = [each for each in found if each is not None]
    if len(weights) < layer.num_layers:
        return None
    dtype, rows = weights[0][0].dtype, math.prod(lead)
    shapes = [(layer.num_layers, rows, size) for size in layer.state_sizes]
    tensors = [x, *states]
    if rows == 0 or not are_plain(tensors, [(*lead, layer.input_size), *shapes], dtype):
        return None
    if not _are_contiguous(tensors):
        return None
    for number, held in enumerate(weights):
        layer.check_weights(held, number, 0, x)
    signatures = [
        layer.signature(number, lengths=False, reset=False, trace=False)
        for number in range(layer.num_layers)
    ]
    engines = {choice.choose(each, x.device, dtype).engine.name for each in signatures}
    parameters = [*layer.parameters(recurse=False)]
    lie_flat = _are_contiguous([*parameters, *(each for held in weights for each in held)])
    if len(engines) > 1 or not lie_flat:
        return None
    sizes = layer.state_sizes
    made = choice.get(engines.pop()).stream(signatures, weights, lead, sizes, parameters)
    return None if made is None else _guarded(made, parameters, tensors)
