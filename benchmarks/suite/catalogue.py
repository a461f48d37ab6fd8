"""Every cell of the catalogue, relative to our LSTM."""

from __future__ import annotations

import math

import torch

import cellwright as cw
from cellwright.apps.bench_measure import interleave
from cellwright.apps.bench_shapes import Shape
from cellwright.apps.bench_sides import (
    PythonLoop,
    Work,
    multiplications,
    recurrent,
    side,
)
from cellwright.errors import EngineError
from cellwright.lang import CellSpec
from suite.part import Part, Settings, milliseconds

MOST = 1.15


def cells(settings: Settings) -> Part:
    """Time, for the same number of multiplications, of each cell over that of our LSTM.

    A cell is measured at the LSTM's sizes, and again with as many units (a multiple of 16) as
    bring its multiplications nearest to the LSTM's; what is left of the difference is divided
    out. The second is what the bar is about: the first charges a small cell for the call.
    """
    shape = settings.pick(Shape(100, 16, 128, 128), Shape(5, 2, 16, 16))
    part = Part("cells")
    part.say(f"## The catalogue at ({shape}), training, relative to our LSTM")
    part.table(
        "cell", "engine", "multiplications a row and step", "ms", "LSTM, ms",
        "time for the same multiplications", "units for as many", "ms",
        "time for the same multiplications",
    )  # fmt: skip
    lstm = cw.cells.get("lstm")
    worst, broken = ("", 0.0), []
    for name in cw.cells.names():
        spec = cw.cells.get(name)
        try:
            found = _cell(part, spec, lstm, shape, settings.seconds)
        except EngineError as error:
            part.row(name, str(error), *[""] * 7)
            broken.append(name)
            continue
        worst = max(worst, (name, found), key=lambda each: each[1])
    figure = f"{worst[1]:.2f}, {worst[0]}" + (f"; wrong: {', '.join(broken)}" if broken else "")
    part.bar(
        f"No cell takes more than {MOST} times our LSTM's time for the same multiplications",
        figure,
        None if settings.small else worst[1] <= MOST and not broken,
    )
    return part


def _cell(part: Part, spec: CellSpec, lstm: CellSpec, shape: Shape, seconds: float) -> float:
    torch.manual_seed(0)
    own = recurrent(spec, shape.I, shape.H)
    base = recurrent(lstm, shape.I, shape.H)
    work = [multiplications(each, training=True) for each in (own, base)]
    units = max(16, 16 * round(shape.H * math.sqrt(work[1] / work[0]) / 16))
    grown = recurrent(spec, units, units)
    more = multiplications(grown, training=True)
    sides = {}
    for key, layer in (("cell", own), ("lstm", base), ("grown", grown)):
        x = torch.randn(shape.T, shape.B, layer.input_size)
        gradient = torch.randn(shape.T, shape.B, layer.output_size)
        sides[key] = side(layer, x, gradient, True)
        if key == "cell":
            peer = PythonLoop(recurrent(spec, shape.I, shape.H))
            pair = Work(own, peer, "Python loop", x, gradient).with_equal_weights()
            pair.difference(training=True)
    times = interleave(sides, seconds)
    each_of_lstm = times["lstm"].median / work[1]
    same, equal = times["cell"].median / work[0], times["grown"].median / more
    part.row(
        spec.name, pair.engine, f"{work[0]:,}", milliseconds(times["cell"]),
        milliseconds(times["lstm"]), f"{same / each_of_lstm:.2f}", units,
        milliseconds(times["grown"]), f"{equal / each_of_lstm:.2f}",
    )  # fmt: skip
    part.data.append(
        {
            "cell": spec.name,
            "multiplications": {"cell": work[0], "lstm": work[1], "grown": more},
            "grown_units": units,
            "at_the_same_sizes": same / each_of_lstm,
            "at_as_many_multiplications": equal / each_of_lstm,
            **{key: timing.as_dict() for key, timing in times.items()},
        }
    )
    return equal / each_of_lstm
