"""LSTM inference against ONNX Runtime."""

from __future__ import annotations

import torch

import cellwright as cw
from cellwright.apps.bench_measure import interleave
from cellwright.apps.bench_sides import AGREE, side
from cellwright.errors import EngineError
from suite.part import Part, Settings, geometric_mean, milliseconds


def onnx(settings: Settings) -> Part:
    part = Part("onnx")
    part.say("## LSTM inference against ONNX Runtime")
    try:
        from peers import onnx_lstm
    except ModuleNotFoundError as error:
        part.say(f"\nSkipped: {error.name} is not installed.")
        return part
    part.table("T,B,I,H", "ours, ms", "ONNX Runtime, ms", "ratio", "rounds")
    ratios = []
    for shape in settings.shapes:
        torch.manual_seed(0)
        layer = cw.nn.LSTM(shape.I, shape.H)
        x = torch.randn(shape.T, shape.B, shape.I)
        weights = {name: each.detach().numpy() for name, each in layer.named_parameters()}
        call = onnx_lstm.inference(weights, x.numpy(), settings.threads)
        with torch.no_grad():
            apart = float((layer(x)[0] - torch.from_numpy(call().copy())).abs().max().item())
        if apart > AGREE:
            raise EngineError(f"ONNX Runtime and ours differ by {apart:.2g} at ({shape})")
        # Each side has threads of its own, and those of the other go on spinning for a while.
        sides = {"ours": side(layer, x, x, training=False), "peer": call}
        times = interleave(sides, settings.seconds, settle=True)
        ratios.append(times["peer"].median / times["ours"].median)
        part.row(
            shape, milliseconds(times["ours"]), milliseconds(times["peer"]), f"{ratios[-1]:.2f}",
            times["ours"].rounds,
        )  # fmt: skip
        timings = {name: each.as_dict() for name, each in times.items()}
        part.data.append({"shape": shape.as_dict(), "ratio": ratios[-1], **timings})
    part.say(f"\nGeometric mean {geometric_mean(ratios):.2f}.")
    return part
