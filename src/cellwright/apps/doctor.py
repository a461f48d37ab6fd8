"""``cellwright doctor``: what this machine has."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from cellwright.apps import show

_CORE = ("torch", "numpy", "llvmlite", "safetensors")
_MORE = ("lightning", "typer", "rich", "pandas", "matplotlib", "pyyaml", "tensorboard", "triton")
_FEATURES = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd")


def doctor() -> None:
    """Show versions, processor, engines and data; ask for this in a bug report."""
    import cellwright

    show.say(f"cellwright {cellwright.__version__} in {Path(cellwright.__file__).parent}")
    show.say(f"Python {platform.python_version()} on {platform.platform()}")
    for title, names in (("core", _CORE), ("applications", _MORE)):
        show.say(f"{title}: " + ", ".join(f"{name} {_version(name)}" for name in names))
    model, features = _processor()
    show.say(f"processor: {model}, {_cores()} cores for this process")
    show.say(f"features: {' '.join(features) or 'unknown'}")
    _devices()
    _engines()
    _kernels()
    _data()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> tuple[str, list[str]]:
    """Name and vector features, as far as the system tells."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, []
    known: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        known.setdefault(key.strip(), value.strip())
    flags = (known.get("flags") or known.get("Features", "")).split()
    return known.get("model name", name), [each for each in _FEATURES if each in flags]


def _devices() -> None:
    import torch

    show.say(f"torch: {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        show.say(f"GPU {index}: {torch.cuda.get_device_name(index)}")


def _engines() -> None:
    from cellwright import engines

    show.say(f"engines: {', '.join(engines.names())}")


def _kernels() -> None:
    """What the CPU engine compiles for, and what it has compiled."""
    from cellwright.engines.cpu import jit, threads
    from cellwright.errors import EngineError

    try:
        limit = jit.features_limit()
    except EngineError as error:
        show.say(f"cpu engine: cannot be used: {error}")
    else:
        of = f"{limit} at most (CELLWRIGHT_CPU_FEATURES)" if limit else "all features"
        width = 8 * jit.target(limit).width
        show.say(f"cpu engine: {width}-bit vectors, {of}, {show.plural(threads.count(), 'thread')}")
    folder = jit.cache_folder()
    if folder is None:
        show.say("compiled kernels: not kept on disk, for CELLWRIGHT_CACHE is empty")
        return
    try:
        sizes = [each.stat().st_size for each in folder.iterdir()] if folder.exists() else []
        found = f"{show.plural(len(sizes), 'file')}, {sum(sizes) / 2**20:.1f} MiB"
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
    show.say(f"compiled kernels: {folder}, {found}")


def _data() -> None:
    from cellwright import tasks
    from cellwright.errors import CellwrightError
    from cellwright.tasks.task import GENERATED, Task

    for name in tasks.names():
        task = tasks.get(name)
        if not isinstance(task, Task) or task.licence == GENERATED:
            continue
        if not all(file.here() for file in task.files):
            show.say(f"data of {name}: not here yet; it is downloaded when it is first used")
            continue
        try:
            data = task.load()
            found = f"{len(data.train)} training and {len(data.test)} test series"
        except CellwrightError as error:
            found = f"cannot be loaded: {error}"
        show.say(f"data of {name}: {found}")
    named = os.environ.get("CELLWRIGHT_DATA")
    if named:
        there = "" if Path(named).is_dir() else ", which is not a folder"
        show.say(f"CELLWRIGHT_DATA: {named}{there}")
