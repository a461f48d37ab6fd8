"""Kill runs of every task at any time, go on with them, and compare with runs never stopped.

python benchmarks/killed_runs.py                      # all tasks, small budgets
python benchmarks/killed_runs.py adding cart-pole --kills 3 --seed 7
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from cellwright.apps.main import run; run()"]

# What makes a run short; the rest is the task's own setting.
SMALL = {
    "double-pole": ["--seed", "5"],
    "cart-pole": ["--with", "total_steps=25000"],
    "continual-reber": ["--epochs", "3", "--with", "symbols=6000"],
    "timed-spikes": ["--with", "streams=3000"],
    "periodic-functions": ["--epochs", "4", "--with", "updates=400"],
    "long-lag": ["--epochs", "2"],
}
OTHERS = ["--epochs", "3"]


def main() -> None:
    """Print a line a task; exit code 1 if any differs."""
    from cellwright import tasks

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help="names of tasks; all of them without any")
    parser.add_argument("--kills", type=int, default=2, help="kills of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    names = options.tasks or tasks.names()
    alike = [check(name, options.kills, moments) for name in names]
    sys.exit(not all(alike))


def check(name: str, kills: int, moments: random.Random) -> bool:
    """Whether a killed run of a task ends as one that was never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        arguments = [name, *SMALL.get(name, OTHERS)]
        began = time.perf_counter()
        train(*arguments, "--output", whole)
        duration = time.perf_counter() - began
        done, times = 0, []
        while done < kills and not (killed / "metrics.json").exists():
            resume = (killed / "config.yaml").exists()
            process = start(*(["--resume"] if resume else arguments), "--output", killed)
            times.append(moments.uniform(0.3, 1.0) * duration)
            try:
                process.wait(times[-1])
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
        if not (killed / "metrics.json").exists():
            resume = (killed / "config.yaml").exists()
            train(*(["--resume"] if resume else arguments), "--output", killed)
        same = result(whole) == result(killed)
        said = ", ".join(f"{each:.1f}" for each in times)
        print(
            f"{name}: {'the same bits' if same else 'DIFFERENT'} after {done} kills "
            f"(at {said} s of {duration:.1f} s each)",
            flush=True,
        )
        return same


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "train", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ,
    )


def train(*arguments: object) -> None:
    process = start(*arguments)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"train {arguments}: {errors.decode()}")


def result(folder: Path) -> tuple[dict[str, object], dict[str, bytes]]:
    """The metrics but for the times, and the bytes of the weights."""
    metrics = json.loads((folder / "metrics.json").read_text())
    numbers = {k: v for k, v in metrics.items() if "seconds" not in k}
    return numbers, {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


if __name__ == "__main__":
    main()
