"""A training in two processes is the training in one."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from cellwright.errors import UsageError
from cellwright.tasks import runs
from cellwright.tasks.sources import Source
from cellwright.train import processes
from cellwright.train.models import load_model

# Nothing is drawn but the order: what is drawn differs from process to process.
CHANGES = {
    "epochs": 2, "hidden_size": 4, "bidirectional": False, "batch_size": 91, "dropout": 0.0,
    "noise": 0.0, "offset": 0.0, "crop": 0.0, "validation": 0.1, "gradient_clip": 0.05,
}  # fmt: skip


def run(folder, **changes):
    prepared = runs.prepare(Source.parse("japanese-vowels"), {**CHANGES, **changes}, folder)
    metrics = runs.execute(prepared)
    model, _ = load_model(prepared.folder.model)
    return metrics, torch.cat([each.detach().flatten() for each in model.parameters()])


def test_two_processes_give_the_result_of_one(tmp_path):
    one, weights = run(tmp_path / "one")
    before = dict(os.environ)
    two, shared = run(tmp_path / "two", devices=2)
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
