"""A training in two processes is the training in one."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from cellwright.errors import UsageError
from cellwright.tasks import runs
from cellwright.tasks.sources import Source
from cellwright.train import processes, storage
from cellwright.train.models import load_model
from cellwright.train.module import KIND

# Nothing is drawn but the order: what is drawn differs from process to process.
CHANGES = {
    "epochs": 2, "hidden_size": 4, "bidirectional": False, "batch_size": 91, "dropout": 0.0,
    "noise": 0.0, "offset": 0.0, "crop": 0.0, "validation": 0.1, "gradient_clip": 0.05,
}  # fmt: skip


def run(folder, task="japanese-vowels", **changes):
    prepared = runs.prepare(Source.parse(task), changes, folder)
    metrics = runs.execute(prepared)
    model, _ = load_model(prepared.folder.model)
    return metrics, torch.cat([each.detach().flatten() for each in model.parameters()])


def test_two_processes_give_the_result_of_one(tmp_path):
    one, weights = run(tmp_path / "one", **CHANGES)
    before = dict(os.environ)
    two, shared = run(tmp_path / "two", **CHANGES, devices=2)
    assert dict(os.environ) == before
    torch.testing.assert_close(shared, weights, rtol=0, atol=1e-6)
    for name in ("train_loss", "validation_loss", "test_loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-6)
    assert two["sequences"] == one["sequences"]
    rows = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("one", "two")]
    assert rows[0][0] == rows[1][0]
    for row, twin in zip(rows[0][1:], rows[1][1:], strict=True):
        numbers, others = (list(map(float, each.split(",")))[:-1] for each in (row, twin))
        assert others == pytest.approx(numbers, rel=1e-4)  # six digits are written


TASK = """
import numpy as np
import torch

from cellwright.tasks.task import Data, task
from cellwright.train.sequences import Sequences
from cellwright.train.streams import Streams


class Noise:
    def __init__(self, seed, streams):
        self.seed, self.streams, self.at = seed or 0, streams, 0

    def window(self, steps):
        random = np.random.default_rng([self.seed, self.at])
        x = torch.from_numpy(random.random((steps, self.streams, 2), dtype="float32"))
        reset = torch.from_numpy(random.random((steps, self.streams)) < 0.1)
        self.at += steps
        return x, x.cumsum(0)[..., :1], reset

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, position):
        self.at = position["at"]


@task("sums", title="sums", source="a test", objective="values")
def sums() -> Data:
    inputs = [torch.ones(length, 2) for length in (9, 1, 6)]
    given = Sequences(inputs, [each[:, :1] for each in inputs], ("a", "b"), ("sum",))
    endless = Streams(Noise, ("a", "b"), ("sum",), steps=8, count=3)
    return Data(train=endless, validation=given, test=given)
"""


def test_two_processes_share_streams(tmp_path):
    """Windows of five streams, averaged by twos: 3 streams for one process, 2 for the other."""
    (tmp_path / "task.py").write_text(TASK)
    changes = {
        "epochs": 2, "hidden_size": 4, "batch_size": 5, "tbptt": 3, "accumulate": 2,
        "gradient_clip": 0.05, "learning_rate": 0.05,
    }  # fmt: skip
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        metrics, weights = run(folder, f"{tmp_path}/task.py", **changes, devices=devices)
        rows = (folder / "log.csv").read_text().splitlines()
        last = list(map(float, rows[-1].split(",")))[:-1]
        saved = storage.load(folder / "checkpoints" / "last.safetensors", KIND)
        found.append((metrics, weights, last, saved["carried"]["train"]))
    (one, weights, row, states), (two, shared, twin, gathered) = found
    torch.testing.assert_close(shared, weights, rtol=0, atol=1e-6)
    assert gathered[0].shape == (1, 5, 4)
    torch.testing.assert_close(gathered, states, rtol=0, atol=1e-6)
    assert two["sequences"] == one["sequences"]
    for name in ("validation_loss", "test_loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-6)
    assert twin == pytest.approx(row, rel=1e-4)  # six digits are written


def test_what_another_process_says_is_the_error(tmp_path):
    prepared = runs.prepare(
        Source.parse("japanese-vowels"), {**CHANGES, "devices": 2}, tmp_path / "run"
    )
    prepared.folder.config.write_text("data: {}\n")
    with pytest.raises(UsageError, match=r"--devices: process 1 .*config\.yaml"):
        runs.execute(prepared)


def test_processes_end_with_the_block():
    command = ["python3", "-c", "print('ready', flush=True); import time; time.sleep(60)"]
    with pytest.raises(KeyboardInterrupt), processes.beside(command, 2):
        assert processes.rank() == 0
        assert os.environ["WORLD_SIZE"] == "2"
        raise KeyboardInterrupt
    assert "WORLD_SIZE" not in os.environ
    with processes.beside(["no such command"], 1):
        assert "WORLD_SIZE" not in os.environ


def test_a_process_that_fails_later_is_an_error():
    command = [
        "python3",
        "-c",
        "print('ready', flush=True); raise SystemExit('Error: out of luck')",
    ]
    with (
        pytest.raises(UsageError, match="process 1 of the training ended: out of luck"),
        processes.beside(command, 2),
    ):
        raise RuntimeError("Connection closed by peer")


def test_a_process_ends_when_the_first_is_gone():
    code = (
        "from cellwright.train.processes import end_with_the_first; end_with_the_first(); "
        "print('ready', flush=True); import time; time.sleep(60)"
    )
    other = processes._Other([sys.executable, "-c", code], {}, 1)
    other.wait_until_ready()
    other.process.stdin.close()  # as if this process were killed
    assert other.process.wait(timeout=30) == 1
    other.end()
