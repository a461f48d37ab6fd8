"""One step at a time, B = 1, called from Python."""

from __future__ import annotations

import cellwright as cw
from cellwright.apps.bench_steps import measure_steps
from suite.part import Part, Settings, microseconds

LAYER, CELL = "torch.nn.LSTM, T=1", "torch.nn.LSTMCell"
LEAST = {64: {LAYER: 10, CELL: 3}, 256: {LAYER: 8, CELL: 3}, 1024: {LAYER: 4, CELL: 2}}


def streaming(settings: Settings) -> Part:
    part = Part("streaming")
    part.say("## Streaming: one step of an LSTM, I = H, B = 1")
    part.table("H", "step", "µs", "time / that of layer.step", "rounds x calls")
    for units, least in LEAST.items():
        size = settings.pick(units, 8)
        found = measure_steps(cw.cells.get("lstm"), size, size, settings.seconds, own_drop_in=True)
        part.data.append(found.as_dict())
        for name, timing in found.times.items():
            part.row(
                size, name, microseconds(timing), f"{found.ratio(name):.2f}",
                f"{timing.rounds} x {timing.calls}",
            )  # fmt: skip
        for peer, factor in least.items():
            ratio = found.ratio(peer)
            part.bar(
                f"Streaming, H={units}: at least {factor} times as fast as {peer}",
                f"{ratio:.2f}",
                None if settings.small else ratio >= factor,
            )
    return part
