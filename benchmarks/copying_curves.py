"""Draw how the loss in the copying task falls, beside a guess without memory.

cellwright reproduce copying
python benchmarks/copying_curves.py runs/reproduce-copying docs/copying.png
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cellwright.tasks.copying import memoryless_loss

SETTINGS = {
    "": ("chrono, T + 20", "#1f5f99"),
    "--forget-bias": ("forget bias 5", "#d1751f"),
    "--setting-of-2016": ("setting of 2016", "#4c9a4c"),
}


def main(runs: str, picture: str) -> None:
    figure = Figure(figsize=(11.0, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, blanks in zip(figure.subplots(1, 3), (100, 200, 500), strict=True):
        for suffix, (label, colour) in SETTINGS.items():
            for seed in sorted(Path(runs, f"T={blanks}{suffix}").glob("seed-*")):
                with (seed / "log.csv").open() as file:
                    losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
                sequences = [2.0 * (1 + epoch) for epoch in range(len(losses))]
                named = label if seed.name == "seed-0" else None
                axes.plot(sequences, losses, color=colour, label=named, linewidth=1.4)
        guess = memoryless_loss(blanks)
        axes.axhline(guess, color="#333333", linestyle="--", linewidth=1.2, label="no memory")
        axes.set_title(f"T = {blanks}", fontsize=10)
        axes.set_xlabel("thousands of sequences")
        axes.set_ylim(0.4 * guess, 1.5 * guess)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#dddddd", linewidth=0.8)
    figure.axes[0].set_ylabel("nats a step")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(picture, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
