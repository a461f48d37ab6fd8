"""Where a layer's weights lie, and whether they are what engines take them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from cellwright.errors import InputError
from cellwright.lang import CellSpec, ParameterSpec
from cellwright.nn import layout


class WeightHolder(nn.Module):
    """A module that holds the parameters of a cell's equations, layer by layer.

    Subclasses say with :meth:`held` and :meth:`weights_from` how the equations' parameters lie in
    the module's.
    """

    cell: CellSpec
    input_size: int
    hidden_size: int
    sizes: dict[str, int]
    weight_shapes: Sequence[Sequence[tuple[int, ...]]]  # of each layer's weights

    @property
    def output_size(self) -> int:
        """Units of the output of every step."""
        raise AssertionError("a subclass says how large its output is")

    # Where they lie ----------------------------------------------------------------------

    def held(self, layer: int, direction: int) -> list[Tensor]:
        """The parameters of one layer and direction."""
        raise AssertionError("a subclass says what its parameters are called")

    def weights_from(self, held: Sequence[Tensor]) -> list[Tensor]:
        """The tensors in which the equations' parameters lie, of what is held.

        All may have the same axes in front.
        """
        return [*held]

    def layer_weights(self, layer: int, direction: int) -> list[Tensor]:
        """The tensors that hold the equations' parameters of one layer and direction."""
        return self.weights_from(self.held(layer, direction))

    def stored(self) -> Sequence[layout.Stored]:
        """What :meth:`layer_weights` holds, tensor by tensor."""
        raise AssertionError("a subclass says how its weights lie")

    def weight_name(self, stored: layout.Stored, layer: int, direction: int) -> str:
        """What a user calls one of these tensors."""
        raise AssertionError("a subclass says how its tensors are named")

    def parameter_shape(self, parameter: ParameterSpec, sizes: Mapping[str, int]) -> Sequence[int]:
        """The shape of one parameter of the equations."""
        return parameter.shape(sizes)

    def stored_shapes(self, layer: int) -> list[tuple[int, ...]]:
        """The shapes of what :meth:`layer_weights` holds."""
        sizes, shapes = self.layer_sizes(layer), []
        for each in self.stored():
            rows, *rest = self.parameter_shape(each.members[0], sizes)
            shapes.append((rows * len(each.members), *rest))
        return shapes

    def own_weights(self, layer: int) -> list[Tensor] | None:
        """A layer's weights, if they follow from its registered parameters; else None.

        They do not where ``torch.nn.utils.parametrize`` computes them from others.
        """
        raise AssertionError("a subclass says how its weights lie")

    def reference_weight(self) -> Tensor:
        """A weight: its dtype and device are the layer's."""
        return self.layer_weights(0, 0)[0]

    def layer_sizes(self, layer: int) -> dict[str, int]:
        """Every size of that layer's cell as a number."""
        entering = self.input_size if layer == 0 else self.output_size
        return self.cell.resolve_sizes(entering, self.hidden_size, self.sizes)

    # Checking ----------------------------------------------------------------------------

    def read_weights(self, layer: int, direction: int, x: Tensor) -> list[Tensor]:
        """:meth:`layer_weights`, checked to go with ``x``."""
        self.check_sources(layer, direction)
        weights = self.layer_weights(layer, direction)
        self.check_weights(weights, layer, direction, x)
        return weights

    def check_sources(self, layer: int, direction: int) -> None:
        """Raise :class:`InputError` where :meth:`layer_weights` is computed from what is unfit."""

    def check_weights(
        self, weights: Sequence[Tensor], layer: int, direction: int, x: Tensor
    ) -> None:
        """Raise :class:`InputError` for weights that are not what engines take them for.

        They may have been replaced since the layer was made, and engines read memory by the
        layer's sizes.
        """
        shapes, dtype, device = self.weight_shapes[layer], x.dtype, x.device
        for number, (each, shape) in enumerate(zip(weights, shapes, strict=True)):
            if each.shape != shape or each.dtype != dtype or each.device != device:
                name = self.weight_name(self.stored()[number], layer, direction)
                raise InputError(
                    f"{name}: expected {dtype} of shape {shape} on {device}, "
                    f"got {each.dtype} of shape {tuple(each.shape)} on {each.device}"
                )
