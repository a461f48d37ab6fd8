"""The CPU engine beside its peers, all in one run: times, ratios, share of the machine's peak.

    python benchmarks/cpu.py [--part lstm,gru,...] [--output FOLDER]

Both sides take turns (ours, peer, ours, peer ...); times are medians, ± half the distance of the
quartiles; a ratio is the peer's time over ours. Training is forward and backward without a
gradient of x. Before anything is timed, the two sides are compared on outputs and gradients.
GFLOP/s count matrix products only; the peak is a loop of fused multiply-adds on registers, timed
between the calls. `results.md` and `results.json` are written after every part.

jax (for the peephole LSTM) and onnx with onnxruntime are measured where they are installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from suite import part as parts
from suite.catalogue import cells
from suite.compiling import compiling
from suite.directions import directions
from suite.layers import layers
from suite.linearity import linearity
from suite.memory import memory
from suite.onnx_runtime import onnx
from suite.part import Part, Settings
from suite.peephole import peephole
from suite.population import population
from suite.sequences import bf16, gru, lstm
from suite.streaming import streaming

from cellwright.apps import bench_report
from cellwright.apps.bench_measure import Others, load_average, processors, warning
from cellwright.apps.bench_shapes import FULL, Shape, parse_shapes
from cellwright.errors import CellwrightError

PARTS: dict[str, Callable[[Settings], Part]] = {
    "lstm": lstm,
    "gru": gru,
    "cells": cells,
    "peephole": peephole,
    "streaming": streaming,
    "compile": compiling,
    "memory": memory,
    "linearity": linearity,
    "population": population,
    "directions": directions,
    "layers": layers,
    "bf16": bf16,
    "onnx": onnx,
}

THREADS = 2  # that the bars are about


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument(
        "--threads", type=int, default=min(THREADS, processors()), help="of both sides"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="rounds of one comparison")
    parser.add_argument(
        "--shapes", nargs="+", default=["full"],
        help="T,B,I,H ... for lstm, gru and onnx; with fewer than all, no bar is judged",
    )  # fmt: skip
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to check the script and not the speed"
    )
    parser.add_argument("--output", type=Path, help="folder (default: runs/cpu-DATE-TIME)")
    chosen = parser.parse_args()
    names = chosen.part.split(",") if chosen.part else list(PARTS)
    for name in names:
        if name not in PARTS:
            parser.error(f"--part: {name!r} is not one of {', '.join(PARTS)}")
    if not 1 <= chosen.threads <= processors():
        parser.error(f"--threads: expected 1 to {processors()}, got {chosen.threads}")
    if chosen.seconds <= 0:
        parser.error(f"--seconds: expected a number above 0, got {chosen.seconds}")
    try:
        shapes = parse_shapes(chosen.shapes)
    except CellwrightError as error:
        parser.error(str(error))
    if chosen.small:
        shapes = [Shape(5, 2, 4, 4), Shape(7, 1, 3, 5)]
    torch.set_num_threads(chosen.threads)
    folder = chosen.output or Path("runs") / f"cpu-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    return run(names, Settings(chosen.threads, chosen.seconds, shapes, chosen.small), folder)


def run(names: list[str], settings: Settings, folder: Path) -> int:
    """Run the parts; 1 if one of them failed."""
    head = Part("machine")
    machine = bench_report.machine(settings.threads)
    head.say("# cellwright on a CPU")
    head.say()
    load = "" if machine["load_average"] is None else f", load {machine['load_average']:.2f} before"
    head.say(
        f"{machine['processor']}, {settings.threads} of {machine['processors']} processors{load}; "
        f"torch {machine['torch']}, llvmlite {machine['llvmlite']}, Python {machine['python']}, "
        f"{machine['platform']}."
    )
    busy = warning(settings.threads, machine["load_average"], None)
    if busy:
        head.say(f"\n**Warning:** {busy}.")
    done, failed = [head], []
    for name in names:
        head.say() if not done[1:] else done[-1].say()
        others = Others()
        try:
            part = PARTS[name](settings)
        except Exception as error:  # the other parts are measured all the same; exit code 1
            traceback.print_exc()
            failed.append(name)
            part = Part(name)
            part.say(f"## {name}: failed\n\n{type(error).__name__}: {error}")
        _tell_load(part, settings.threads, others)
        done.append(part)
        _write(folder, done, machine, failed)
    print("\n".join(_verdict(done, failed, settings.threads)))
    print(f"\nResults are in {folder}: results.md, results.json")
    return 1 if failed else 0


def _tell_load(part: Part, threads: int, others: Others) -> None:
    taken = others.share()
    load = load_average()
    part.say()
    after = "unknown" if load is None else f"{load:.2f}"
    share = "an unknown share" if taken is None else f"{taken:.0%}"
    part.say(f"Load average after: {after}; other programs took {share} of the processors.")
    busy = warning(threads, None, taken)
    if busy:
        part.busy = True
        part.say(f"\n**Warning:** {busy}.")


def _verdict(done: list[Part], failed: list[str], threads: int) -> list[str]:
    """The bars as a table, and one line that sums them up."""
    bars: list[parts.Bar] = [bar for part in done for bar in part.bars]
    words = {True: "met", False: "missed", None: "not judged"}
    lines = ["", "## Bars", "", "| bar | found | |", "|---|---:|---|"]
    lines += [f"| {bar.text} | {bar.found} | {words[bar.met]} |" for bar in bars]
    counts = {word: sum(bar.met is key for bar in bars) for key, word in words.items()}
    summary = f"Of {len(bars)} bars: " + ", ".join(f"{n} {word}" for word, n in counts.items())
    missed = [bar.text for bar in bars if bar.met is False]
    lines += ["", f"{summary}." + (f" Missed: {'; '.join(missed)}." if missed else "")]
    if threads != THREADS:
        lines += ["", f"The bars are about {THREADS} threads; these figures are of {threads}."]
    busy = [part.name for part in done if part.busy]
    if busy:
        lines += ["", f"The machine was busy with something else in: {', '.join(busy)}."]
    if failed:
        lines.append(f"\nParts that failed: {', '.join(failed)}.")
    return lines


def _write(folder: Path, done: list[Part], machine: dict, failed: list[str]) -> None:
    lines = [line for part in done for line in part.lines]
    text = "\n".join([*lines, *_verdict(done, failed, machine["threads"])])
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    content = {
        "format": 1,
        "machine": machine,
        "full_shapes": [str(each) for each in FULL],
        "failed": failed,
        "parts": {part.name: part.data for part in done[1:]},
        "bars": [bar.as_dict() for part in done for bar in part.bars],
    }
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
