"""``ConvRecurrent``: any cell with ``@`` read as a convolution over space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cellwright.errors import InputError
from cellwright.ir import Matrix
from cellwright.lang import CellSpec, ParameterSpec
from cellwright.nn import inputs
from cellwright.nn.cell_layer import CellLayer
from cellwright.nn.init import added_parameters


class ConvRecurrent(CellLayer):
    """Layers of any cell whose states are images: every ``@`` is a convolution.

    The equations are the cell's own; ``cellwright cells peephole_lstm`` shows those of the
    ConvLSTM (Shi et al. 2015), with ``@`` read as a convolution that keeps the size (zero
    padding) and ``V.i * c`` unit by unit.

    Args:
        cell: a cell, or the name of one: "peephole_lstm" makes a ConvLSTM, "gru_v1" a ConvGRU.
        input_size, hidden_size: channels of the input and of the states.
        kernel_size: of the convolutions, odd; one number or one a dimension.
        spatial: dimensions of space: 1, 2 or 3.
        peephole: "channel" (one weight a channel) or "position" (one a channel and position, as
            in the paper) for vectors that multiply a state.
        space: the extents of space, needed for ``peephole="position"`` only.
        recurrent_kernel_size: for convolutions over states; ``kernel_size`` by default.

    The other arguments are those of :class:`Recurrent`. Convolutions are torch's, whose last bits
    may depend on the batch, the number of steps and that of threads; steps give what the sequence
    gives to rounding.

    Shapes:
        x: (T, B, input_size, *space), or without B; y: (T, B, directions x hidden_size, *space).
        state: (layers x directions, B, hidden_size, *space) each.

    Raises:
        InputError: for any argument of the wrong size, dtype, device or value.

    Example:
        >>> import torch, cellwright as cw
        >>> layer = cw.nn.ConvRecurrent("peephole_lstm", 1, 4, kernel_size=3)
        >>> y, state = layer(torch.randn(5, 2, 1, 8, 8))
        >>> y.shape, state.c.shape
        (torch.Size([5, 2, 4, 8, 8]), torch.Size([1, 2, 4, 8, 8]))
    """

    kernel_size: tuple[int, ...]
    recurrent_kernel_size: tuple[int, ...]
    peephole: str
    space: tuple[int, ...] | None

    def __init__(
        self,
        cell: CellSpec | str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        kernel_size: int | Sequence[int] = 3,
        recurrent_kernel_size: int | Sequence[int] | None = None,
        spatial: int = 2,
        peephole: str = "channel",
        space: Sequence[int] | None = None,
        bidirectional: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Mapping[str, float] = 0.0,
        layer_norm: bool = False,
        heads: int = 1,
        learn_initial_state: bool = False,
        init: str = "default",
        grad_clip: float | None = None,
        gradient: str = "full",
        precision: str = "fp32",
        save: str = "gates",
        sizes: Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if spatial not in (1, 2, 3) or isinstance(spatial, bool):
            raise InputError(f"spatial: expected 1, 2 or 3 dimensions, got {spatial!r}")
        if peephole not in ("channel", "position"):
            raise InputError(f"peephole: expected 'channel' or 'position', got {peephole!r}")
        if (peephole == "position") != (space is not None):
            raise InputError(
                f"space: needed for peephole='position' and only there; "
                f"got peephole={peephole!r}, space={space!r}"
            )
        recurrent = kernel_size if recurrent_kernel_size is None else recurrent_kernel_size
        kernels = {
            "kernel_size": _extents("kernel_size", kernel_size, spatial),
            "recurrent_kernel_size": _extents("recurrent_kernel_size", recurrent, spatial),
        }
        for name, kernel in kernels.items():
            if any(extent % 2 == 0 for extent in kernel):
                raise InputError(f"{name}: expected odd numbers, so that sizes stay, got {kernel}")
        # Plain attributes may be set before nn.Module's constructor, and the shapes need them.
        self.__dict__.update(
            **kernels,
            spatial=spatial,
            peephole=peephole,
            space=None if space is None else _extents("space", space, spatial),
        )
        super().__init__(
            cell, input_size, hidden_size, num_layers, bidirectional=bidirectional,
            batch_first=batch_first, dropout=dropout, recurrent_dropout=recurrent_dropout,
            zoneout=zoneout, layer_norm=layer_norm, heads=heads,
            learn_initial_state=learn_initial_state, init=init, grad_clip=grad_clip,
            gradient=gradient, precision=precision, save=save, sizes=sizes,
            device=device, dtype=dtype,
        )  # fmt: skip

    @property
    def extra_defaults(self) -> Mapping[str, Any]:
        """Options of its own, which ``repr`` shows where they differ from these."""
        kernel = (3,) * self.spatial
        return {
            "kernel_size": kernel, "recurrent_kernel_size": self.kernel_size, "spatial": 2,
            "peephole": "channel", "space": None,
        }  # fmt: skip

    def parameter_shape(self, parameter: ParameterSpec, sizes: Mapping[str, int]) -> Sequence[int]:
        """The shape of one parameter of the equations, with kernel or positions."""
        shape = parameter.shape(sizes)
        if isinstance(parameter.type, Matrix):
            kernel = self.kernel_size if parameter.reads_input else self.recurrent_kernel_size
            return (*shape, *kernel)
        own = {each.name for each in self.cell.parameters}
        multiplies = parameter.name in own - added_parameters(self.cell)
        return (*shape, *self.space) if self.space and multiplies else shape

    @property
    def fan(self) -> int:
        """What the default initialisation divides by: hidden channels x kernel positions."""
        return self.hidden_size * math.prod(self.recurrent_kernel_size)

    def check_space(self, space: Sequence[int]) -> None:
        """Raise :class:`InputError` for positions that the layer was not made for."""
        if 0 in space:
            raise InputError(f"x: space is empty, got {tuple(space)}")
        if self.space is not None and tuple(space) != tuple(self.space):
            raise InputError(f"x: expected space {self.space} (space=), got {tuple(space)}")

    def initial_state(self, batch: int | None, space: Sequence[int]) -> Any:
        """The state before the first step: zeros, or the learnt one.

        Args:
            batch: number of sequences; None for an unbatched state.
            space: the extents of space.
        """
        inputs.check_batch(batch)
        return self._initial_state(batch, _extents("space", space, self.spatial))


def _extents(name: str, given: int | Sequence[int], spatial: int) -> tuple[int, ...]:
    extents = (given,) * spatial if isinstance(given, int) else tuple(given)
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in extents)
    if len(extents) != spatial or not whole or any(each < 1 for each in extents):
        raise InputError(f"{name}: expected {spatial} positive whole numbers, got {given!r}")
    return extents
