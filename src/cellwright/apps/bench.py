"""``cellwright bench``: how fast a cell is on this machine, beside what it replaces."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from cellwright.apps import show
from cellwright.errors import UsageError

if TYPE_CHECKING:
    from cellwright.apps.bench_report import Report
    from cellwright.apps.bench_shapes import Shape
    from cellwright.lang import CellSpec

_MODES = {"train": ("train",), "infer": ("infer",), "both": ("train", "infer")}


def bench(
    cell: Annotated[
        str, Argument(metavar="CELL", help="A cell's name, or path/to/file.py:cell.")
    ] = "lstm",
    shapes: Annotated[
        list[str] | None,
        Option(
            metavar="quick|full|T,B,I,H",
            help="Steps, rows, input and state units; may be given several times.",
            show_default="quick",
        ),
    ] = None,
    mode: Annotated[
        str, Option(metavar="train|infer|both", help="Forward and backward, inference, or both.")
    ] = "both",
    threads: Annotated[
        int | None, Option(help="Threads of both sides.", show_default="torch's number")
    ] = None,
    seconds: Annotated[float, Option(help="How long the rounds of one shape take in all.")] = 1.0,
    output: Annotated[
        Path | None,
        Option(help="The folder of the results.", show_default="runs/bench-CELL-DATE-TIME"),
    ] = None,
) -> None:
    """Measure a cell's speed on this machine, in turns with torch.nn or a Python loop."""
    from cellwright.apps.bench_shapes import parse_shapes

    if mode not in _MODES:
        raise UsageError(f"--mode: expected train, infer or both, got {mode!r}")
    if not 0 < seconds < 3600:
        raise UsageError(f"--seconds: expected a number above 0 and below 3600, got {seconds!r}")
    wanted = parse_shapes(shapes or ["quick"])
    _check_threads(threads)

    import torch

    from cellwright import cells
    from cellwright.apps import bench_report
    from cellwright.train import measure

    spec = cells.load(cell)
    folder = _folder(output, spec.name)
    with measure.threads(threads or torch.get_num_threads()):
        report = _measure(cell, spec, wanted, _MODES[mode], seconds)
    report.write(folder)
    show.say(f"\nResults are in {folder}: {bench_report.RESULTS}, {bench_report.PICTURE}")


def _check_threads(threads: int | None) -> None:
    from cellwright.apps.bench_measure import processors

    most = processors()
    if threads is not None and not 1 <= threads <= most:
        raise UsageError(
            f"--threads: this process may use {most} processors; "
            f"expected a number from 1 to {most}, got {threads}"
        )


def _folder(output: Path | None, cell: str) -> Path:
    """The folder to write to, made; an earlier measurement is not overwritten."""
    from cellwright.apps.bench_report import RESULTS

    folder = output or Path("runs") / f"bench-{cell}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / RESULTS).exists():
        raise UsageError(f"--output: {folder} has the results of an earlier run; name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output: {folder} cannot be made: {error.strerror}") from error
    return folder


def _measure(
    reference: str, spec: CellSpec, shapes: list[Shape], modes: tuple[str, ...], seconds: float
) -> Report:
    """Measure, and show each table as soon as it is there."""
    import torch

    from cellwright.apps import bench_measure, bench_report
    from cellwright.apps.bench_compile import measure_compile
    from cellwright.apps.bench_shapes import Shape
    from cellwright.apps.bench_sides import LOOP, Work, measure
    from cellwright.apps.bench_steps import measure_steps

    threads = torch.get_num_threads()
    machine, others = bench_report.machine(threads), bench_measure.Others()
    first = Work.of(spec, Shape(1, 1, 1, 1))
    _announce(machine, first.engine)
    samples, streaming = [], []
    with _progress() as progress:
        task = progress.add_task("", total=len(shapes) * len(modes))
        for shape in shapes:
            for each in modes:
                progress.update(task, description=f"{spec.name} at {shape}, {each}")
                samples.append(measure(Work.of(spec, shape), shape, each, seconds))
                progress.advance(task)
    show.say(f"Cell {spec.name}; the peer is {'a ' * (first.peer_name == LOOP)}{first.peer_name}")
    bench_report.show_samples(samples)
    peak = max(each.peak_flops for each in samples)
    show.say(
        f"\nMedians, ± half the distance of the quartiles; ratio: the peer's time over ours.\n"
        f"GFLOP/s: of matrix products alone. Peak: fused multiply-adds in registers on as many "
        f"threads,\ntimed between the calls: {peak / 1e9:.0f} GFLOP/s at best."
    )
    if "infer" in modes:
        for inputs, units in dict.fromkeys((each.I, each.H) for each in shapes):
            streaming.append(measure_steps(spec, inputs, units, seconds / 2))
        show.say("\nStreaming: one step called from Python, B = 1")
        bench_report.show_streaming(streaming)
    shape = shapes[0]
    compiling = measure_compile(reference, shape.T, shape.B, shape.I, shape.H, threads)
    show.say(f"\nCompiling, in a process of its own, at {shape}")
    bench_report.show_compiling(*compiling)
    taken = others.share()
    busy = bench_measure.warning(threads, machine["load_average"], taken)
    if busy:
        show.say(f"\nWarning: {busy}.")
    return bench_report.Report(machine, samples, streaming, compiling, taken)


def _announce(machine: dict[str, Any], engine: str) -> None:
    from cellwright.apps.bench_measure import warning

    load = machine["load_average"]
    show.say(
        f"{machine['processor']}, {machine['threads']} of {machine['processors']} processors"
        + ("" if load is None else f", load average {load:.2f}")
    )
    show.say(
        f"cellwright {machine['cellwright']} on the {engine} engine, torch {machine['torch']}, "
        f"llvmlite {machine['llvmlite']}, Python {machine['python']}\n"
    )
    busy = warning(machine["threads"], load, None)
    if busy:
        show.say(f"Warning: {busy}.\n")


def _progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=show.out, transient=True, disable=not show.out.is_terminal)
