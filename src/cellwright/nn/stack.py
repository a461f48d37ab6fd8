"""What every recurrent layer shares: layers, directions, options, and the call of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from cellwright.engines import (
    Call,
    Result,
    SideBySide,
    Signature,
    run_all,
    stacking,
    transforms,
)
from cellwright.errors import InputError
from cellwright.lang import CellSpec
from cellwright.nn import running, signatures
from cellwright.nn.arguments import FIXED, OPTIONS, check_count, read_cell, read_sizes
from cellwright.nn.repeating import Whole
from cellwright.nn.repeating import prepare as prepare_whole
from cellwright.nn.repeating_members import prepare as prepare_members
from cellwright.nn.state import state_type
from cellwright.nn.stepping import Step, prepare
from cellwright.nn.weights import WeightHolder
from cellwright.plan import StepOptions

WHOLES = 64  # kinds of calls that a layer has ready; for one more all make room


class RecurrentStack(WeightHolder):
    """Layers of one cell, in one or two directions, over sequences.

    Subclasses make the parameters, and say how the equations' parameters lie in them, see
    :class:`WeightHolder`.
    """

    spatial = 0  # dimensions of space, for layers in which @ is a convolution

    def __init__(
        self,
        cell: CellSpec | str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bidirectional: bool,
        batch_first: bool,
        dropout: float,
        recurrent_dropout: float,
        zoneout: float | Mapping[str, float],
        layer_norm: bool,
        heads: int,
        learn_initial_state: bool,
        grad_clip: float | None,
        gradient: str,
        precision: str,
        save: str,
        sizes: Mapping[str, int] | None,
    ):
        super().__init__()
        self.cell = read_cell(cell)
        for name, number in (("input_size", input_size), ("hidden_size", hidden_size),
                             ("num_layers", num_layers), ("heads", heads)):  # fmt: skip
            check_count(name, number, least=0 if name == "input_size" else 1)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional, self.batch_first = bool(bidirectional), bool(batch_first)
        self.dropout: float = dropout
        self.recurrent_dropout: float = recurrent_dropout
        self.zoneout: Any = zoneout
        self.layer_norm, self.heads = bool(layer_norm), heads
        self.learn_initial_state = bool(learn_initial_state)
        self.grad_clip: float | None = grad_clip
        self.gradient, self.precision, self.save = gradient, precision, save
        self.sizes = read_sizes(sizes)
        resolved = self.cell.resolve_sizes(input_size, hidden_size, self.sizes)
        for name, number in resolved.items():
            if name != "input" and number % heads:
                raise InputError(f"heads: {heads} does not divide the {name} size {number}")
        self._state_names = tuple(state.name for state in self.cell.states)
        self._state_sizes = tuple(resolved[state.size] for state in self.cell.states)
        self._state_type = state_type(self._state_names)
        self._steps: dict[int, Step] = {}  # those of each thread of Python
        self._wholes: dict[object, Whole] = {}
        self._names: dict[tuple[Any, ...], str] = {}  # of the signatures' attributes

    @property
    def num_directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def applies_dropout(self) -> bool:
        """Whether a call now drops units between layers."""
        return self.training and self.dropout > 0 and self.num_layers > 1

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states, as in the equations."""
        return self._state_names

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Units of each state."""
        return self._state_sizes

    @property
    def output_size(self) -> int:
        """Units of the output of every step."""
        return self._state_sizes[0] * self.num_directions

    # Options of one call -----------------------------------------------------------------

    def step_options(self, *, lengths: bool, reset: bool, trace: bool) -> StepOptions:
        """What a call asks of the cell, as the plan needs to know it."""
        return StepOptions(
            heads=self.heads,
            layer_norm=self.layer_norm,
            recurrent_dropout=self.recurrent_dropout > 0 and self.training,
            zoneout=self.zoneout,
            training=self.training and bool(self.zoneout),
            lengths=lengths,
            reset=reset,
            learn_initial_state=self.learn_initial_state and reset,
            grad_clip=self.grad_clip,
            gradient=self.gradient,
            trace=trace,
            precision=self.precision,
            save=self.save,
        )

    def signature(self, layer: int, *, lengths: bool, reset: bool, trace: bool) -> Signature:
        """The recurrence of one layer in a call with these arguments, apart from its tensors."""
        name = self._prepare(layer, lengths, reset, trace, self.training)
        found: Signature = getattr(self, name)
        return found

    # torch.compile runs this as it is, and reads the attribute afterwards: a plan is not built
    # inside a compiled program, and a dictionary of signatures would have been read before.
    # What it is given are whole numbers and truth values; others may be symbols in there.
    def _prepare(self, layer: int, lengths: bool, reset: bool, trace: bool, training: bool) -> str:
        """Build the signature of one layer, once, and tell the attribute in which it lies."""
        asked = (
            layer, lengths, reset, trace, training, self.recurrent_dropout > 0, self.zoneout,
            self.layer_norm, self.heads, self.learn_initial_state, self.grad_clip, self.gradient,
            self.precision, self.save,
        )  # fmt: skip
        name = self._names.get(asked)
        if name is None or name not in self.__dict__:
            options = self.step_options(lengths=lengths, reset=reset, trace=trace)
            name = self._names[asked] = signatures.attribute(layer, options)
            if name not in self.__dict__:
                self.__dict__[name] = signatures.make(self, layer, options)
        return name

    # What torch.compiler.assume_constant_result does, which would load the compiler at once.
    _prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OPTIONS:
            value = OPTIONS[name](self, value)
        elif name in FIXED and "weight_shapes" in self.__dict__:
            before = self.__dict__.get(name, value)
            if value != before:
                raise InputError(
                    f"{name}: the layer's weights are made for {before!r}, got {value!r}; "
                    f"make another layer"
                )
        super().__setattr__(name, value)
        for ready in ("_steps", "_wholes"):
            self.__dict__.get(ready, {}).clear()  # what was made ready followed from it

    def __getstate__(self) -> dict[str, Any]:
        # Made again when needed; a state type made at run time cannot be pickled.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_state_type", "_steps", "_wholes", "_names")
            and not name.startswith(signatures.PREFIX)
        }

    def __setstate__(self, content: dict[str, Any]) -> None:
        super().__setstate__(content)
        self._state_type = state_type(self._state_names)
        self._steps, self._wholes, self._names = {}, {}, {}

    # Single steps ------------------------------------------------------------------------

    def draws(self) -> bool:
        """Whether a step in training draws something at random."""
        return bool(self.dropout or self.recurrent_dropout or self.zoneout)

    def quick_step(
        self, x: Tensor, states: Sequence[Tensor], lead: tuple[int, ...]
    ) -> tuple[Tensor, Sequence[Tensor]] | None:
        """Output (*lead, size) and states after one step; None where there is no quick road.

        No gradient is wanted, and nothing is being compiled. The step is made ready where it is
        not, or not for these tensors, so what it takes has no need to be checked.
        """
        prepared = self._steps.get(get_ident())
        if prepared is not None and not (self.training and self.draws()):
            taken = prepared(x, states, self._parameters.values())
            if taken is not None:
                return taken
        return self.prepare_step(x, states, lead)

    def prepare_step(
        self, x: Tensor, states: Sequence[Tensor], lead: tuple[int, ...]
    ) -> tuple[Tensor, Sequence[Tensor]] | None:
        """Make steps like this one ready, and take it; None where they cannot be."""
        prepared = None if self.training and self.draws() else prepare(self, x, states, lead)
        if prepared is None:
            self._steps.pop(get_ident(), None)
            return None
        self._steps[get_ident()] = prepared
        return prepared(x, states, self._parameters.values())

    def quick_sequence(self, x: Any, states: Sequence[Any]) -> tuple[Tensor, list[Tensor]] | None:
        """Output and states after a sequence; None where there is no quick road.

        Nothing is being compiled.

        Args:
            x, states: as given, not checked; no states for zeros.
        """
        if type(x) is not Tensor or x.is_nested or x.dim() != 3:
            return None
        mapped, keep = transforms.are_active(), is_grad_enabled()
        if mapped and keep:
            return None
        kind = get_ident(), x.shape, len(states), mapped, keep
        prepared = self._wholes.get(kind)
        if prepared is not None and not (self.training and self.draws()):
            taken = prepared(x, states, self._parameters.values())
            if taken is not None:
                return taken
        prepared = (prepare_members if mapped else prepare_whole)(self, x, states)
        if prepared is None:
            self._wholes.pop(kind, None)
            return None
        if len(self._wholes) >= WHOLES:
            self._wholes.clear()
        self._wholes[kind] = prepared
        return prepared(x, states, self._parameters.values())

    # Becoming part of a program ----------------------------------------------------------

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks first."""
        raise InputError(
            "torch.jit.script: it cannot read layers of cellwright; torch.export.export makes a "
            "program of them, for any number of steps, and torch.jit.trace does"
        )

    def _slow_forward(self, *arguments: Any, **named: Any) -> Any:
        """What torch calls in place of forward while it traces."""
        if torch.onnx.is_in_onnx_export():
            raise InputError(
                "torch.onnx.export: ONNX has no operator for a layer of cellwright; a torch.nn "
                "layer that has been given the state_dict of cellwright.nn.LSTM, GRU or RNN can "
                "be exported"
            )
        return super()._slow_forward(*arguments, **named)

    # Running -----------------------------------------------------------------------------

    def run_layers(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        lengths: Tensor | None,
        reset: Tensor | None,
        trace: bool,
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """All layers over (T, B, input, *space), see :func:`cellwright.nn.running.run`."""
        return running.run(self, x, states, lengths, reset, trace)

    def recur(self, calls: Sequence[Call], layer: int) -> Sequence[Result]:
        """Run one layer, in every direction."""
        return run_all(calls)

    def stacking(self, signatures: Sequence[Signature], x: Tensor) -> SideBySide | None:
        """How the layers run at the same time; None where they run one after the other."""
        if self.num_layers == 1 or self.bidirectional or self.applies_dropout:
            return None
        return stacking(signatures, x, keep=is_grad_enabled())

    # Checking ----------------------------------------------------------------------------

    def check_input(self, x: Any) -> Tensor:
        """``x`` in the layer's dtype, or an :class:`InputError`; shape is the caller's affair."""
        raise AssertionError("a subclass says what it can be called with")
