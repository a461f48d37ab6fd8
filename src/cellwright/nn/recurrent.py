"""``Recurrent``: a layer for any cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cellwright.lang import CellSpec
from cellwright.nn import inputs
from cellwright.nn.cell_layer import CellLayer


class Recurrent(CellLayer):
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
        init: "default", "orthogonal", "uniform:A", "forget_bias:1", "bias.o:-2" (the bias of any
            gate, by its name), "chrono:T", or several joined by "+".
        grad_clip: limit of each component of the gradient that flows back into a state, at
            every step.
        gradient: "full", or "truncated": errors flow back in time as in the first LSTM's paper,
            along the carousel alone (Hochreiter & Schmidhuber 1997). They do not pass through
            the weights of states before the step, nor through peepholes.
        precision: "fp32", or "bf16" for products of bfloat16 numbers with float32 sums; states
            and all else stay in float32. A processor without AVX512_BF16 runs "fp32" instead, with
            a warning.
        save: what a training step keeps from the forward pass for the backward pass. "gates":
            every state and gate at every step; "states": the states, from which the gates are
            computed again; "checkpoints": the states at about sqrt(T) steps, between which the
            layer is run again. Numbers kept for each layer and direction, with S units of all
            states and G of all saved values (S = 2 H and G = 4 H for an LSTM): T B (S + G),
            T B S, or about sqrt(T) B S. The backward pass needs some megabytes to work in,
            and with "checkpoints" some times sqrt(T) B (S + G) if that is more. The results do
            not depend on it.
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
        >>> long = cw.nn.Recurrent("lstm", 3, 5, save="checkpoints")  # sequences of any length
        >>> long(torch.randn(5000, 1, 3))[0].sum().backward()
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
        gradient: str = "full",
        precision: str = "fp32",
        save: str = "gates",
        sizes: Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            cell, input_size, hidden_size, num_layers, bidirectional=bidirectional,
            batch_first=batch_first, dropout=dropout, recurrent_dropout=recurrent_dropout,
            zoneout=zoneout, layer_norm=layer_norm, heads=heads,
            learn_initial_state=learn_initial_state, init=init, grad_clip=grad_clip,
            gradient=gradient, precision=precision, save=save, sizes=sizes,
            device=device, dtype=dtype,
        )  # fmt: skip

    def initial_state(self, batch: int | None = None) -> Any:
        """The state before the first step: zeros, or the learnt one.

        Args:
            batch: number of sequences; None for an unbatched state.
        """
        inputs.check_batch(batch)
        return self._initial_state(batch, ())
