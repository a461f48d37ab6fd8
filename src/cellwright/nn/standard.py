"""``LSTM``, ``GRU`` and ``RNN`` as torch.nn has them, computed from the catalogue's equations."""

from __future__ import annotations

from typing import Any

from cellwright.errors import InputError
from cellwright.nn.standard_layer import StandardLayer


class LSTM(StandardLayer):
    """``torch.nn.LSTM`` to the letter, run by cellwright.

    Equations and source: the cells "lstm" and, with ``proj_size``, "lstm_projection" (in the
    shell ``cellwright cells lstm``), gates in torch's order i, f, g, o. Constructor, calls,
    results, initial values for a seed and ``state_dict`` are those of ``torch.nn.LSTM``.

    Args:
        input_size, hidden_size: units of the input and of the states.
        num_layers: layers, each reading the output of the one below.
        bias: whether there are biases.
        batch_first: input and output are (B, T, units) instead of (T, B, units).
        dropout: probability, on the output of every layer but the last.
        bidirectional: also run from the end to the beginning; outputs are put side by side.
        proj_size: units of h, fewer than ``hidden_size``; 0 for no projection.
        device, dtype: of the parameters.

    Called as ``output, (h, c) = lstm(input, (h_0, c_0))``. Beyond torch.nn, by keyword:
    ``lengths`` (B,) from 0 to T; ``reset`` (T, B), or (B, T) with ``batch_first``, True where an
    episode begins; ``trace=True`` for a third result with every state and gate at every step,
    (layers x directions, T, B, units) each.

    Inside ``torch.autocast`` a narrower input is taken, the numbers are those of the weights'
    dtype, and results have the dtype in which torch.nn returns them.

    Shapes:
        input: (T, B, input_size), (T, input_size) for one sequence, or a ``PackedSequence``.
        output: (T, B, directions x size of h), or packed as the input is.
        h, c: (layers x directions, B, size), without B for one sequence.

    Raises:
        InputError: where torch.nn raises a ``ValueError`` or a ``RuntimeError``; it is both.
        InputTypeError: where torch.nn raises a ``TypeError``.

    Example:
        >>> import torch, cellwright as cw
        >>> lstm = cw.nn.LSTM(3, 5, num_layers=2)
        >>> output, (h, c) = lstm(torch.randn(7, 4, 3))
        >>> output.shape, c.shape
        (torch.Size([7, 4, 5]), torch.Size([2, 4, 5]))
        >>> output, (h, c), trace = lstm(torch.randn(7, 4, 3), trace=True)
        >>> trace["f"].shape
        torch.Size([2, 7, 4, 5])
        >>> same = torch.nn.LSTM(3, 5, num_layers=2).load_state_dict(lstm.state_dict())
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device, dtype,
        )  # fmt: skip


class GRU(StandardLayer):
    """``torch.nn.GRU`` to the letter, run by cellwright.

    Equations and source: the cell "gru" (in the shell ``cellwright cells gru``): the reset gate
    acts after the product, z keeps the old state, gates in torch's order r, z, n. Constructor,
    calls, results, initial values for a seed and ``state_dict`` are those of ``torch.nn.GRU``.

    Args: as for :class:`LSTM`, without ``proj_size``.

    Called as ``output, h = gru(input, h_0)``, and with ``lengths``, ``reset`` and ``trace`` as
    :class:`LSTM`; shapes and errors are as there.

    Example:
        >>> import torch, cellwright as cw
        >>> output, h = cw.nn.GRU(3, 5, bidirectional=True)(torch.randn(7, 4, 3))
        >>> output.shape, h.shape
        (torch.Size([7, 4, 10]), torch.Size([2, 4, 5]))
    """

    keeps_width_of_state = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: Any = None,
    ):
        _refuse_projection(proj_size)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, 0, device, dtype,
        )  # fmt: skip


class RNN(StandardLayer):
    """``torch.nn.RNN`` to the letter, run by cellwright.

    Equations and source: the cell "elman", or "elman_relu" with ``nonlinearity="relu"`` (in the
    shell ``cellwright cells elman``). Constructor, calls, results, initial values for a seed and
    ``state_dict`` are those of ``torch.nn.RNN``.

    Args: as for :class:`LSTM`, without ``proj_size``, and with ``nonlinearity``, "tanh" or
    "relu", in the fourth place.

    Called as ``output, h = rnn(input, h_0)``, and with ``lengths``, ``reset`` and ``trace`` as
    :class:`LSTM`; shapes and errors are as there.

    Example:
        >>> import torch, cellwright as cw
        >>> output, h = cw.nn.RNN(3, 5, nonlinearity="relu")(torch.randn(7, 4, 3))
        >>> output.shape, h.shape
        (torch.Size([7, 4, 5]), torch.Size([1, 4, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: Any = None,
    ):
        _refuse_projection(proj_size)
        super().__init__(
            rnn_mode(nonlinearity), input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, 0, device, dtype,
        )  # fmt: skip


def rnn_mode(nonlinearity: Any) -> str:
    """torch.nn's name for an RNN of that nonlinearity."""
    if not isinstance(nonlinearity, str) or nonlinearity not in ("tanh", "relu"):
        raise InputError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return f"RNN_{nonlinearity.upper()}"


def _refuse_projection(proj_size: Any) -> None:
    if proj_size is not None:
        raise InputError(f"proj_size: only an LSTM has a projection, got {proj_size!r}")
