"""What :class:`Recurrent` and :class:`ConvRecurrent` share: parameters and forms of calling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.compiler import is_dynamo_compiling as is_compiling
from torch.nn.utils.rnn import PackedSequence

from cellwright.errors import InputError
from cellwright.lang import CellSpec
from cellwright.nn import init as initialisation
from cellwright.nn import inputs, layout, masks
from cellwright.nn.packing import pack_like, unpack
from cellwright.nn.stack import RecurrentStack
from cellwright.nn.state import zeros
from cellwright.plan import StepOptions, layer_parameters, read_by_matrices

_tuple = tuple.__new__  # a named tuple of what is known to fit


class CellLayer(RecurrentStack):
    """Layers of any cell, with a parameter for each group of the equations.

    Values are (T, B, units, *space); ``space`` is empty where ``@`` is a matrix product.
    """

    def __init__(
        self,
        cell: CellSpec | str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **options: Any,
    ):
        super().__init__(cell, input_size, hidden_size, num_layers, **options)
        if self.recurrent_dropout and not read_by_matrices(self.cell):
            raise InputError(
                f"recurrent_dropout: no matrix of cell {self.cell.name} reads a state, "
                f"so there is nothing to drop"
            )
        self.init = init
        step = StepOptions(
            heads=self.heads,
            layer_norm=self.layer_norm,
            learn_initial_state=self.learn_initial_state,
        )
        self._parameter_specs = layer_parameters(self.cell, step)
        self._stored = layout.arrange(self._parameter_specs)
        self.weight_shapes = [self.stored_shapes(layer) for layer in range(num_layers)]
        for layer in range(num_layers):
            for direction in range(self.num_directions):
                for each, shape in zip(self._stored, self.weight_shapes[layer], strict=True):
                    tensor = torch.empty(shape, device=device, dtype=dtype)
                    if not tensor.is_floating_point():
                        raise InputError(f"dtype: expected a floating-point type, got {dtype}")
                    name = self._name(each.name, layer, direction)
                    self.register_parameter(name, nn.Parameter(tensor))
        self.reset_parameters()

    @property
    def fan(self) -> int:
        """What the default initialisation divides by: its bound is 1 / sqrt(fan)."""
        return self.hidden_size

    @staticmethod
    def _name(stored: str, layer: int, direction: int) -> str:
        return f"{stored}_l{layer}" + ("_reverse" if direction else "")

    def stored(self) -> tuple[layout.Stored, ...]:
        """The tensors of one layer and what each holds."""
        return self._stored

    def weight_name(self, stored: layout.Stored, layer: int, direction: int) -> str:
        """The name under which a tensor is registered."""
        return self._name(stored.name, layer, direction)

    def held(self, layer: int, direction: int) -> list[Tensor]:
        """The parameters of one layer and direction."""
        return [getattr(self, self._name(each.name, layer, direction)) for each in self._stored]

    def own_weights(self, layer: int) -> list[Tensor] | None:
        """A layer's weights, if they are registered parameters; else None."""
        held = self.layer_weights(layer, 0)
        own = [*self._parameters.values()]
        return held if all(any(each is one for one in own) for each in held) else None

    def parameter(self, name: str, layer: int = 0, direction: int = 0) -> Tensor:
        """The weight of one parameter of the equations, as a view that can be written to.

        Args:
            name: as in the equations: "U.f".
            layer, direction: of which layer; direction 1 runs from the end.

        Raises:
            InputError: if the cell has no such parameter, or the layer no such part.

        Example:
            >>> import torch, cellwright as cw
            >>> layer = cw.nn.Recurrent("lstm", input_size=3, hidden_size=5)
            >>> with torch.no_grad():
            ...     _ = layer.parameter("b.f").fill_(1.0)
            >>> layer.parameter("U.f").shape
            torch.Size([5, 5])
        """
        if not (0 <= layer < self.num_layers and 0 <= direction < self.num_directions):
            raise InputError(
                f"there are {self.num_layers} layers and {self.num_directions} directions, "
                f"got layer={layer}, direction={direction}"
            )
        for each in self._stored:
            tensor = getattr(self, self._name(each.name, layer, direction))
            rows = tensor.shape[0] // len(each.members)
            for index, member in enumerate(each.members):
                if member.name == name:
                    return tensor.narrow(0, index * rows, rows)
        known = ", ".join(member.name for each in self._stored for member in each.members)
        raise InputError(f"cell {self.cell.name} has no parameter {name!r}; it has {known}")

    def reset_parameters(self) -> None:
        """Draw all parameters again by the layer's ``init`` scheme."""
        for layer in range(self.num_layers):
            for direction in range(self.num_directions):
                members = [
                    (spec, self.parameter(spec.name, layer, direction).detach())
                    for spec in self._parameter_specs
                ]
                initialisation.initialise(self.cell, self.init, members, self.fan)

    def _initial_state(self, batch: int | None, space: Sequence[int]) -> Any:
        """The state before the first step: zeros, or the learnt one."""
        lead: tuple[int, ...] = (self.num_layers * self.num_directions,)
        if batch is not None:
            lead = (*lead, batch)
        if not self.learn_initial_state:
            like = self.reference_weight()
            return self._state_type(*zeros(self._state_sizes, lead, space, like))
        tensors = []
        for name in self._state_names:
            parts = [
                getattr(self, self._name(f"initial_{name}", layer, direction))
                for layer in range(self.num_layers)
                for direction in range(self.num_directions)
            ]
            stacked = torch.stack(parts)
            units = stacked.shape[-1]
            flat = stacked.reshape(-1, *(() if batch is None else (1,)), units, *[1] * len(space))
            tensors.append(flat.expand(*lead, units, *space))
        return self._state_type(*tensors)

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: Any = None,
        lengths: Any = None,
        reset: Tensor | None = None,
        trace: bool = False,
    ) -> Any:
        """Run over whole sequences: ``y, state`` or, with ``trace=True``, ``y, state, trace``."""
        if not (is_compiling() or trace):
            taken = self._quickly(x, state) if lengths is None and reset is None else None
            if taken is not None:
                return taken
        packed = x if isinstance(x, PackedSequence) else None
        if packed is not None:
            if lengths is not None:
                raise InputError("lengths: a PackedSequence has its lengths inside; give one only")
            x, lengths = unpack(packed)
        x = self.check_input(x)
        batched = inputs.is_batch(self, x)
        turned = self.batch_first and packed is None
        if not batched:
            x = x.unsqueeze(1)
        elif turned:
            x = x.transpose(0, 1)
        steps, batch = x.shape[0], x.shape[1]
        space = tuple(x.shape[3:])
        before = self._enter_state(state, batch if batched else None, space)
        if lengths is not None:
            if not batched:
                raise InputError("lengths: an unbatched x is one whole sequence; leave lengths out")
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
        output = y if packed is None else pack_like(y, lengths, packed)
        after = self._state_type(*ended)
        return (output, after, traced) if trace else (output, after)

    def _quickly(self, x: Any, state: Any) -> Any:
        """The result; None where there is no quick road."""
        if state is None:
            taken = None if self.learn_initial_state else self.quick_sequence(x, ())
        else:
            taken = self.quick_sequence(x, state) if type(state) is self._state_type else None
        return None if taken is None else (taken[0], _tuple(self._state_type, taken[1]))

    def step(self, x_t: Tensor, state: Any = None) -> Any:
        """One step: ``y_t, state``, with exactly the numbers of the whole sequence.

        Where no gradient is wanted (``torch.no_grad()``), weights are made ready once and used
        as long as they stay what they are. Of changes behind torch's back, through
        ``parameter.data`` or NumPy, those are noticed that reach one of about 64 elements of a
        tensor, evenly spread: to change a few, do so under ``torch.no_grad()`` instead.

        Args:
            x_t: (B, input_size), or (input_size,) unbatched.
            state: as the last step returned it; None before the first.
        """
        if type(state) is self._state_type and not is_grad_enabled() and not is_compiling():
            # Prepared steps have arguments that are filled in place: each thread has its own.
            prepared = self._steps.get(get_ident())
            if prepared is not None and not (self.training and self.draws()):
                taken = prepared(x_t, state, self._parameters.values())
                if taken is not None:
                    return taken[0], _tuple(self._state_type, taken[1])
            if isinstance(x_t, Tensor) and x_t.dim() == 2:
                taken = self.prepare_step(x_t, state, (x_t.shape[0],))
                if taken is not None:
                    return taken[0], _tuple(self._state_type, taken[1])
        if self.bidirectional:
            raise InputError("step: a bidirectional layer needs the whole sequence")
        x_t = inputs.in_dtype_of(self, x_t, "x_t")
        batched = inputs.is_batch_of_one_step(self, x_t)
        rows = x_t if batched else x_t.unsqueeze(0)
        space = tuple(rows.shape[2:])
        before = self._enter_state(state, rows.shape[0] if batched else None, space)
        y, ended, _ = self.run_layers(rows.unsqueeze(0), before, None, None, False)
        if batched:
            return y[0], self._state_type(*ended)
        return y[0, 0], self._state_type(*(each.squeeze(1) for each in ended))

    def check_input(self, x: Any) -> Tensor:
        """``x`` in the layer's dtype, or an :class:`InputError`; shape is the caller's affair."""
        return inputs.in_dtype_of(self, x)

    def check_space(self, space: Sequence[int]) -> None:
        """Raise :class:`InputError` for positions that the layer was not made for."""

    def _enter_state(self, state: Any, batch: int | None, space: tuple[int, ...]) -> list[Tensor]:
        """The given state (or the initial one), always with a batch axis."""
        if state is None:
            return list(self._initial_state(1 if batch is None else batch, space))
        return inputs.read_states(self, state, batch, space)

    @property
    def extra_defaults(self) -> Mapping[str, Any]:
        """Options of a subclass that ``repr`` shows where they differ from these."""
        return {}

    def extra_repr(self) -> str:
        parts = [self.cell.name, str(self.input_size), str(self.hidden_size)]
        defaults: dict[str, Any] = {
            "num_layers": 1, "bidirectional": False, "batch_first": False, "dropout": 0.0,
            "recurrent_dropout": 0.0, "zoneout": (), "layer_norm": False, "heads": 1,
            "learn_initial_state": False, "init": "default", "grad_clip": None,
            "gradient": "full", "precision": "fp32", "save": "gates", "sizes": {},
            **self.extra_defaults,
        }  # fmt: skip
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                shown = dict(value) if name == "zoneout" else value
                parts.append(f"{name}={shown!r}")
        return ", ".join(parts)
