"""How long `import cellwright` takes, against `import torch`.

    python benchmarks/import_time.py [rounds]

`import cellwright.nn` is measured too: the layers, which need torch, whether or not the library
itself loads them at once. Every import runs in a process of its own; the sides take turns, after
one unmeasured round that fills the file cache and writes the bytecode. The time is that of the
import statement alone, without the start of the interpreter.
"""

import platform
import statistics
import subprocess
import sys

SIDES = ("torch", "cellwright", "cellwright.nn")


def import_milliseconds(name: str) -> float:
    """Time `import name` in a fresh process."""
    code = (
        "from time import perf_counter as now; start = now(); "
        f"import {name}; print(1000 * (now() - start))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def main(rounds: int) -> None:
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds + 1):
        for side in SIDES:
            times[side].append(import_milliseconds(side))
    measured = {side: sorted(values[1:]) for side, values in times.items()}
    medians = {side: statistics.median(values) for side, values in measured.items()}
    print(f"Python {platform.python_version()}, {platform.machine()}, {rounds} rounds, in turns")
    for side in SIDES:
        low, high, ratio = measured[side][0], measured[side][-1], medians[side] / medians["torch"]
        print(
            f"import {side:<14} median {medians[side]:6.0f} ms ({low:.0f} to {high:.0f})"
            f"   {ratio:.3f} x torch"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
