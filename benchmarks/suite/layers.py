"""The layers of a stack at the same time, against one after the other."""

from __future__ import annotations

import torch

import cellwright as cw
from cellwright.apps.bench_shapes import Shape
from cellwright.engines.cpu import wavefront
from suite.part import Part, Settings
from suite.two_ways import COLUMNS, both_modes

SHAPES = (
    Shape(100, 1, 64, 64),
    Shape(100, 1, 128, 128),
    Shape(100, 1, 256, 256),
    Shape(100, 2, 128, 128),
    Shape(100, 4, 128, 128),
    Shape(100, 16, 128, 128),
    Shape(1000, 1, 64, 64),
)
DEPTHS = (2, 3)


def layers(settings: Settings) -> Part:
    part = Part("layers")
    part.say("## LSTM, a stack of layers: at the same time, against one after the other")
    part.table("T,B,I,H", "layers", *COLUMNS)
    for shape in settings.pick(SHAPES, [Shape(9, 2, 3, 4)]):
        for depth in DEPTHS:
            torch.manual_seed(0)
            layer = cw.nn.LSTM(shape.I, shape.H, num_layers=depth)
            x = torch.randn(shape.T, shape.B, shape.I)
            found = [
                layer.signature(number, lengths=False, reset=False, trace=False)
                for number in range(depth)
            ]
            data = {**shape.as_dict(), "layers": depth}
            both_modes(
                part, settings, layer, x, wavefront, asked=found, cells=[shape, depth], data=data
            )
    return part
