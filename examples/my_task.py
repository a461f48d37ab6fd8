"""A task of one's own: was the first bit of the sequence a one?

cellwright train examples/my_task.py
cellwright train examples/my_task.py --with length=50 --cell peephole_lstm
cellwright reproduce examples/my_task.py --seeds 3
"""

from dataclasses import replace

import numpy as np
import torch

from cellwright.tasks.task import Case, Data, task
from cellwright.train import objectives
from cellwright.train.sequences import Generated

# The built-in objective for one class a sequence, which says here as well what is right.
FIRST_BIT = replace(
    objectives.get("class"),
    name="first bit",
    right=lambda logits, targets: logits.argmax(-1) == targets,
)


@task(
    "first-bit",
    title="Was the first bit of the sequence a one?",
    source="an example",
    objective=FIRST_BIT,
    defaults={
        "hidden_size": 8, "epochs": 40, "batch_size": 10, "learning_rate": 0.03,
        "optimizer": "adam", "schedule": "constant", "layer": {"init": "chrono:30"},
    },
    cases=(Case("length=10"), Case("length=30", options={"length": 30})),
    report=("sequences", "test_wrong"),
)  # fmt: skip
def first_bit(length: int = 10) -> Data:
    """Random bits; the class is the first of them. Training stops at 300 right in a row."""

    def draw(random: np.random.Generator, count: int):
        bits = random.integers(0, 2, (length, count))
        x = torch.from_numpy(bits[..., None].astype(np.float32))
        return x, torch.full((count,), length), torch.from_numpy(bits[0])

    train = Generated(draw, ("bit",), ("zero", "one"), count=500, streak=300)
    return Data(train=train, test=Generated(draw, ("bit",), ("zero", "one"), count=1000))
