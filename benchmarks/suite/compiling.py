"""How long a cell that was never seen before takes until it runs."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from cellwright.apps.bench_compile import measure_compile
from suite.part import Part, Settings

CELL = '''"""A peephole LSTM with a number in it that makes it a new cell."""

import cellwright as cw
from cellwright import sigmoid, tanh


@cw.cell(state=("h", "c"))
def unseen(x, h, c, W, U, V, b):
    """Unseen. Made for a measurement."""
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = f * c + NUMBER * i * g
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = o * tanh(c)
    return cw.next_state(h=h, c=c)
'''
LEAST_EMPTY, LEAST_DISK = 1.0, 0.050
UNITS = 64


def compiling(settings: Settings) -> Part:
    part = Part("compile")
    part.say(f"## A cell never seen before: ready to run forward and backward, I = H = {UNITS}")
    part.table(
        "T", "kernel cache", "starting the engine, ms", "this cell ready, ms", "both, ms",
        "a later call, ms",
    )  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {"empty": [], "disk": []}
    for steps in settings.pick((10, 10_000), (3, 10)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "unseen.py"
            number = f"0.9{secrets.randbelow(10**12):012}"
            path.write_text(CELL.replace("NUMBER", number), encoding="utf-8")
            both = measure_compile(f"{path}:unseen", steps, 1, UNITS, UNITS, settings.threads)
        for cache, each in zip(found, both, strict=True):
            part.row(
                steps, cache, f"{1e3 * each.start:.0f}", f"{1e3 * each.ready:.1f}",
                f"{1e3 * (each.start + each.ready):.0f}", f"{1e3 * each.call:.2f}",
            )  # fmt: skip
            found[cache].append((each.ready, each.start))
            part.data.append({"steps": steps, "cache": cache, **each.as_dict()})
    part.say()
    part.say(
        "The engine starts once a process, with another cell; the bars are about the cell alone."
    )
    for cache, most in (("empty", LEAST_EMPTY), ("disk", LEAST_DISK)):
        ready = [each for each, _ in found[cache]]
        with_start = max(sum(each) for each in found[cache])
        part.bar(
            f"A new cell, {cache} cache: ready in at most {1e3 * most:.0f} ms, "
            f"for T = 10 and for T = 10,000",
            f"{', '.join(f'{1e3 * each:.0f} ms' for each in ready)}; "
            f"{1e3 * with_start:.0f} ms with the engine's start",
            None if settings.small else max(ready) <= most,
        )
    return part
