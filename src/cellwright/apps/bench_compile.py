"""How long a cell takes until it runs: in a process of its own, with a kernel cache of its own.

The process first runs another cell, forward and backward: that starts the engine, which is
done once; and then at the full size, so that memory has been asked for before. Then comes the
cell, a few times. What its first call takes more than a later one is what it took to make the
kernels, or to read them from the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from cellwright.errors import EngineError

_CHILD = "from cellwright.apps.bench_compile import child; child()"


@dataclass(frozen=True)
class Readiness:
    """Seconds.

    Attributes:
        start: until another, small cell has run, with the compiler loaded for it.
        ready: from then until the cell is ready to run forward and backward.
        call: a later call, forward and backward.
    """

    start: float
    ready: float
    call: float

    def as_dict(self) -> dict[str, float]:
        """For a JSON file: milliseconds."""
        return {f"{name}_ms": 1e3 * value for name, value in asdict(self).items()}


def measure_compile(
    reference: str, steps: int, rows: int, input_size: int, hidden_size: int, threads: int
) -> tuple[Readiness, Readiness]:
    """Readiness with an empty kernel cache, then with what that left on the disk.

    Args:
        reference: a cell's name, or "path/to/file.py:cell".
        steps, rows, input_size, hidden_size: T, B, I, H.
        threads: of torch.

    Raises:
        EngineError: the process failed; the message has its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = json.dumps([reference, steps, rows, input_size, hidden_size, threads])
        first, second = (_spawn(task, folder) for _ in range(2))
    return first, second


def _spawn(task: str, cache: str) -> Readiness:
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, task],
        env={**os.environ, "CELLWRIGHT_CACHE": cache, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"compile times: the process that measures them failed: {last}")
    return Readiness(**json.loads(done.stdout.splitlines()[-1]))


def child() -> None:
    """In the process of its own: measure, and print the result."""
    import torch

    from cellwright import cells
    from cellwright.apps.bench_sides import recurrent

    reference, steps, rows, input_size, hidden_size, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    spec = cells.load(reference)
    # What torch does for the first time should not look as if it were ours.
    torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
    other = cells.get("lstm" if spec.name != "lstm" else "peephole_lstm")
    begun = perf_counter()
    _train(recurrent(other, 2, 2), torch.ones(2, 1, 2))
    start = perf_counter() - begun
    x = torch.randn(steps, rows, input_size)
    _train(recurrent(other, input_size, hidden_size), x)
    layer = recurrent(spec, input_size, hidden_size)
    times = [_train(layer, x) for _ in range(4)]
    call = min(times[1:])
    print(json.dumps({"start": start, "ready": max(times[0] - call, 0.0), "call": call}))


def _train(layer: Any, x: Any) -> float:
    """Seconds of a call, forward and backward."""
    begun = perf_counter()
    layer(x)[0].sum().backward()
    return perf_counter() - begun
