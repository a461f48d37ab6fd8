"""What is measured: a layer of ours, its peer, and how many multiplications they have to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import cellwright as cw
from cellwright.apps.bench_measure import Side, Timing, interleave
from cellwright.apps.bench_peak import Peak
from cellwright.apps.bench_shapes import Shape
from cellwright.engines import Call
from cellwright.engines.reference import differentiable
from cellwright.errors import EngineError
from cellwright.ir import Node, topological
from cellwright.lang import CellSpec
from cellwright.nn.stack import RecurrentStack

STANDARD: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "elman": ("RNN", {}),
    "elman_relu": ("RNN", {"nonlinearity": "relu"}),
}
"""Cells that torch.nn has: the name of its layer, and that layer's options."""

LOOP = "Python loop"

AGREE = 1e-3
"""Largest difference, as a share of the largest value: about a hundred times what the order of
float32 sums makes; a wrong formula makes a thousand times more."""


def other_sizes(spec: CellSpec, hidden_size: int) -> dict[str, int]:
    """Half the units for each size of a cell that has sizes of its own."""
    return {name: max(1, hidden_size // 2) for name in spec.size_names}


def recurrent(spec: CellSpec, input_size: int, hidden_size: int) -> RecurrentStack:
    """A layer of any cell."""
    return cw.nn.Recurrent(
        spec, input_size, hidden_size, sizes=other_sizes(spec, hidden_size) or None
    )


class PythonLoop(nn.Module):
    """A layer's equations as torch operations, step by step, differentiated by autograd."""

    def __init__(self, layer: RecurrentStack):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, list[Tensor]]:
        """Run over (T, B, input, *space); the state is a list of (B, size, *space)."""
        signature = self.layer.signature(0, lengths=False, reset=False, trace=False)
        if state is None:
            sizes = [signature.size[each.size] for each in signature.spec.states]
            state = [x.new_zeros(x.shape[1], size, *x.shape[3:]) for size in sizes]
        weights = self.layer.layer_weights(0, 0)
        result = differentiable(Call(signature, x, state, weights, [], False))
        return result.output, result.states


@dataclass(frozen=True)
class Work:
    """A layer of ours and its peer, on the same numbers.

    Attributes:
        ours, peer: called with x; the first of what they return is the output. Their parameters
            come in the same order.
        peer_name: what the peer is.
        x, gradient: (T, B, input), and the gradient of the output.
    """

    ours: RecurrentStack
    peer: nn.Module
    peer_name: str
    x: Tensor
    gradient: Tensor

    @classmethod
    def of(
        cls, spec: CellSpec, shape: Shape, *, layers: int = 1, bidirectional: bool = False
    ) -> Work:
        """A layer and its peer in torch.nn, where there is one; else the Python loop."""
        torch.manual_seed(0)
        kind, options = STANDARD.get(spec.name, ("", {}))
        if kind and cw.cells.get(spec.name) is spec:
            options = {**options, "num_layers": layers, "bidirectional": bidirectional}
            peer: nn.Module = getattr(nn, kind)(shape.I, shape.H, **options)
            ours = getattr(cw.nn, kind)(shape.I, shape.H, **options)
            name = f"torch.nn.{kind}"
        else:
            ours = recurrent(spec, shape.I, shape.H)
            peer, name = PythonLoop(recurrent(spec, shape.I, shape.H)), LOOP
        x = torch.randn(shape.T, shape.B, shape.I)
        work = cls(ours, peer, name, x, torch.randn(shape.T, shape.B, ours.output_size))
        return work.with_equal_weights()

    def with_equal_weights(self) -> Work:
        """The same, once the peer has our weights."""
        with torch.no_grad():
            for theirs, own in zip(self.peer.parameters(), self.ours.parameters(), strict=True):
                theirs.copy_(own)
        return self

    @property
    def engine(self) -> str:
        """Name of the engine that runs our layer."""
        return cw.explain(self.ours, self.x).engine

    def sides(self, training: bool) -> dict[str, Side]:
        """What is timed: "ours" and "peer"."""
        return {
            "ours": side(self.ours, self.x, self.gradient, training),
            "peer": side(self.peer, self.x, self.gradient, training),
        }

    def difference(self, training: bool) -> float:
        """The largest difference between the two, as a share of the largest value.

        Raises:
            EngineError: they do not compute the same, so that no time means anything.
        """
        found = []
        for module in (self.ours, self.peer):
            with torch.set_grad_enabled(training):
                y = module(self.x)[0]
            values = [y]
            if training:
                values += torch.autograd.grad(y, tuple(module.parameters()), self.gradient)
            found.append(values)
        worst = max(_apart(ours, theirs) for ours, theirs in zip(*found, strict=True))
        if not worst <= AGREE:
            raise EngineError(
                f"cell {self.ours.cell.name} on the {self.engine} engine and {self.peer_name} "
                f"differ by {worst:.2g} of the largest value; no time is measured"
            )
        return worst


def _apart(ours: Tensor, theirs: Tensor) -> float:
    largest = theirs.abs().max().clamp_min(1e-6)
    return float(((ours - theirs).abs().max() / largest).item())


def side(module: nn.Module, x: Tensor, gradient: Tensor, training: bool) -> Side:
    """One call of a layer: forward, and backward if training."""
    parameters = tuple(module.parameters())

    def train() -> None:
        for each in parameters:
            each.grad = None
        module(x)[0].backward(gradient)

    def infer() -> None:
        with torch.no_grad():
            module(x)

    return train if training else infer


def multiplications(layer: RecurrentStack, *, training: bool) -> int:
    """Multiplications in the matrix products of one row at one step, all layers and directions.

    Training adds, for each product, the gradient of its matrix and that of its operand. The
    first layer's x is data: it has no gradient.
    """
    total = 0
    for number in range(layer.num_layers):
        signature = layer.signature(number, lengths=False, reset=False, trace=False)
        plan, size = signature.plan, layer.layer_sizes(number)

        def count(roots: Iterable[Node], op: str, size: dict[str, int] = size) -> int:
            kinds = [each.inputs[0].matrix for each in topological(roots) if each.op == op]
            return sum(size[k.rows] * size[k.columns] // k.blocks for k in kinds)

        here = count([*plan.forward.inputs.values(), *plan.forward.loop.roots], "matvec")
        if training:
            after = plan.backward.inputs
            outers = [*plan.backward.parameters.matrices, *after.matrices]
            roots = {n: r for n, r in after.values.items() if n != "x" or number > 0}
            pairs = [node for each in after.matrices for node in (each.delta, each.operand)]
            here += count(plan.backward.loop.roots, "matvec_transposed")
            here += count([*roots.values(), *after.vectors.values(), *pairs], "matvec_transposed")
            kinds = {each.name: each.type for each in plan.parameters}
            for each in outers:
                kind: Any = kinds[each.parameter]
                here += size[kind.rows] * size[kind.columns] // kind.blocks
        total += here * layer.num_directions
    return total


@dataclass(frozen=True)
class Sample:
    """One shape in one mode, measured.

    Attributes:
        cell, shape, note: what; ``note`` tells layers and directions where there are several.
        mode: "train" or "infer".
        engine, peer_name: who.
        ours, peer: seconds of one call.
        peak_flops: floating-point operations a second that the machine's loop of fused
            multiply-adds reached between those calls.
        operations: floating-point operations of the matrix products of one call.
        difference: between the two sides' results.
    """

    cell: str
    shape: Shape
    note: str
    mode: str
    engine: str
    peer_name: str
    ours: Timing
    peer: Timing
    peak_flops: float
    operations: int
    difference: float

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return self.peer.median / self.ours.median

    @property
    def share(self) -> float:
        """Of the peak, what our matrix products reach, all other work counted as idle."""
        return self.operations / self.ours.median / self.peak_flops

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "cell": self.cell,
            "shape": self.shape.as_dict(),
            "note": self.note,
            "mode": self.mode,
            "engine": self.engine,
            "ours": self.ours.as_dict(),
            "peer": {"name": self.peer_name, **self.peer.as_dict()},
            "ratio": self.ratio,
            "gflops": self.operations / self.ours.median / 1e9,
            "peer_gflops": self.operations / self.peer.median / 1e9,
            "peak_gflops": self.peak_flops / 1e9,
            "share_of_peak": self.share,
            "difference": self.difference,
        }


def measure(work: Work, shape: Shape, mode: str, seconds: float, note: str = "") -> Sample:
    """Check that the two sides agree, then time them and the machine's peak in turns.

    Raises:
        EngineError: they do not agree.
    """
    training = mode == "train"
    difference = work.difference(training)
    peak = Peak()
    times = interleave({**work.sides(training), "peak": peak}, seconds)
    once = multiplications(work.ours, training=training)
    return Sample(
        cell=work.ours.cell.name,
        shape=shape,
        note=note,
        mode=mode,
        engine=work.engine,
        peer_name=work.peer_name,
        ours=times["ours"],
        peer=times["peer"],
        peak_flops=peak.operations / times["peak"].median,
        operations=2 * once * shape.T * shape.B,
        difference=difference,
    )
