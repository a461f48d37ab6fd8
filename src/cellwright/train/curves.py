"""A picture of a run: loss and metric by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.train.files import replacing

if TYPE_CHECKING:
    from cellwright.train.callbacks import Row

_PARTS = {
    "train": ("training, with its noise and dropout", "#1f5f99"),
    "validation": ("validation", "#d1751f"),
}


def draw(
    path: Path, rows: Sequence[Row], metric_name: str, title: str, test: dict[str, float]
) -> None:
    """Draw loss (logarithmic) and metric by epoch into a PNG file.

    Args:
        path: the file.
        rows: the run's log.
        metric_name: as in `Objective`.
        title: above the picture.
        test: final values on the test series, "loss" and the metric, drawn as lines.
    """
    # The object interface, not pyplot: no window system is touched and no state is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric_name), strict=True):
        for part, (label, colour) in _PARTS.items():
            if f"{part}_{name}" in rows[0]:
                values = [row[f"{part}_{name}"] for row in rows]
                marker = "o" if len(rows) < 3 else None
                axes.plot(epochs, values, color=colour, label=label, marker=marker, linewidth=1.6)
        if name in test:
            axes.axhline(
                test[name],
                color="#333333",
                linestyle="--",
                linewidth=1.2,
                label=f"test, at the end: {test[name]:.4g}",
            )
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_ylabel(name)
        if name == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plainly())
            axes.yaxis.set_minor_formatter(_plainly())
        axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _plainly() -> Any:
    """Numbers of a logarithmic axis as 0.05, for as many of its marks as have room."""
    from matplotlib.ticker import LogFormatter

    class Plainly(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:.4g}" if super().__call__(x, pos) else ""

    return Plainly()
