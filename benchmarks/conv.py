"""ConvLSTM on the CPU engine beside the reference engine, and where the time goes.

    python benchmarks/conv.py [--threads 1] [--channels 16,64] [--rounds 5]

Space 64 x 64, kernel 3, T = 10, B = 2, float32, as many input as hidden channels. The engines take
turns and are compared before they are timed; times are medians. With one thread it is the
processor's time of that thread, which other programs do not lengthen; else the clock's.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any

import torch

import cellwright as cw
from cellwright.engines.cpu import images, runtime, spatial, spatial_backward

PARTS = {
    "convolutions": [(spatial, "convolve"), (spatial_backward, "gradient")],
    "compiled": [(runtime.Compiled, "run_rows"), (runtime.Compiled, "run_sums")],
    "layout": [(images.Images, "put"), (images.Images, "put_fixed"), (images.Images, "copy")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", default="16,64")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = thread_time if given.threads == 1 else perf_counter
    spent = watch(clock)
    for channels in map(int, given.channels.split(",")):
        for what, run in runs(channels).items():
            check(run)
            measure(f"{channels} channels, {what}", run, given.rounds, clock, spent)


def watch(clock: Callable[[], float]) -> dict[str, float]:
    """Let the parts of the CPU engine add up their seconds."""
    spent: dict[str, float] = defaultdict(float)

    def watched(part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = clock()
            result = original(*arguments, **options)
            spent[part] += clock() - start
            return result

        return call

    for part, functions in PARTS.items():
        for place, name in functions:
            setattr(place, name, watched(part, getattr(place, name)))
    return spent


def runs(channels: int) -> dict[str, Callable[[], list[torch.Tensor]]]:
    torch.manual_seed(0)
    layer = cw.nn.ConvRecurrent("peephole_lstm", channels, channels, kernel_size=3)
    x = torch.randn(10, 2, channels, 64, 64, requires_grad=True)
    arriving = torch.randn(10, 2, channels, 64, 64)

    def train() -> list[torch.Tensor]:
        y, _ = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], arriving)]

    def infer() -> list[torch.Tensor]:
        with torch.no_grad():
            return [layer(x)[0]]

    return {"training": train, "inference": infer}


def check(run: Callable[[], list[torch.Tensor]]) -> None:
    """Nothing is timed that is not right."""
    with cw.engine("cpu"):
        found = run()
    with cw.engine("reference"):
        expected = run()
    for ours, theirs in zip(found, expected, strict=True):
        # Sums of up to 82,000 products in another order, relative to the largest number.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def measure(
    title: str, run: Callable[[], object], rounds: int, clock: Callable[[], float],
    spent: dict[str, float],
) -> None:  # fmt: skip
    times: dict[str, list[float]] = {"cpu": [], "reference": []}
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(rounds):
        for engine, turns in times.items():
            with cw.engine(engine):
                spent.clear()
                start = clock()
                run()
                turns.append(clock() - start)
            if engine == "cpu":
                for part, every in parts.items():
                    every.append(spent[part])
    median = {engine: 1e3 * statistics.median(turns) for engine, turns in times.items()}
    shares = ", ".join(f"{p} {1e3 * statistics.median(v):.1f}" for p, v in parts.items())
    print(
        f"{title}: cpu {median['cpu']:.1f} ms ({shares}), reference {median['reference']:.1f} ms, "
        f"ratio {median['reference'] / median['cpu']:.2f}"
    )


if __name__ == "__main__":
    main()
