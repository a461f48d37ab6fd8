"""A GPU's time, and what it can do at most: large products, and copies of memory.

Without a GPU, everything is timed by the clock: to check the script, not the speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Side = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def as_dict(self) -> dict[str, float | int]:
        """For a JSON file."""
        return {
            "median_ms": self.median, "low_ms": self.low, "high_ms": self.high,
            "rounds": self.rounds,
        }  # fmt: skip


def once(side: Side, device: torch.device) -> float:
    """Milliseconds of one call on the device, by its own events."""
    if device.type != "cuda":
        begun = time.perf_counter()
        side()
        return 1e3 * (time.perf_counter() - begun)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    side()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def in_turns(sides: Mapping[str, Side], device: torch.device, seconds: float) -> dict[str, Times]:
    """Time all sides in turns, three rounds at least (two for 0 s); a call of each goes before."""
    spent = 0.0
    for side in sides.values():
        side()
        spent += once(side, device) / 1e3
    rounds = min(max(round(seconds / max(spent, 1e-6)), 3 if seconds else 2), 101)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(once(side, device))
    return {name: _times(each) for name, each in found.items()}


def _times(turns: list[float]) -> Times:
    low, median, high = statistics.quantiles(turns, n=4, method="inclusive")
    return Times(median, low, high, len(turns))


def captured(side: Side) -> Side:
    """The call as a graph of CUDA's, which is replayed without Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            side()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        side()
    return graph.replay


@dataclass(frozen=True)
class Limits:
    """What the device reached in this run.

    Attributes:
        flops: dtype -> floating-point operations a second of a large product by torch.
        bytes: read and written a second by a large copy.
    """

    flops: Mapping[torch.dtype, float]
    bytes: float

    @classmethod
    def of(cls, device: torch.device, dtypes: list[torch.dtype], smoke: bool) -> Limits:
        """Measure them."""
        side, count = (64, 1 << 16) if smoke else (8192, 1 << 28)
        flops = {}
        for dtype in dtypes:
            a = torch.randn(side, side, device=device).to(dtype)
            times = in_turns({"product": lambda a=a: a @ a}, device, 0.2)
            flops[dtype] = 2 * side**3 / (1e-3 * times["product"].median)
        source = torch.zeros(count, device=device)
        target = torch.empty_like(source)
        times = in_turns({"copy": lambda: target.copy_(source)}, device, 0.2)
        return cls(flops, 2 * 4 * count / (1e-3 * times["copy"].median))
