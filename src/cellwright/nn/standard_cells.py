"""``LSTMCell``, ``GRUCell`` and ``RNNCell`` as torch.nn has them: one step of a catalogue cell."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cellwright.errors import InputError
from cellwright.nn.standard import rnn_mode
from cellwright.nn.standard_base import StandardStack, whole_number
from cellwright.nn.standard_layer import CELLS
from cellwright.nn.state import zeros


class StandardCell(StandardStack):
    """What the three cells share: torch.nn's arguments and forms of calling."""

    keeps_width_of_state = True

    cell_name = ""  # of the catalogue

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        self._build(input_size, hidden_size, bias, None, device, dtype)

    def _build(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        nonlinearity: str | None,
        device: Any,
        dtype: Any,
    ) -> None:
        input_size = whole_number("input_size", input_size, least=0)
        hidden_size = whole_number("hidden_size", hidden_size, least=1)
        self.configure_cell(input_size, hidden_size, bias, nonlinearity)
        self.make_parameters(device, dtype)
        if not bias:
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        self.reset_parameters()

    def configure_cell(
        self, input_size: int, hidden_size: int, bias: Any, nonlinearity: str | None
    ) -> None:
        """Everything but the parameters, from checked arguments."""
        self.configure(self.cell_name, input_size, hidden_size, bias=bias)

    def suffix(self, layer: int, direction: int) -> str:
        """Nothing: there is one layer and one direction."""
        return ""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """One step: the state after it, (h, c) for an LSTM and h otherwise."""
        x = self.check_input(input)
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            raise InputError(
                f"input: expected shape (batch, {self.input_size}) or ({self.input_size},), "
                f"got {tuple(x.shape)}"
            )
        batched = x.dim() == 2
        rows = x if batched else x.unsqueeze(0)
        if hx is None:
            lead = (1, rows.shape[0])
            before = zeros(self._state_sizes, lead, (), self.reference_weight())
        elif batched:
            given = self.read_hx(hx, (x.shape[0],), "(batch, hidden_size)")
            before = [each.unsqueeze(0) for each in given]
        else:
            before = [each[None, None] for each in self.read_hx(hx, (), "(hidden_size,)")]
        _, ended, _ = self.run_layers(rows.unsqueeze(0), before, None, None, False)
        after = self.leave(input.dtype, hx, [each[0] if batched else each[0, 0] for each in ended])
        return after[0] if len(after) == 1 else tuple(after)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.bias is not True:
            parts.append(f"bias={self.bias}")
        if getattr(self, "nonlinearity", "tanh") != "tanh":
            parts.append(f"nonlinearity={self.nonlinearity}")
        return ", ".join(parts)


class LSTMCell(StandardCell):
    """``torch.nn.LSTMCell`` to the letter, run by cellwright.

    Equations and source: the cell "lstm" (in the shell ``cellwright cells lstm``), gates in
    torch's order i, f, g, o. Parameters, their names and initial values are torch.nn's.

    Args:
        input_size, hidden_size: units of the input and of the states.
        bias: whether there are biases.
        device, dtype: of the parameters.

    Shapes:
        input: (B, input_size), or (input_size,) for one sequence.
        hx: ``(h, c)``, each (B, hidden_size) or (hidden_size,); zero if left out. So the result.

    Raises:
        InputError: where torch.nn raises a ``ValueError`` or a ``RuntimeError``; it is both.
        InputTypeError: where torch.nn raises a ``TypeError``.

    Example:
        >>> import torch, cellwright as cw
        >>> cell = cw.nn.LSTMCell(3, 5)
        >>> h, c = cell(torch.randn(4, 3))
        >>> h, c = cell(torch.randn(4, 3), (h, c))
        >>> c.shape
        torch.Size([4, 5])
    """

    cell_name = "lstm"


class GRUCell(StandardCell):
    """``torch.nn.GRUCell`` to the letter, run by cellwright.

    Equations and source: the cell "gru" (in the shell ``cellwright cells gru``): the reset gate
    acts after the product, z keeps the old state, gates in torch's order r, z, n. Arguments and
    errors as for :class:`LSTMCell`; ``hx`` and the result are one tensor.

    Example:
        >>> import torch, cellwright as cw
        >>> cw.nn.GRUCell(3, 5)(torch.randn(4, 3)).shape
        torch.Size([4, 5])
    """

    cell_name = "gru"


class RNNCell(StandardCell):
    """``torch.nn.RNNCell`` to the letter, run by cellwright.

    Equations and source: the cell "elman", or "elman_relu" with ``nonlinearity="relu"`` (in the
    shell ``cellwright cells elman``). Arguments and errors as for :class:`LSTMCell`; ``hx`` and
    the result are one tensor. A ``nonlinearity`` that does not exist is an error at once, where
    torch.nn waits for the first call.

    Example:
        >>> import torch, cellwright as cw
        >>> cw.nn.RNNCell(3, 5, nonlinearity="relu")(torch.randn(4, 3)).shape
        torch.Size([4, 5])
    """

    keeps_width_of_state = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ):
        self._build(input_size, hidden_size, bias, nonlinearity, device, dtype)

    def configure_cell(
        self, input_size: int, hidden_size: int, bias: Any, nonlinearity: str | None
    ) -> None:
        """Everything but the parameters, from checked arguments."""
        self.configure(CELLS[rnn_mode(nonlinearity)], input_size, hidden_size, bias=bias)
        self.nonlinearity = nonlinearity
