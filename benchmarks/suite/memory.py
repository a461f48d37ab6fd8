"""Memory of a training step against torch.nn.LSTM's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cellwright as cw
from cellwright.apps.bench_shapes import FULL, Shape
from cellwright.plan import SAVES
from suite.part import Part, Settings

SHAPES = (*FULL, Shape(1000, 16, 128, 128))
LONG = Shape(100_000, 1, 256, 256)
MIB = 2**20


def memory(settings: Settings) -> Part:
    part = Part("memory")
    part.say("## Memory of a training step, each in a process of its own")
    part.table("T,B,I,H", "what", "peak of the step, MiB", "whole process, MiB")
    worst = 0.0
    for shape in settings.pick(SHAPES, [Shape(20, 2, 8, 8)]):
        torch_step = _step(part, "torch.nn.LSTM", shape, "", settings)["step"]
        for save in SAVES:
            found = _step(part, "ours", shape, save, settings)
            if save == "gates":
                worst = max(worst, found["step"] / max(torch_step, 1))
    part.bar(
        'A training step with save="gates" takes at most the memory of torch.nn.LSTM\'s',
        f"{worst:.2f} times at worst",
        None if settings.small else worst <= 1.0,
    )
    _long(part, settings)
    return part


def _long(part: Part, settings: Settings) -> None:
    shape = settings.pick(LONG, Shape(200, 1, 8, 8))
    text = f"({LONG}) trains within 1 GiB above the process's start, with checkpoints"
    found = _step(part, "ours", shape, "checkpoints", settings)["above_start"]
    part.bar(text, f"{found / MIB:,.0f} MiB", None if settings.small else found <= 1024 * MIB)


def _step(part: Part, side: str, shape: Shape, save: str, settings: Settings) -> dict[str, int]:
    task = {"side": side, "save": save, "threads": settings.threads, **shape.as_dict()}
    script = Path(__file__).with_name("training_step.py")
    source = str(Path(cw.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(task)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    name = f'{side}, save="{save}"' if save else side
    part.row(shape, name, f"{found['step'] / MIB:,.1f}", f"{found['all'] / MIB:,.0f}")
    part.data.append({**task, **found})
    return found
