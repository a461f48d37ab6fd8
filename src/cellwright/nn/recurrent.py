"""``Recurrent``: a layer for any cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cellwright.errors import InputError
from cellwright.lang import CellSpec
from cellwright.nn import init as initialisation
from cellwright.nn import layout, masks
from cellwright.nn.stack import RecurrentStack, pack_like, unpack
from cellwright.nn.state import zeros
from cellwright.plan import StepOptions, layer_parameters


class Recurrent(RecurrentStack):
    """One or more layers of any cell, over whole sequences or step by step.

    Args:
        cell: a cell made with ``@cellwright.cell``, or the name of one of the catalogue.
        input_size: units of ``x``.
        hidden_size: units of the states.
        num_layers: layers, each reading the output of the one below.
        bidirectional: also run from the end to the beginning; outputs are put side by side.
        batch_first: ``x`` and ``y`` are (B, T, units) instead of (T, B, units).
        dropout: probability, on the output of every layer but the last.
        recurrent_dropout: probability, on what recurrent matrices read, with one mask a
            sequence (Gal & Ghahramani 2016).
        zoneout: probability that a unit keeps its old value (Krueger et al. 2017), for all
            states or by name, as ``{"h": 0.05, "c": 0.5}``.
        layer_norm: normalise every product ``W @ x`` and ``U @ h`` over its units, with a gain
            of its own (Ba, Kiros & Hinton 2016).
        heads: blocks on the diagonal of every recurrent matrix.
        learn_initial_state: the state before the first step is a parameter.
        init: "default", "orthogonal", "forget_bias:1", "chrono:T", or several joined by "+".
        grad_clip: limit of each component of the gradient that flows back into a state, at
            every step.
        precision: "fp32", or "bf16" for products of bfloat16 numbers with float32 sums.
        sizes: numbers for the cell's other sizes, as ``{"projection": 32}``.
        device, dtype: of the parameters.

    Shapes:
        x: (T, B, input_size), or (T, input_size) unbatched, or a ``PackedSequence``.
        y: (T, B, directions x size of the first state).
        state: a named tuple with (layers x directions, B, size) for each state.
        lengths: (B,) whole numbers from 0 to T. Beyond its length a sequence's ``y`` is zero
            and its state stays as it is.
        reset: (T, B) booleans; where True, an episode begins and the state starts afresh.
        trace: every state and every watched value: (layers x directions, T, B, size).

    Raises:
        InputError: for any argument of the wrong size, dtype, device or value.

    Example:
        >>> import torch, cellwright as cw
        >>> layer = cw.nn.Recurrent("peephole_lstm", input_size=3, hidden_size=5, num_layers=2)
        >>> y, state, trace = layer(torch.randn(7, 4, 3), trace=True)
        >>> y.shape, state.c.shape, trace["f"].shape
        (torch.Size([7, 4, 5]), torch.Size([2, 4, 5]), torch.Size([2, 7, 4, 5]))
        >>> state = layer.initial_state(batch=4)
        >>> y_t, state = layer.step(torch.randn(4, 3), state)
        >>> y_t.shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        cell: CellSpec | str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
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
        precision: str = "fp32",
        sizes: Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            cell, input_size, hidden_size, num_layers, bidirectional=bidirectional,
            batch_first=batch_first, dropout=dropout, recurrent_dropout=recurrent_dropout,
            zoneout=zoneout, layer_norm=layer_norm, heads=heads,
            learn_initial_state=learn_initial_state, grad_clip=grad_clip, precision=precision,
            sizes=sizes,
        )  # fmt: skip
        if recurrent_dropout and not self.uses_recurrent_dropout():
            raise InputError(
                f"recurrent_dropout: no matrix of cell {self.cell.name} reads a state, "
                f"so there is nothing to drop"
            )
        self.init = init
        options = StepOptions(
            heads=heads, layer_norm=layer_norm, learn_initial_state=learn_initial_state
        )
        self._parameter_specs = layer_parameters(self.cell, options)
        self._stored = layout.arrange(self._parameter_specs)
        for layer in range(num_layers):
            sizes_here = self.layer_sizes(layer)
            for direction in range(self.num_directions):
                for each in self._stored:
                    rows, *rest = each.members[0].shape(sizes_here)
                    tensor = torch.empty(
                        (rows * len(each.members), *rest), device=device, dtype=dtype
                    )
                    if not tensor.is_floating_point():
                        raise InputError(f"dtype: expected a floating-point type, got {dtype}")
                    name = self._name(each.name, layer, direction)
                    self.register_parameter(name, nn.Parameter(tensor))
        self.reset_parameters()

    @staticmethod
    def _name(stored: str, layer: int, direction: int) -> str:
        return f"{stored}_l{layer}" + ("_reverse" if direction else "")

    def stored(self) -> tuple[layout.Stored, ...]:
        """The tensors of one layer and what each holds."""
        return self._stored

    def layer_weights(self, layer: int, direction: int) -> list[Tensor]:
        """The tensors that hold the parameters of one layer and direction."""
        return [getattr(self, self._name(each.name, layer, direction)) for each in self._stored]

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
                initialisation.initialise(self.cell, self.init, members, self.hidden_size)

    def initial_state(self, batch: int | None = None) -> Any:
        """The state before the first step: zeros, or the learnt one.

        Args:
            batch: number of sequences; None for an unbatched state.
        """
        lead = (self.num_layers * self.num_directions,)
        if batch is not None:
            if isinstance(batch, bool) or not isinstance(batch, (int, torch.SymInt)) or batch < 1:
                raise InputError(f"batch: expected a positive whole number, got {batch!r}")
            lead = (*lead, batch)
        if not self.learn_initial_state:
            like = self.reference_weight()
            return self._state_type(*zeros(self._state_names, self._state_sizes, lead, (), like))
        tensors = []
        for name in self._state_names:
            parts = [
                getattr(self, self._name(f"initial_{name}", layer, direction))
                for layer in range(self.num_layers)
                for direction in range(self.num_directions)
            ]
            stacked = torch.stack(parts)
            tensors.append(
                stacked if batch is None else stacked[:, None].expand(*lead, stacked.shape[-1])
            )
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
        packed = x if isinstance(x, PackedSequence) else None
        if packed is not None:
            if lengths is not None:
                raise InputError("lengths: a PackedSequence has its lengths inside; give one only")
            x, lengths = unpack(packed)
        x = self.check_input(x)
        batched = self._check_shape(x)
        turned = self.batch_first and packed is None
        if not batched:
            x = x.unsqueeze(1)
        elif turned:
            x = x.transpose(0, 1)
        steps, batch = x.shape[0], x.shape[1]
        before = self._enter_state(state, batch if batched else None)
        if lengths is not None:
            if not batched:
                raise InputError("lengths: an unbatched x is one whole sequence; leave lengths out")
            lengths = masks.read_lengths(lengths, steps, batch, x.device)
        if reset is not None:
            reset = self._enter_reset(reset, steps, batch, batched, turned, x.device)
        y, ended, traced = self.run_layers(x, before, lengths, reset, bool(trace))
        if not batched:
            y, ended = y.squeeze(1), [each.squeeze(1) for each in ended]
            traced = {name: each.squeeze(2) for name, each in traced.items()}
        elif turned:
            y = y.transpose(0, 1)
            traced = {name: each.transpose(1, 2) for name, each in traced.items()}
        if packed is not None:
            y = pack_like(y, lengths, packed)
        after = self._state_type(*ended)
        return (y, after, traced) if trace else (y, after)

    def step(self, x_t: Tensor, state: Any = None) -> Any:
        """One step: ``y_t, state``, with exactly the numbers of the whole sequence.

        Args:
            x_t: (B, input_size), or (input_size,) unbatched.
            state: as the last step returned it; None before the first.
        """
        if self.bidirectional:
            raise InputError("step: a bidirectional layer needs the whole sequence")
        x_t = self.check_input(x_t)
        if x_t.dim() not in (1, 2) or x_t.shape[-1] != self.input_size:
            raise InputError(
                f"x_t: expected shape (batch, {self.input_size}) or ({self.input_size},), "
                f"got {tuple(x_t.shape)}"
            )
        batched = x_t.dim() == 2
        rows = x_t if batched else x_t.unsqueeze(0)
        if rows.shape[0] == 0:
            raise InputError("x_t: the batch is empty")
        before = self._enter_state(state, rows.shape[0] if batched else None)
        y, ended, _ = self.run_layers(rows.unsqueeze(0), before, None, None, False)
        if batched:
            return y[0], self._state_type(*ended)
        return y[0, 0], self._state_type(*(each.squeeze(1) for each in ended))

    def _check_shape(self, x: Tensor) -> bool:
        """Whether ``x`` is batched; :class:`InputError` for shapes that fit neither way."""
        axes = "(batch, steps, units)" if self.batch_first else "(steps, batch, units)"
        if x.dim() not in (2, 3):
            raise InputError(
                f"x: expected 3 axes {axes}, or 2 for one sequence (steps, units), "
                f"got shape {tuple(x.shape)}"
            )
        if x.shape[-1] != self.input_size:
            raise InputError(
                f"x: expected {self.input_size} units (input_size) on the last axis, "
                f"got shape {tuple(x.shape)}"
            )
        if x.shape[1 if x.dim() == 3 and self.batch_first else 0] == 0:
            raise InputError(f"x: there are no steps, got shape {tuple(x.shape)}")
        if x.dim() == 3 and x.shape[0 if self.batch_first else 1] == 0:
            raise InputError(f"x: the batch is empty, got shape {tuple(x.shape)} = {axes}")
        return x.dim() == 3

    def _enter_state(self, state: Any, batch: int | None) -> list[Tensor]:
        """The given state (or the initial one), always with a batch axis."""
        if state is None:
            return list(self.initial_state(1 if batch is None else batch))
        lead = (self.num_layers * self.num_directions,)
        if batch is None:
            return [each.unsqueeze(1) for each in self.read_states(state, lead, ())]
        return self.read_states(state, (*lead, batch), ())

    @staticmethod
    def _enter_reset(
        reset: Tensor, steps: int, batch: int, batched: bool, turned: bool, device: torch.device
    ) -> Tensor:
        if not batched:
            return masks.read_reset(reset, (steps,), device, "(steps,)").unsqueeze(1)
        if turned:
            return masks.read_reset(reset, (batch, steps), device, "(batch, steps)").T
        return masks.read_reset(reset, (steps, batch), device, "(steps, batch)")

    def extra_repr(self) -> str:
        parts = [self.cell.name, str(self.input_size), str(self.hidden_size)]
        defaults = {
            "num_layers": 1, "bidirectional": False, "batch_first": False, "dropout": 0.0,
            "recurrent_dropout": 0.0, "zoneout": (), "layer_norm": False, "heads": 1,
            "learn_initial_state": False, "init": "default", "grad_clip": None,
            "precision": "fp32", "sizes": {},
        }  # fmt: skip
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                shown = dict(value) if name == "zoneout" else value
                parts.append(f"{name}={shown!r}")
        return ", ".join(parts)
