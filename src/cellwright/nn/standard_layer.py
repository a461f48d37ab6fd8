"""What the drop-in LSTM, GRU and RNN share: torch.nn's arguments and forms of calling."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling as is_compiling
from torch.nn.utils.rnn import PackedSequence

from cellwright.errors import InputError, InputTypeError
from cellwright.nn import masks
from cellwright.nn.packing import pack_like, unpack
from cellwright.nn.standard_base import StandardStack, whole_number
from cellwright.nn.state import zeros

CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "elman", "RNN_RELU": "elman_relu"}


class StandardLayer(StandardStack):
    """Layers of an LSTM, a GRU or an RNN over sequences, as torch.nn has them.

    ``mode`` is torch.nn's name for the kind: a key of ``CELLS``.
    """

    mode: str
    proj_size: int

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Any,
        dtype: Any,
    ):
        dropout = _check_dropout(dropout)
        for name, flag in (("bias", bias), ("batch_first", batch_first)):
            if not isinstance(flag, bool):
                raise InputTypeError(f"{name}: expected a bool, got {type(flag).__name__}")
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(size, int):
                raise InputTypeError(f"{name}: expected an int, got {type(size).__name__}")
        if isinstance(proj_size, bool):
            raise InputTypeError(f"proj_size: expected a whole number, got {proj_size}")
        input_size = whole_number("input_size", input_size, least=1)
        hidden_size = whole_number("hidden_size", hidden_size, least=1)
        num_layers = whole_number("num_layers", num_layers, least=1)
        proj_size = whole_number("proj_size", proj_size, least=0)
        if proj_size >= hidden_size:
            raise InputError(
                f"proj_size: has to be smaller than hidden_size, {hidden_size}; got {proj_size}"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout acts on the output of every layer but the last: with num_layers=1, "
                f"dropout={dropout} does nothing",
                stacklevel=3,
            )
        self.configure_layer(
            mode, input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, proj_size=proj_size,
        )  # fmt: skip
        self.make_parameters(device, dtype)
        self.reset_parameters()

    def configure_layer(self, mode: str, *sizes: int, proj_size: int, **options: Any) -> None:
        """Everything but the parameters, from checked arguments."""
        cell = "lstm_projection" if proj_size else CELLS[mode]
        self.configure(cell, *sizes, proj_size=proj_size, **options)
        self.mode, self.proj_size = mode, proj_size
        if mode.startswith("RNN"):
            self.nonlinearity = mode.removeprefix("RNN_").lower()

    def suffix(self, layer: int, direction: int) -> str:
        """``_l0``, ``_l0_reverse``."""
        return f"_l{layer}" + ("_reverse" if direction else "")

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, a list for each layer and direction."""
        return [
            [getattr(self, name) for name in self.weight_names(layer, direction)]
            for layer in range(self.num_layers)
            for direction in range(self.num_directions)
        ]

    def flatten_parameters(self) -> None:
        """Do nothing: there is no memory to rearrange. torch.nn's modules have this method."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Tensor | None = None,
        trace: bool = False,
    ) -> Any:
        """Run over whole sequences: ``output, hx``, and a third result with ``trace=True``."""
        if not (is_compiling() or trace):
            taken = self._quickly(input, hx) if lengths is None and reset is None else None
            if taken is not None:
                return taken
        packed = input if isinstance(input, PackedSequence) else None
        given: Any = input if packed is None else packed.data
        x = self.check_input(given)
        batched = True
        if packed is not None:
            if lengths is not None:
                raise InputError("lengths: a PackedSequence has its lengths inside; give one only")
            self._check_units(x, (2,), "(all steps, units)")
            x, lengths = unpack(packed._replace(data=x))
        else:
            axes = "(batch, steps, units)" if self.batch_first else "(steps, batch, units)"
            self._check_units(x, (2, 3), f"{axes}, or (steps, units) for one sequence")
            batched = x.dim() == 3
            x = x.transpose(0, 1) if batched and self.batch_first else x
            x = x if batched else x.unsqueeze(1)
        turned = self.batch_first and packed is None and batched
        steps, batch = x.shape[0], x.shape[1]
        if steps == 0:
            raise InputError("input: there are no steps; torch.nn needs at least one")
        before = self._state_before(hx, batch, batched=batched)
        if lengths is not None:
            if not batched:
                raise InputError("lengths: one sequence alone is whole; leave lengths out")
            lengths = masks.read_lengths(lengths, steps, batch, x.device)
        if reset is not None:
            reset = masks.read_reset(
                reset, steps, batch, x.device, batched=batched, batch_first=turned
            )
        y, ended, traced = self.run_layers(x, before, lengths, reset, bool(trace))
        if not batched:
            y, ended = y.squeeze(1), [each.squeeze(1) for each in ended]
            traced = {name: each.squeeze(2) for name, each in traced.items()}
        elif turned:
            y = y.transpose(0, 1)
            traced = {name: each.transpose(1, 2) for name, each in traced.items()}
        y, *ended = self.leave(given.dtype, hx, [y, *ended])
        output = y if packed is None else pack_like(y, lengths, packed)
        after = ended[0] if len(ended) == 1 else tuple(ended)
        return (output, after, traced) if trace else (output, after)

    def _quickly(self, x: Any, hx: Any) -> Any:
        """The result; None where there is no quick road."""
        if self._autocast() is not None:
            return None
        single = len(self._state_names) == 1
        taken: tuple[Tensor, Sequence[Tensor]] | None
        if hx is None:
            taken = self.quick_sequence(x, ())
        elif type(hx) is not Tensor if single else type(hx) is not tuple or len(hx) != 2:
            return None
        elif (
            type(x) is Tensor
            and x.dim() == 3
            and x.shape[1 if self.batch_first else 0] == 1
            and not is_grad_enabled()
        ):
            taken = self.quick_step(x, (hx,) if single else hx, x.shape[:2])
        else:
            taken = self.quick_sequence(x, (hx,) if single else hx)
        if taken is None:
            return None
        output, after = taken
        return output, after[0] if single else tuple(after)

    def _check_units(self, x: Tensor, axes: tuple[int, ...], meaning: str) -> None:
        if x.dim() not in axes:
            raise InputError(f"input: expected {meaning}, got shape {tuple(x.shape)}")
        if x.shape[-1] != self.input_size:
            raise InputError(
                f"input: expected {self.input_size} units (input_size) on the last axis, "
                f"got shape {tuple(x.shape)}"
            )

    def _state_before(self, hx: Any, batch: int, *, batched: bool) -> list[Tensor]:
        """The state before the first step, (layers x directions, batch, size) each."""
        count = self.num_layers * self.num_directions
        if hx is None:
            like = self.reference_weight()
            return zeros(self._state_sizes, (count, batch), (), like)
        if not batched:
            alone = self.read_hx(hx, (count,), "(layers x directions, size) for one sequence")
            return [each.unsqueeze(1) for each in alone]
        return self.read_hx(hx, (count, batch), "(layers x directions, batch, size)")

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        usual = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False,
                 "dropout": 0, "bidirectional": False}  # fmt: skip
        for name, default in usual.items():
            value = getattr(self, name)
            if value is not default and (isinstance(default, bool) or value != default):
                parts.append(f"{name}={value}")
        return ", ".join(parts)


def _check_dropout(given: Any) -> float:
    try:
        rate = float(given)
    except TypeError as error:
        raise InputTypeError(f"dropout: expected a number, got {given!r}") from error
    except ValueError as error:
        raise InputError(f"dropout: expected a number, got {given!r}") from error
    if isinstance(given, bool) or not isinstance(given, numbers.Number) or not 0 <= rate <= 1:
        raise InputError(f"dropout: expected a probability in [0, 1], got {given!r}")
    return rate
