"""The quick road of ``layer.step``: prepared steps, as long as nothing about them changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        x_shape, state_shapes: what a step takes.
    """

    def __init__(
        self,
        prepared: PreparedSteps,
        parameters: Sequence[Tensor],
        x_shape: torch.Size,
        state_shapes: Sequence[torch.Size],
    ):
        self._step = prepared.step
        self._parameters = [(each, each.data_ptr(), each._version) for each in parameters]
        self._dtype = parameters[0].dtype
        self._shapes = [x_shape, *state_shapes]

    def step(
        self, x: Tensor, states: Sequence[Tensor], parameters: Iterable[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]] | None:
        """Output and states after the step; None if anything, ``parameters`` too, has changed."""
        for now, (then, place, version) in zip(parameters, self._parameters, strict=False):
            if now is not then or then._version != version or then.data_ptr() != place:
                return None
        dtype = self._dtype
        for each, shape in zip((x, *states), self._shapes, strict=True):
            if (
                type(each) is not Tensor
                or each.shape != shape
                or each.dtype is not dtype
                or not each.is_contiguous()
                or not each.is_cpu
            ):
                return None
        return None if choice.is_asked_for() else self._step(x, states)


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
    shapes = [torch.Size((layer.num_layers, rows, size)) for size in layer.state_sizes]
    fitting = [each.shape for each in state] == shapes and x_t.shape[1] == layer.input_size
    if not fitting or rows == 0 or like.dtype not in (torch.float32, torch.float64):
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
    return Stepper(prepared, parameters, x_t.shape, shapes)
