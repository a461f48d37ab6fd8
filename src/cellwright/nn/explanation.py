"""``explain``: which engine will run a layer, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from cellwright.engines import Engine, choose, transforms
from cellwright.errors import InputError
from cellwright.nn.stack import RecurrentStack


@dataclass(frozen=True)
class Explanation:
    """Which engine runs a layer.

    Attributes:
        engine: its name.
        reason: why it was chosen.
        layer: what runs, in words.
        form: which of an engine's forms runs, and why; "" if it has only one.
    """

    engine: str
    reason: str
    layer: str
    form: str = ""

    def __str__(self) -> str:
        form = f"\n  form: {self.form}" if self.form else ""
        return f"{self.layer}\n  engine: {self.engine}\n  reason: {self.reason}{form}"


def explain(layer: RecurrentStack, x: Tensor | PackedSequence) -> Explanation:
    """Tell which engine will run ``layer`` on ``x``, and why; nothing is computed.

    Under a transform of ``torch.func`` it tells what the transform makes of the call.

    Args:
        layer: any recurrent layer of cellwright.
        x: what it would be called with.

    Raises:
        InputError: if ``layer`` is something else, or ``x`` does not fit it.

    Example:
        >>> import torch, cellwright as cw
        >>> layer = cw.nn.Recurrent("gru", input_size=3, hidden_size=4)
        >>> with cw.engine("reference"):
        ...     print(cw.explain(layer, torch.zeros(5, 2, 3)).engine)
        reference
    """
    if not isinstance(layer, RecurrentStack):
        raise InputError(
            f"layer: expected a recurrent layer of cellwright, got {type(layer).__name__}; "
            f"cellwright.accelerate converts those of torch.nn"
        )
    data = layer.check_input(x.data if isinstance(x, PackedSequence) else x)
    packed = isinstance(x, PackedSequence)
    signature = layer.signature(0, lengths=packed, reset=False, trace=False)
    chosen = choose(signature, data.device, data.dtype)
    name, reason = chosen.engine.name.partition(":")[0], chosen.reason
    form = chosen.engine.way(signature, data.device, data.dtype)
    if transforms.are_active():
        weights = layer.layer_weights(0, 0)
        objection = transforms.objection(chosen.engine, signature, [data, *weights])
        members = transforms.members(weights)
        if objection is not None:
            name, form = "reference", ""
            where = "among dual numbers" if transforms.in_forward_mode() else "under torch.func"
            reason = f"{where} it runs as torch operations: {objection}"
        elif members is not None:
            reason += f"; a population: {members} sets of weights, in one call"
    else:
        like = torch.empty(_extents(layer, x), dtype=data.dtype, device="meta")
        reason += _at_the_same_time(layer, chosen.engine, like, lengths=packed)
    return Explanation(name, reason, _describe(layer, data), form)


def _at_the_same_time(layer: RecurrentStack, engine: Engine, x: Tensor, *, lengths: bool) -> str:
    """What of a layer runs at the same time, on an ``x`` that has a shape and no numbers."""
    signatures = [
        layer.signature(number, lengths=lengths, reset=False, trace=False)
        for number in range(layer.num_layers)
    ]
    keep = torch.is_grad_enabled()
    if layer.bidirectional:
        beside = engine.side_by_side(signatures[0], x, keep=keep) is not None
        return "; both directions run at the same time, on a thread each" if beside else ""
    if layer.num_layers == 1 or engine.stacked(signatures, x, keep=keep) is None:
        return ""
    if layer.applies_dropout:
        return "; one layer after the other, because of the dropout between them"
    return "; the layers run at the same time, each some steps behind the one below"


def _extents(layer: RecurrentStack, x: Tensor | PackedSequence) -> tuple[int, ...]:
    """(T, B, input)."""
    if isinstance(x, PackedSequence):
        return len(x.batch_sizes), int(x.batch_sizes[0]), x.data.shape[-1]
    if x.dim() == 2:
        return x.shape[0], 1, x.shape[1]
    first, second, *others = x.shape
    return (second, first, *others) if layer.batch_first else (first, second, *others)


def _describe(layer: RecurrentStack, x: Tensor) -> str:
    directions = "both directions" if layer.bidirectional else "one direction"
    layers = f"{layer.num_layers} layer" + ("s" if layer.num_layers > 1 else "")
    kind: Any = x.dtype
    gradient = "forward and backward" if torch.is_grad_enabled() else "forward only"
    if gradient == "forward and backward" and layer.gradient == "truncated":
        gradient += " with the truncated gradient"
    return (
        f"cell {layer.cell.name}, {layers}, {directions}, input {layer.input_size}, "
        f"hidden {layer.hidden_size}, {str(kind).removeprefix('torch.')} on {x.device}, {gradient}"
    )
