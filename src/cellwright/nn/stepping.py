"""The quick road of ``layer.step``: prepared steps, as long as nothing about them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellwright.engines import choice
from cellwright.engines.protocol import PreparedSteps

if TYPE_CHECKING:
    from cellwright.nn.cell_layer import CellLayer


class Stepper:
    """Prepared steps of a layer, and what has to be as it was for them to be right.

    Args:
        prepared: by the engine.
        parameters: all of the layer, which are compared by identity, place and version.
        tensors: x and the states, as a step takes them.
    """

    def __init__(
        self, prepared: PreparedSteps, parameters: Sequence[Tensor], tensors: Sequence[Tensor]
    ):
        self._prepared = prepared  # what its step reads stays as long as it does
        self._step = prepared.step
        self._parameters = [(each, each.data_ptr(), each._version) for each in parameters]
        self._alike = _comparison(tensors)
        self._shapes, self._dtype = [each.shape for each in tensors], tensors[0].dtype

    def step(
        self, x: Tensor, states: Sequence[Tensor], parameters: Iterable[Tensor | None]
    ) -> tuple[Tensor, Sequence[Tensor]] | None:
        """Output and states after the step; None if anything, ``parameters`` too, has changed."""
        for now, (then, place, version) in zip(parameters, self._parameters, strict=False):
            if now is not then or then._version != version or then.data_ptr() != place:
                return None
        if choice.is_asked_for():
            return None
        if not self._alike(x, *states) and not _are_plain((x, *states), self._shapes, self._dtype):
            return None
        return self._step(x, states)


def _comparison(tensors: Sequence[Tensor]) -> Callable[..., bool]:
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


def _are_plain(
    tensors: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> bool:
    """Whether tensors have these shapes and are contiguous, and nothing watches torch."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(
        type(each) is Tensor
        and each.shape == shape
        and each.dtype is dtype
        and each.is_cpu
        and each.is_contiguous()
        for each, shape in zip(tensors, shapes, strict=True)
    )


def prepare(layer: CellLayer, x_t: Any, state: Any) -> Stepper | None:
    """Make a layer's steps ready for states like these; None where that cannot be done.

    What does not fit the layer is left to the ordinary road, which explains it.
    """
    if layer.bidirectional or layer.spatial or not isinstance(x_t, Tensor) or x_t.dim() != 2:
        return None
    weights = [layer.layer_weights(number, 0) for number in range(layer.num_layers)]
    parameters = list(layer.own_parameters())
    if any(not any(each is own for own in parameters) for held in weights for each in held):
        return None  # a weight is computed from others at every call
    like = weights[0][0]
    rows = x_t.shape[0]
    shapes = [(layer.num_layers, rows, size) for size in layer.state_sizes]
    wanted = [(rows, layer.input_size), *shapes]
    tensors = [x_t, *state]
    if rows == 0 or like.dtype not in (torch.float32, torch.float64):
        return None
    if not _are_plain(tensors, wanted, like.dtype):
        return None
    signatures = [
        layer.signature(number, lengths=False, reset=False, trace=False)
        for number in range(layer.num_layers)
    ]
    engines = {choice.choose(each, like.device, like.dtype).engine.name for each in signatures}
    if len(engines) > 1 or not all(p.is_contiguous() for held in weights for p in held):
        return None
    prepared = choice.get(engines.pop()).stream(signatures, weights, rows, layer.state_sizes)
    if prepared is None:
        return None
    return Stepper(prepared, parameters, tensors)
