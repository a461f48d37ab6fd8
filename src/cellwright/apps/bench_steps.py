"""Streaming: one step called from Python, the state handed back each time, B = 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import cellwright as cw
from cellwright.apps.bench_measure import Side, Timing, interleave
from cellwright.apps.bench_sides import LOOP, STANDARD, PythonLoop, recurrent
from cellwright.lang import CellSpec

STEP = "layer.step"


@dataclass(frozen=True)
class Streaming:
    """One step of a cell at one size, measured.

    Attributes:
        cell, input_size, hidden_size: what.
        engine: that runs ours.
        times: name -> seconds of one step; ours is ``STEP``.
    """

    cell: str
    input_size: int
    hidden_size: int
    engine: str
    times: dict[str, Timing]

    def ratio(self, peer: str) -> float:
        """How many times as long a peer takes as ``layer.step``."""
        return self.times[peer].median / self.times[STEP].median

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "cell": self.cell,
            "input": self.input_size,
            "hidden": self.hidden_size,
            "engine": self.engine,
            "ours": self.times[STEP].as_dict(),
            "peers": {
                name: {**each.as_dict(), "ratio": self.ratio(name)}
                for name, each in self.times.items()
                if name != STEP
            },
        }


def measure_steps(
    spec: CellSpec, input_size: int, hidden_size: int, seconds: float, *, own_drop_in: bool = False
) -> Streaming:
    """Time ``layer.step`` and its peers in turns.

    Args:
        spec: the cell.
        input_size, hidden_size: sizes.
        seconds: for all rounds together.
        own_drop_in: also time our replacement of torch.nn's layer, called with T = 1.
    """
    torch.manual_seed(0)
    layer: Any = recurrent(spec, input_size, hidden_size)
    x = torch.randn(1, input_size)
    sides = {STEP: _chain(layer.step, x, layer.initial_state(1))}
    kind, options = STANDARD.get(spec.name, ("", {}))
    if kind and cw.cells.get(spec.name) is spec:
        sides |= _torch_sides(kind, options, x, hidden_size, own_drop_in)
    else:
        loop = PythonLoop(layer)
        state = [each[0] for each in layer.initial_state(1)]
        sides[LOOP] = _chain(loop, x.unsqueeze(0), state)
    with torch.no_grad():
        times = interleave(sides, seconds)
    engine = cw.explain(layer, x.unsqueeze(0)).engine
    return Streaming(spec.name, input_size, hidden_size, engine, times)


def _torch_sides(
    kind: str, options: dict[str, Any], x: Tensor, hidden_size: int, own_drop_in: bool
) -> dict[str, Side]:
    """torch.nn's layer with T = 1 and torch.nn's cell; and our drop-in layer with T = 1."""
    sides: dict[str, Side] = {}
    for house, name in ((cw.nn, "cellwright.nn"), (nn, "torch.nn")):
        if house is nn or own_drop_in:
            layer = getattr(house, kind)(x.shape[1], hidden_size, **options)
            sides[f"{name}.{kind}, T=1"] = _chain(layer, x.unsqueeze(0), None)
    cell = getattr(nn, f"{kind}Cell")(x.shape[1], hidden_size, **options)
    sides[f"torch.nn.{kind}Cell"] = _chain(lambda x, state: (None, cell(x, state)), x, None)
    return sides


def _chain(call: Callable[[Tensor, Any], tuple[Any, Any]], x: Tensor, state: Any) -> Side:
    """Steps whose state goes from one call to the next."""
    held = [state]

    def step() -> None:
        held[0] = call(x, held[0])[1]

    return step
