"""What the tests of the command line share: a process of its own, series, a folder's bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cellwright.train.series import SeriesSet

COMMAND = [sys.executable, "-c", "from cellwright.apps.main import run; run()"]
PATIENCE = 300  # seconds: only a process that hangs takes as long, on a busy machine too
SMALL = ("--epochs", "2", "--hidden-size", "4", "--no-bidirectional", "--learning-rate", "0.02")


def spawn(*arguments: object, **options) -> subprocess.Popen[str]:
    """Start a command in a process of its own; the fixture of this name also ends it."""
    source = Path(__file__).resolve().parents[2] / "src"
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
        **options,
    )


def wait_for_rows(log: Path, rows: int, process: subprocess.Popen[str]) -> None:
    """Wait until a process has written so many rows of a run's log; it has to be running then."""
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and log.read_text().count("\n") > rows):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{log} has no {rows} rows after {PATIENCE} s"
        time.sleep(0.005)


def make_series(count: int, seed: int) -> SeriesSet:
    """Series of two features whose first feature rises, falls or stays."""
    random = np.random.default_rng(seed)
    values, labels = [], []
    for index in range(count):
        steps = int(random.integers(3, 9))
        rising = (index % 3 - 1) * np.arange(steps) + random.normal(scale=0.3, size=steps)
        values.append(np.stack([rising, random.normal(size=steps)], axis=1))
        labels.append(("falls", "stays", "rises")[index % 3])
    return SeriesSet.of(values, labels)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
