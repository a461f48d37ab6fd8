"""What the tests of the command line share: a process of its own, series, a folder's bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from cellwright.train.series import SeriesSet

COMMAND = [sys.executable, "-c", "from cellwright.apps.main import run; run()"]
SMALL = ("--epochs", "2", "--hidden-size", "4", "--no-bidirectional", "--learning-rate", "0.02")


def spawn(*arguments: object, **options) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    source = Path(__file__).resolve().parents[2] / "src"
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
        **options,
    )


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
