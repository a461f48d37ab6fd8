"""Whether time grows linearly with the number of steps."""

from __future__ import annotations

import torch

import cellwright as cw
from cellwright.apps.bench_measure import Timing, interleave
from cellwright.apps.bench_sides import side
from suite.part import Part, Settings, milliseconds

LENGTHS = (10, 100, 1_000, 10_000, 100_000)
UNITS = 64
MOST = 1.25


def linearity(settings: Settings) -> Part:
    part = Part("linearity")
    lengths = settings.pick(LENGTHS, (10, 20, 40, 80))
    part.say(f"## Time against T: LSTM, B = 1, I = H = {UNITS}")
    part.table("T", "mode", "ms", "µs a step", "of the least before", "rounds")
    worst = 0.0
    for mode in ("train", "infer"):
        times = {steps: _time(steps, mode, settings.seconds) for steps in lengths}
        least = float("inf")
        for steps, timing in times.items():
            a_step = timing.median / steps
            over = a_step / least
            least = min(least, a_step)
            worst = max(worst, over)
            part.row(
                f"{steps:,}", mode, milliseconds(timing), f"{1e6 * a_step:.2f}", f"{over:.2f}",
                timing.rounds,
            )  # fmt: skip
            part.data.append({"steps": steps, "mode": mode, "over": over, **timing.as_dict()})
    part.say("\nLinear: a step of a longer sequence takes no longer than one of a shorter.")
    part.bar(
        f"Time grows linearly from T = 10 to 100,000 (a step at most {MOST} times as long)",
        f"{worst:.2f} times at worst",
        None if settings.small else worst <= MOST,
    )
    return part


def _time(steps: int, mode: str, seconds: float) -> Timing:
    torch.manual_seed(0)
    layer = cw.nn.Recurrent("lstm", UNITS, UNITS)
    x, gradient = torch.randn(steps, 1, UNITS), torch.randn(steps, 1, UNITS)
    return interleave({"ours": side(layer, x, gradient, mode == "train")}, seconds)["ours"]
