"""Both directions of a layer at the same time, against one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import cellwright as cw
from cellwright.apps.bench_measure import interleave
from cellwright.apps.bench_shapes import Shape
from cellwright.engines.cpu import lanes
from suite.part import Part, Settings, milliseconds

SHAPES = (
    Shape(100, 1, 64, 64),
    Shape(100, 1, 128, 128),
    Shape(100, 1, 256, 256),
    Shape(100, 2, 128, 128),
    Shape(100, 4, 128, 128),
    Shape(100, 8, 128, 128),
    Shape(100, 16, 128, 128),
    Shape(100, 32, 128, 128),
    Shape(100, 64, 256, 256),
    Shape(100, 32, 512, 512),
    Shape(784, 128, 1, 128),
)


def directions(settings: Settings) -> Part:
    part = Part("directions")
    part.say("## LSTM, both directions: at the same time, against one after the other")
    part.table("T,B,I,H", "mode", "same time, ms", "in turn, ms", "ratio", "taken", "rounds")
    for shape in settings.pick(SHAPES, [Shape(5, 2, 3, 4)]):
        for mode in ("train", "infer"):
            _at(part, settings, shape, mode)
    return part


def _at(part: Part, settings: Settings, shape: Shape, mode: str) -> None:
    """The row of one shape."""
    torch.manual_seed(0)
    layer = cw.nn.LSTM(shape.I, shape.H, bidirectional=True)
    x = torch.randn(shape.T, shape.B, shape.I)
    signature = layer.signature(0, lengths=False, reset=False, trace=False)
    taken = "same time" if lanes.are_faster(signature, x) else "in turn"

    def run() -> list[Tensor]:
        if mode == "infer":
            with torch.no_grad():
                return [layer(x)[0]]
        layer.zero_grad()
        y = layer(x)[0]
        y.sum().backward()
        return [y, *(each.grad for each in layer.parameters())]

    def way(beside: bool) -> Callable[[], list[Tensor]]:
        def side() -> list[Tensor]:
            with _always(beside):
                return run()

        return side

    for found, expected in zip(way(True)(), way(False)(), strict=True):
        if not torch.equal(found, expected):
            raise AssertionError(f"{shape}, {mode}: the two ways differ")
    times = interleave({"beside": way(True), "in turn": way(False)}, settings.seconds, settle=True)
    ratio = times["in turn"].median / times["beside"].median
    part.row(
        str(shape), mode, milliseconds(times["beside"]), milliseconds(times["in turn"]),
        f"{ratio:.2f}", taken, times["beside"].rounds,
    )  # fmt: skip
    timings = {name: each.as_dict() for name, each in times.items()}
    part.data.append({**shape.as_dict(), "mode": mode, "ratio": ratio, "taken": taken, **timings})


@contextmanager
def _always(beside: bool) -> Iterator[None]:
    """One way, whatever the shapes."""
    original = lanes.are_faster
    lanes.are_faster = lambda signature, x: beside  # type: ignore[assignment]
    try:
        yield
    finally:
        lanes.are_faster = original
