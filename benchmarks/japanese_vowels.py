"""Train on Japanese Vowels with several seeds; print a Markdown table of the results.

    python benchmarks/japanese_vowels.py [--seeds 5] [--cell lstm] [--engine NAME]

The settings are the task's defaults, as in `cellwright train japanese-vowels`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from cellwright.errors import CellwrightError
from cellwright.tasks import runs
from cellwright.tasks.sources import Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds: 0, 1, ...")
    parser.add_argument("--cell", default="lstm", help="a cell's name, or path.py:cell")
    parser.add_argument("--engine", help="an engine's name (default: the one that suits)")
    chosen = parser.parse_args()
    changes = {"cell": chosen.cell, "engine": chosen.engine}
    try:
        report(chosen.seeds, changes)
    except CellwrightError as error:
        parser.error(str(error))


def report(seeds: int, changes: dict[str, str | None]) -> None:
    print("| seed | test accuracy | test loss | seconds |", flush=True)
    print("|---:|---:|---:|---:|", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            output = Path(folder) / str(seed)
            source = Source.parse("japanese-vowels")
            metrics = runs.execute(runs.prepare(source, {**changes, "seed": seed}, output))
            found.append(metrics)
            print(
                f"| {seed} | {metrics['test_accuracy']:.2%} | {metrics['test_loss']:.4f} "
                f"| {metrics['seconds']:.1f} |",
                flush=True,
            )
    accuracies = [metrics["test_accuracy"] for metrics in found]
    losses = [metrics["test_loss"] for metrics in found]
    seconds = [metrics["seconds"] for metrics in found]
    print(f"| mean | **{mean(accuracies):.2%}** | {mean(losses):.4f} | {mean(seconds):.1f} |")
    spread = f", standard deviation {stdev(accuracies):.2%}" if len(found) > 1 else ""
    last = found[-1]
    print(
        f"\nCell `{last['cell']}`, {last['parameters']:,} parameters, {last['epochs']} epochs, "
        f"{last['engine']} engine, {last['threads']} thread{spread}."
    )


if __name__ == "__main__":
    main()
