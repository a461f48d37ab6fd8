"""The GPU engine beside its peers, all in one run: errors, times, and what would be possible.

    python benchmarks/gpu.py [--minutes 8] [--output FOLDER]
    CELLWRIGHT_INTERPRET=1 python benchmarks/gpu.py --smoke     # no GPU: checks the script

Each layer's outputs and gradients are compared with float64 first; a layer that is wrong is not
timed. Then ours, the same inside a graph of CUDA's, and the peers take turns: torch.nn (cuDNN; for
a population once for each member), a Python loop over torch's cell (for convolutions over torch's
operations), the same over a compiled cell. Times are medians by the device's events. The floors are
what the multiplications would take at the speed of torch's large products, and what it would take
to read and write x, y and the weights once at the speed of a large copy, both measured in this run.
`results.md`, `results.json` and `times.png` are written as it goes.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from suite.gpu_cases import Case, Work, cases
from suite.gpu_device import Limits, Times, captured, in_turns

import cellwright as cw
from cellwright.apps import bench_report
from cellwright.apps.bench_sides import multiplications

LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest error against float64, as a share of the norm, of outputs and every gradient."""

PEERS = ("cuDNN", "cuDNN, padded", "Python loop", "loop over a compiled step")
COLUMNS = ("ours", "ours, as a graph", *PEERS)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no case begins")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to check the script")
    parser.add_argument("--output", type=Path, help="folder (default: runs/gpu-DATE-TIME)")
    chosen = parser.parse_args()
    if not torch.cuda.is_available() and not chosen.smoke:
        parser.error("there is no GPU here; --smoke checks the script in Triton's interpreter")
    if not torch.cuda.is_available() and os.environ.get("CELLWRIGHT_INTERPRET") != "1":
        parser.error("without a GPU, --smoke needs CELLWRIGHT_INTERPRET=1 in the environment")
    folder = chosen.output or Path("runs") / f"gpu-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    return run(folder, chosen.smoke, time.monotonic() + 60 * chosen.minutes)


def run(folder: Path, smoke: bool, deadline: float) -> int:
    """Measure all cases; 1 if one of them is wrong or failed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu", 0)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU (interpreter)"
    # In float32 every side multiplies float32 numbers: by default torch lets cuDNN round to TF32.
    torch.backends.cudnn.allow_tf32 = False
    wanted = cases(smoke)
    limits = Limits.of(device, sorted({each.dtype for each in wanted}, key=str), smoke)
    print(f"{name}; torch {torch.__version__}")
    found: list[dict[str, Any]] = []
    for case in wanted:
        if time.monotonic() > deadline:
            found.append({"case": case.name, "skipped": "the time was used up"})
            continue
        try:
            found += measure(case, device, limits, smoke, deadline)
        except (cw.CellwrightError, RuntimeError) as error:
            found.append({"case": case.name, "failed": f"{type(error).__name__}: {error}"})
        gc.collect()
        print(_line(found[-1]), flush=True)
        _write(folder, name, limits, found)
    draw(folder / "times.png", found)
    print(f"\nResults are in {folder}: results.md, results.json, times.png")
    return int(any("failed" in each or "wrong" in each for each in found))


def measure(
    case: Case, device: torch.device, limits: Limits, smoke: bool, deadline: float
) -> list[dict[str, Any]]:
    """Check a case, then time it: inference and training."""
    with cw.engine("gpu") if device.type == "cpu" else nullcontext():
        work = Work(case, device)
        told = work.told()
        errors = _errors(work)
        worst = max(errors.values())
        base = {"case": case.name, "engine": told.engine, "form": told.form, "errors": errors}
        if not worst <= LIMIT[case.dtype]:
            return [{**base, "wrong": f"{worst:.2g} of the norm"}]
        found = []
        for training in (False, True):
            times, left_out = _times(work, training, smoke, deadline)
            floors = _floors(work, training, limits)
            found.append(
                {
                    **base,
                    "mode": "training" if training else "inference",
                    "times": {name: each.as_dict() for name, each in times.items()},
                    "left_out": left_out,
                    "floors_ms": floors,
                }
            )
    return found


def _errors(work: Work) -> dict[str, float]:
    """Relative norms of the differences from float64: output, x's gradient, every weight's."""
    values = []
    for module, dtype in ((work.ours, work.case.dtype), (work.exact, torch.float64)):
        x = work.x.to(dtype).detach().requires_grad_()
        with cw.engine("reference") if dtype == torch.float64 else nullcontext():
            y = module(x)[0]
            found = torch.autograd.grad(y, [x, *module.parameters()], work.gradient.to(dtype))
        values.append([y.detach(), *found])
    names = ["output", "x", *(name for name, _ in work.ours.named_parameters())]
    return {
        name: float((own.double() - exact).norm() / exact.norm().clamp_min(1e-30))
        for name, own, exact in zip(names, *values, strict=True)
    }


def _times(
    work: Work, training: bool, smoke: bool, deadline: float
) -> tuple[dict[str, Times], dict[str, str]]:
    sides, left_out = {"ours": work.call(work.ours, training)}, {}
    if work.device.type == "cuda":
        try:
            sides["ours, as a graph"] = captured(sides["ours"])
        except RuntimeError as error:
            left_out["ours, as a graph"] = str(error).splitlines()[0]
    for name, module in work.peers.items():
        loop = not name.startswith("cuDNN")
        if time.monotonic() > deadline:
            left_out[name] = "the time was used up"
        elif loop and not training:
            left_out[name] = "loops are timed in training only"
        elif smoke and name == "loop over a compiled step":
            left_out[name] = "nothing is compiled in a smoke test"
        else:
            sides[name] = work.call(module, training)
    return in_turns(sides, work.device, 0.0 if smoke else 1.0), left_out


def _floors(work: Work, training: bool, limits: Limits) -> dict[str, float]:
    """Milliseconds that the multiplications, and the bytes, would take by themselves."""
    case, layer = work.case, work.layer
    rows = case.T * case.B * max(case.members, 1) * max(case.space, 1) ** 2
    kernel = math.prod(layer.kernel_size) if case.space else 1
    operations = 2 * multiplications(layer, training=training) * kernel * rows
    weights = sum(each.numel() for each in work.ours.parameters())
    read_once = work.x.numel() + work.gradient.numel() + weights
    numbers = read_once
    if training:
        numbers = 2 * read_once + work.gradient.numel() + weights
    return {
        "arithmetic": 1e3 * operations / limits.flops[case.dtype],
        "bytes": 1e3 * numbers * case.dtype.itemsize / limits.bytes,
    }


def _line(found: dict[str, Any]) -> str:
    if "times" not in found:
        key = next(each for each in ("wrong", "failed", "skipped") if each in found)
        reason = f"{key}: {found[key]}"
        return f"| {found['case']} | {reason} |{' |' * (len(COLUMNS) + 4)}"
    cells = [found["case"], found["mode"], f"{found['engine']} {found['form'].split(',')[0]}"]
    cells.append(f"{max(found['errors'].values()):.1e}")
    for name in COLUMNS:
        cells.append(f"{found['times'][name]['median_ms']:.3g}" if name in found["times"] else "")
    floors = found["floors_ms"]
    cells += [f"{floors[each]:.2g}" for each in ("arithmetic", "bytes")]
    return f"| {' | '.join(cells)} |"


def _write(folder: Path, name: str, limits: Limits, found: list[dict[str, Any]]) -> None:
    head = ("case (T, B, I, H)", "mode", "engine", "error", *(f"{each}, ms" for each in COLUMNS),
            "floor of arithmetic", "of bytes")  # fmt: skip
    lines = ["# cellwright on a GPU", "", f"{name}; torch {torch.__version__}.", ""]
    lines += [f"| {' | '.join(head)} |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    lines += [_line(each) for each in found]
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {
        "format": 1,
        "device": name,
        "machine": bench_report.machine(torch.get_num_threads()),
        "flops": {str(dtype): each for dtype, each in limits.flops.items()},
        "bytes_a_second": limits.bytes,
        "cases": found,
    }
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def draw(path: Path, found: list[dict[str, Any]]) -> None:
    """Times of every side as dots on a line for each case, on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [each for each in found if "times" in each]
    figure = Figure(figsize=(10.0, 1.6 + 0.3 * len(timed)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in COLUMNS:
        pairs = [(row, each["times"][name]["median_ms"])
                 for row, each in enumerate(timed) if name in each["times"]]  # fmt: skip
        if pairs:
            rows, times = zip(*pairs, strict=True)
            axes.plot(times, rows, "o", label=name, markersize=5)
    axes.set_yticks(range(len(timed)), [f"{each['case']}, {each['mode']}" for each in timed])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ms, the median of one call")
    axes.grid(axis="x", alpha=0.3)
    if timed:
        axes.legend(fontsize=7)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
