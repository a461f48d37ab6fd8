"""What the drop-in replacements of ``torch.nn``'s recurrent modules share.

Their parameters are torch.nn's, by name, shape and order; :meth:`StandardStack.layer_weights`
says where the equations of a catalogue cell find them. The arithmetic is the cell's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cellwright.errors import InputError, InputTypeError
from cellwright.nn import layout
from cellwright.nn.stack import RecurrentStack
from cellwright.nn.state import check_dense

# Group of a cell's equations -> torch.nn's name of the tensor. The biases ("b") are made of two.
MATRICES = {"W": "weight_ih", "U": "weight_hh", "P": "weight_hr"}
NARROW = (torch.float32, torch.bfloat16, torch.float16)  # what torch.autocast acts on
FLOATING = (*NARROW, torch.float64)


class StandardStack(RecurrentStack):
    """Layers of a catalogue cell on parameters as torch.nn has them.

    torch.nn keeps two biases a gate, ``bias_ih`` and ``bias_hh``. The equations have their sum,
    save for the last gate of a GRU, whose two biases stay apart (``b.n`` and ``b.hn``).
    """

    # Inside torch.autocast: whether results are at least as wide as the state that enters, as
    # those of torch's GRU and cells on a CPU are, or always in autocast's dtype.
    keeps_width_of_state = False

    bias: Any

    def configure(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: Any,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: Any = False,
        proj_size: int = 0,
    ) -> None:
        """Everything but the parameters."""
        RecurrentStack.__init__(
            self, cell, input_size, hidden_size, num_layers, bidirectional=bool(bidirectional),
            batch_first=batch_first, dropout=dropout, recurrent_dropout=0.0, zoneout=0.0,
            layer_norm=False, heads=1, learn_initial_state=False, grad_clip=None,
            gradient="full", precision="fp32", save="gates",
            sizes={"projection": proj_size} if proj_size else None,
        )  # fmt: skip
        self.bias, self.bidirectional = bias, bidirectional
        self._stored = layout.arrange(self.cell.parameters)
        self._kinds = ["weight_ih", "weight_hh"]
        self._kinds += ["bias_ih", "bias_hh"] if bias else []
        self._kinds += ["weight_hr"] if proj_size else []
        self.weight_shapes = [self.stored_shapes(layer) for layer in range(num_layers)]

    # Parameters --------------------------------------------------------------------------

    def suffix(self, layer: int, direction: int) -> str:
        """What torch.nn adds to the name of a tensor of that layer and direction."""
        raise AssertionError("a subclass says how its tensors are named")

    def weight_names(self, layer: int, direction: int) -> list[str]:
        """Names of a layer's parameters in torch.nn's order."""
        suffix = self.suffix(layer, direction)
        return [name + suffix for name in self._kinds]

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Register the parameters in torch.nn's order, uninitialised."""
        _check_factory(device, dtype)
        for layer in range(self.num_layers):
            shapes = {
                MATRICES[each.name]: shape
                for each, shape in zip(self._stored, self.weight_shapes[layer], strict=True)
                if each.name in MATRICES
            }
            shapes["bias_ih"] = shapes["bias_hh"] = shapes["weight_ih"][:1]
            for direction in range(self.num_directions):
                suffix = self.suffix(layer, direction)
                for name in self.weight_names(layer, direction):
                    shape = shapes[name.removesuffix(suffix)]
                    tensor = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(name, nn.Parameter(tensor))

    def reset_parameters(self) -> None:
        """Draw all parameters again as torch.nn does: uniform in +-1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def stored(self) -> tuple[layout.Stored, ...]:
        """The tensors of one layer and what each holds."""
        return self._stored

    def reference_weight(self) -> Tensor:
        """A weight: its dtype and device are the layer's."""
        return self._held("weight_ih" + self.suffix(0, 0))

    def _held(self, name: str) -> Tensor:
        """A weight by its name, which may be computed from others."""
        found = self._parameters.get(name)
        weight: Tensor = getattr(self, name) if found is None else found
        return weight

    def weight_name(self, stored: layout.Stored, layer: int, direction: int) -> str:
        """torch.nn's name of a matrix, or of the two biases that are added."""
        suffix = self.suffix(layer, direction)
        matrix = MATRICES.get(stored.name)
        return f"bias_ih{suffix} with bias_hh{suffix}" if matrix is None else matrix + suffix

    def held(self, layer: int, direction: int) -> list[Tensor]:
        """The parameters of one layer and direction, in torch.nn's order."""
        suffix = self.suffix(layer, direction)
        return [self._held(name + suffix) for name in self._kinds]

    def weights_from(self, held: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the equations, of what is held; they may have an axis in front."""
        named = dict(zip(self._kinds, held, strict=True))
        return [
            named[MATRICES[each.name]] if each.name in MATRICES else self._biases(each, named)
            for each in self._stored
        ]

    def own_weights(self, layer: int) -> list[Tensor] | None:
        """A layer's weights, if they follow from its registered parameters; else None."""
        names = self.weight_names(layer, 0)
        if any(type(self._parameters.get(name)) is not nn.Parameter for name in names):
            return None
        self.check_sources(layer, 0)
        return self.layer_weights(layer, 0)

    def _biases(self, stored: layout.Stored, named: Mapping[str, Tensor]) -> Tensor:
        """The equations' biases, stacked, from torch.nn's two."""
        like = named["weight_ih"]
        units = like.shape[-2] // len(self._stored[0].members)
        if not self.bias:
            return like.new_zeros((*like.shape[:-2], units * len(stored.members)))
        one, two = named["bias_ih"], named["bias_hh"]
        added = 2 * one.shape[-1] - units * len(stored.members)
        if added == one.shape[-1]:
            return one + two
        parts = one[..., :added] + two[..., :added], one[..., added:], two[..., added:]
        return torch.cat(parts, dim=-1)

    # Checking ----------------------------------------------------------------------------

    def check_sources(self, layer: int, direction: int) -> None:
        """Raise :class:`InputError` for biases that cannot be added, or would be broadcast."""
        if not self.bias:
            return
        suffix, shape = self.suffix(layer, direction), self.weight_shapes[layer][0][:1]
        for name in ("bias_ih" + suffix, "bias_hh" + suffix):
            found = tuple(self._held(name).shape)
            if found != shape:
                raise InputError(f"{name}: expected shape {shape}, got {found}")

    def check_input(self, x: Any) -> Tensor:
        """``x`` in the layer's dtype, or an :class:`InputError`; shape is the caller's affair."""
        if not isinstance(x, Tensor):
            raise InputTypeError(f"input: expected a tensor, got {type(x).__name__}")
        return self._enter("input", x)

    def _enter(self, name: str, given: Tensor) -> Tensor:
        """``given`` in the layer's dtype: as it is, or inside torch.autocast converted."""
        check_dense(name, given)
        like = self.reference_weight()
        if given.device != like.device:
            raise InputError(f"{name}: the module is on {like.device}, {name} on {given.device}")
        if given.dtype == like.dtype:
            return given
        if self._autocast() is not None and given.dtype in NARROW:
            return given.to(like.dtype)
        raise InputError(
            f"{name}: expected {like.dtype} as the module's weights, got {given.dtype}; "
            f"convert one of them"
        )

    def read_hx(self, given: Any, lead: tuple[Any, ...], axes: str) -> list[Tensor]:
        """The state that a user gave, checked: a tensor (*lead, size) for each of the cell's.

        Args:
            given: a tensor, or a pair of them for an LSTM.
            lead: the axes before the units.
            axes: their meaning.
        """
        if len(self._state_names) == 1:
            labels, tensors = ["hx"], [given]
        else:
            labels = [f"hx[{i}] ({name})" for i, name in enumerate(self._state_names)]
            if not isinstance(given, (tuple, list)):
                raise InputTypeError(f"hx: expected a tuple (h, c), got {type(given).__name__}")
            if len(given) != 2:
                raise InputError(f"hx: expected two tensors (h, c), got {len(given)}")
            tensors = list(given)
        entered = []
        for label, each, size in zip(labels, tensors, self._state_sizes, strict=True):
            if not isinstance(each, Tensor):
                raise InputTypeError(f"{label}: expected a tensor, got {type(each).__name__}")
            check_dense(label, each)
            if tuple(each.shape) != (*lead, size):
                raise InputError(
                    f"{label}: expected shape {(*lead, size)} = {axes}, got {tuple(each.shape)}"
                )
            entered.append(self._enter(label, each))
        return entered

    # Autocast ----------------------------------------------------------------------------

    def _autocast(self) -> torch.dtype | None:
        """The dtype of torch.autocast, where it is on and acts on the module's weights."""
        if not torch._C._is_any_autocast_enabled():
            return None
        like = self.reference_weight()
        kind = like.device.type
        if like.dtype == torch.float64 or not torch.amp.is_autocast_available(kind):
            return None
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def run_layers(self, x: Tensor, *arguments: Any) -> Any:
        """As of every stack; torch.autocast is off, or it would reach the products inside."""
        if self._autocast() is None:
            return super().run_layers(x, *arguments)
        with torch.autocast(x.device.type, enabled=False):
            return super().run_layers(x, *arguments)

    def leave(self, entered: torch.dtype, hx: Any, results: Sequence[Tensor]) -> list[Tensor]:
        """``results`` in the dtype in which torch.nn returns them.

        Args:
            entered: dtype of the input that the user gave.
            hx: the state that the user gave, or None.
            results: output and states, in the dtype of the weights.
        """
        dtype = self._autocast()
        if dtype is None:
            return list(results)
        if self.keeps_width_of_state:
            if hx is not None:
                entered = (hx if isinstance(hx, Tensor) else hx[-1]).dtype
            dtype = torch.promote_types(dtype, entered)
        return [each.to(dtype) for each in results]


def whole_number(name: str, given: Any, *, least: int) -> int:
    """``given`` as an int; what has no ``__index__`` is a type error, as in torch.nn."""
    try:
        number = operator.index(given)
    except TypeError as error:
        raise InputTypeError(f"{name}: expected a whole number, got {given!r}") from error
    if number < least:
        raise InputError(f"{name}: expected at least {least}, got {number}")
    return number


def _check_factory(device: Any, dtype: Any) -> None:
    try:
        found = torch.empty(0, device=device, dtype=dtype).dtype
    except TypeError as error:
        raise InputTypeError(f"device or dtype: got device={device!r}, dtype={dtype!r}") from error
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device or dtype: {str(error).splitlines()[0]}") from error
    if found not in FLOATING:
        raise InputError(
            f"dtype: expected one of {', '.join(str(each) for each in FLOATING)}, got {found}"
        )
