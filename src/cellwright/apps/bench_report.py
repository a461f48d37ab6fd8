"""What ``cellwright bench`` found: as tables, as results.json, as a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import cellwright
from cellwright.apps import show
from cellwright.apps.bench_compile import Readiness
from cellwright.apps.bench_measure import Timing, load_average, processors
from cellwright.apps.bench_sides import Sample
from cellwright.apps.bench_steps import STEP, Streaming
from cellwright.train.files import replacing, write_text

FORMAT = 1
RESULTS, PICTURE = "results.json", "ratios.png"


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes:
        machine: as `machine` gives it.
        samples, streaming: what was timed.
        compiling: with an empty cache, and from the disk.
        others: share of the processors that other programs took meanwhile; None if unknown.
    """

    machine: dict[str, Any]
    samples: Sequence[Sample]
    streaming: Sequence[Streaming]
    compiling: tuple[Readiness, Readiness]
    others: float | None

    def as_dict(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        empty, disk = self.compiling
        return {
            "format": FORMAT,
            "machine": self.machine,
            "other_programs": self.others,
            "samples": [each.as_dict() for each in self.samples],
            "streaming": [each.as_dict() for each in self.streaming],
            "compiling": {"empty_cache": empty.as_dict(), "disk_cache": disk.as_dict()},
        }

    def write(self, folder: Path) -> None:
        """Write ``ratios.png`` and ``results.json``.

        Raises:
            UsageError: a file cannot be written.
        """
        draw(folder / PICTURE, self.samples)
        write_text(folder / RESULTS, json.dumps(self.as_dict(), indent=2) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """Processor, versions and load: what a figure means nothing without."""
    return {
        "processor": processor(),
        "processors": processors(),
        "threads": threads,
        "load_average": load_average(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cellwright": cellwright.__version__,
        **{name: metadata.version(name) for name in ("torch", "numpy", "llvmlite")},
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def with_spread(timing: Timing, unit: float = 1e3) -> str:
    """A median in milliseconds, or in another unit, with half the distance of its quartiles."""
    value = unit * timing.median
    spread = (timing.high - timing.low) / 2 / timing.median
    return f"{f'{value:.0f}' if value >= 100 else f'{value:.3g}'} ±{spread:.0%}"


def show_samples(samples: Sequence[Sample]) -> None:
    """The table of shapes."""
    rows = [
        [
            str(each.shape),
            each.mode,
            with_spread(each.ours),
            with_spread(each.peer),
            f"{each.ratio:.2f}",
            f"{each.operations / each.ours.median / 1e9:.1f}",
            f"{each.share:.1%}",
        ]
        for each in samples
    ]
    columns = {"T,B,I,H": "left", "mode": "left"}
    numbers = ("ours, ms", "peer, ms", "ratio", "GFLOP/s", "of peak")
    show.table({**columns, **dict.fromkeys(numbers, "right")}, rows)


def show_streaming(found: Sequence[Streaming]) -> None:
    """The table of single steps."""
    rows = [
        [
            f"{each.input_size},{each.hidden_size}",
            name,
            with_spread(timing, 1e6),
            "" if name == STEP else f"{each.ratio(name):.2f}",
        ]
        for each in found
        for name, timing in each.times.items()
    ]
    show.table({"I,H": "left", "one step": "left", "µs": "right", "ratio": "right"}, rows)


def show_compiling(empty: Readiness, disk: Readiness) -> None:
    """The table of compile times."""
    rows = [
        [title, *(f"{1e3 * getattr(each, name):.1f}" for each in (empty, disk))]
        for title, name in (
            ("starting the engine, once a process", "start"),
            ("making this cell ready, forward and backward", "ready"),
            ("a later call, forward and backward", "call"),
        )
    ]
    show.table({"": "left", "empty cache, ms": "right", "disk cache, ms": "right"}, rows)


_COLOURS = {"train": "#1f5f99", "infer": "#d1751f"}
_MODES = {"train": "forward and backward", "infer": "inference"}


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """Draw a bar for each ratio, and a line between what the quartiles would give."""
    # The object interface, not pyplot: no window system is touched and no state is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(8.0, 1.6 + 0.36 * len(samples)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(samples))
    ratios = [each.ratio for each in samples]
    spread = [
        [each.ratio - each.peer.low / each.ours.high for each in samples],
        [each.peer.high / each.ours.low - each.ratio for each in samples],
    ]
    colours = [_COLOURS[each.mode] for each in samples]
    axes.barh(places, ratios, color=colours, height=0.7)
    axes.errorbar(ratios, places, xerr=spread, fmt="none", ecolor="#333333", elinewidth=1.0)
    for place, each in zip(places, samples, strict=True):
        text = f" {each.ratio:.2f}"
        axes.annotate(
            text, (max(each.peer.high / each.ours.low, each.ratio), place), va="center", fontsize=9
        )
    axes.axvline(1.0, color="#333333", linestyle="--", linewidth=1.0)
    axes.set_yticks(places, [str(each.shape) for each in samples], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time of {samples[0].peer_name} / time of cellwright; quartiles as lines")
    axes.set_ylabel("T,B,I,H")
    axes.spines[["top", "right"]].set_visible(False)
    modes = dict.fromkeys(each.mode for each in samples)
    marks = [Patch(color=_COLOURS[mode], label=_MODES[mode]) for mode in modes]
    axes.legend(handles=marks, frameon=False, fontsize=9, loc="best")
    axes.set_title(f"{samples[0].cell}, {samples[0].engine} engine", fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
