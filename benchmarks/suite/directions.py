"""Both directions of a layer at the same time, against one after the other."""

from __future__ import annotations

import torch

import cellwright as cw
from cellwright.apps.bench_shapes import Shape
from cellwright.engines.cpu import lanes
from suite.part import Part, Settings
from suite.two_ways import COLUMNS, both_modes

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
    part.table("T,B,I,H", *COLUMNS)
    for shape in settings.pick(SHAPES, [Shape(5, 2, 3, 4)]):
        torch.manual_seed(0)
        layer = cw.nn.LSTM(shape.I, shape.H, bidirectional=True)
        x = torch.randn(shape.T, shape.B, shape.I)
        signature = layer.signature(0, lengths=False, reset=False, trace=False)
        both_modes(
            part, settings, layer, x, lanes, asked=signature, cells=[shape], data=shape.as_dict()
        )
    return part
