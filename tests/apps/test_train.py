"""``cellwright train``: the run's folder, repeatability, interruption, and wrong input."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from apps.shell import PATIENCE, SMALL, content, make_series, wait_for_rows
from safetensors.torch import load_file

from cellwright import engines
from cellwright.tasks.ts_file import write_ts

FILES = {
    "config.yaml", "metrics.json", "log.csv", "model.safetensors", "curves.png",
    "checkpoints/best.safetensors", "checkpoints/last.safetensors",
}  # fmt: skip
OWN_CELL = Path(__file__).parents[2] / "examples" / "my_cell.py"


def test_a_run_s_folder(call, tmp_path):
    answer = call("train", "japanese-vowels", *SMALL, "--seed", 7)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("japanese-vowels-20")
    assert f"Results are in runs/{run.name}" in answer.out
    assert "270 training series, 370 test series, 12 features, 9 labels" in answer.out
    assert "ResNet 99.2%" in answer.out
    assert "TWIESN 96.5% (Ismail Fawaz" in answer.out and "; mean of ten runs)" in answer.out
    assert set(content(run)) == FILES
    assert not any(b"torch.storage" in data for data in content(run).values())  # no pickle
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"] == {"task": "japanese-vowels"}
    assert config["settings"]["hidden_size"] == 4
    assert config["settings"]["noise"] == 0.5  # the task's own default
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["engine"] in engines.names()
    assert metrics["seed"] == 7
    assert metrics["test_series"] == 370
    assert 0 <= metrics["test_accuracy"] <= 1
    assert f"{metrics['test_accuracy']:.2%}" in answer.out
    assert {"test_loss", "train_loss", "train_accuracy", "seconds"} <= set(metrics)
    with (run / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["train_loss"]) > 0
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sum(each.numel() for each in load_file(run / "model.safetensors").values()) == (
        metrics["parameters"] + 24  # and the input's means and deviations
    )


def test_the_same_seed_gives_the_same_bytes(call, tmp_path, ts_file):
    for name in ("a", "b"):
        call("train", ts_file, *SMALL, "--seed", 3, "--validation", 0.2, "--output", name)
    call("train", ts_file, *SMALL, "--seed", 4, "--validation", 0.2, "--output", "c")
    a, b, c = (content(tmp_path / name) for name in "abc")
    for name in ("model.safetensors", "config.yaml", "curves.png"):
        assert a[name] == b[name]
    assert a["model.safetensors"] != c["model.safetensors"]


def test_killed_and_resumed_ends_with_the_same_bytes(call, spawn, tmp_path):
    arguments = [
        "japanese-vowels", "--epochs", 8, "--hidden-size", 4, "--batch-size", 32,
        "--validation", 0.2,
    ]  # fmt: skip
    call("train", *arguments, "--output", "whole")
    process = spawn("train", *arguments, "--output", tmp_path / "killed")
    wait_for_rows(tmp_path / "killed" / "log.csv", 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()
    call("train", "--resume", "--output", "killed")
    whole, killed = content(tmp_path / "whole"), content(tmp_path / "killed")
    assert set(killed) == FILES
    assert killed["model.safetensors"] == whole["model.safetensors"]
    assert killed["config.yaml"] == whole["config.yaml"]
    assert killed["log.csv"].count(b"\n") == 9
    ours, theirs = (json.loads(each["metrics.json"]) for each in (killed, whole))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_ctrl_c_ends_with_130_and_can_be_resumed(call, spawn, tmp_path):
    process = spawn("train", "japanese-vowels", "--epochs", 500, "--output", tmp_path / "run")
    wait_for_rows(tmp_path / "run" / "log.csv", 1, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors == (
        f"Error: interrupted; to go on: cellwright train --resume --output {tmp_path / 'run'}\n"
    )
    assert (
        "holds an unfinished run" in call("train", "japanese-vowels", "--output", "run", code=2).err
    )


def test_resuming_a_run_that_has_ended_shows_its_results(call, refused, tmp_path, ts_file):
    call("train", ts_file, *SMALL, "--output", "run")
    before = content(tmp_path / "run")
    answer = call("train", ts_file, "--resume", "--output", "run", *SMALL)
    assert "This run has ended" in answer.out
    refused("--epochs: the run in run has 2", "train", "--resume", "--output", "run", "--epochs", 9)
    assert content(tmp_path / "run") == before


def test_overwriting_replaces_a_run(call, refused, tmp_path, ts_file):
    call("train", ts_file, *SMALL, "--output", "run")
    before = content(tmp_path / "run")
    refused("run holds a finished run; --overwrite", "train", ts_file, *SMALL, "--output", "run")
    assert content(tmp_path / "run") == before
    call("train", ts_file, *SMALL, "--output", "run", "--overwrite", "--cell", "gru")
    after = content(tmp_path / "run")
    assert set(after) == FILES
    assert json.loads(after["metrics.json"])["cell"] == "gru"


def test_a_failing_run_leaves_the_earlier_results(call, refused, tmp_path, ts_file, monkeypatch):
    call("train", ts_file, *SMALL, "--output", "run")
    before = content(tmp_path / "run")
    over = ("--output", "run", "--overwrite")
    broken = tmp_path / "broken.ts"
    broken.write_text(ts_file.read_text()[:-30])
    refused("broken.ts:38: expected 2 dimensions and a label", "train", broken, *SMALL, *over)
    refused("no cell is named 'lsmt'", "train", ts_file, *SMALL, *over, "--cell", "lsmt")
    refused("has no size 'projection'", "train", ts_file, *over, "--size", "projection=3")
    assert content(tmp_path / "run") == before

    from cellwright.train.module import TrainingModule

    monkeypatch.setattr(
        TrainingModule, "_measure", lambda self, part, batch: (torch.tensor(float("inf")), None)
    )
    refused("the loss became inf in epoch 1", "train", ts_file, *SMALL, *over)
    after = content(tmp_path / "run")
    assert {name: data for name, data in after.items() if "overwriting" not in name} == before


def test_a_file_of_one_s_own(call, ts_file, csv_file):
    for file in (ts_file, csv_file):
        answer = call("train", file, *SMALL, "--epochs", 25, "--output", file.suffix[1:])
        assert "mine: 24 training series, 6 test series" in answer.out
        assert "a share of 0.2 of each label, drawn with seed 0" in answer.out
        metrics = json.loads(Path(file.suffix[1:], "metrics.json").read_text())
        assert metrics["test_accuracy"] > 0.6  # chance is a third
    answer = call("train", ts_file, *SMALL, "--test-share", 0.5, "--output", "half")
    assert "15 training series, 15 test series" in answer.out


def test_a_test_file_of_one_s_own(call, tmp_path):
    write_ts(tmp_path / "walk_TRAIN.ts", make_series(12, 0))
    write_ts(tmp_path / "walk_TEST.ts", make_series(9, 1))
    answer = call("train", "walk_TRAIN.ts", *SMALL, "--output", "a")
    assert "walk_TEST.ts lies beside it" in answer.out
    answer = call("train", "walk_TRAIN.ts", "--test", "walk_TEST.ts", *SMALL, "--output", "b")
    assert "12 training series, 9 test series" in answer.out
    assert "lies beside" not in answer.out


def test_a_cell_of_one_s_own_is_trained(call, tmp_path):
    call(
        "train", "japanese-vowels", "--cell", f"{OWN_CELL}:calm_gru", "--epochs", 4,
        "--hidden-size", 16, "--output", "run",
    )  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["cell"] == "calm_gru"
    assert metrics["test_accuracy"] > 0.6  # chance is 0.24, the share of the largest class
    assert f"{metrics['test_accuracy']:.2%}" in call("evaluate", "run").out


def test_the_example_has_what_it_is_there_to_show():
    import cellwright as cw

    text = cw.cells.load(f"{OWN_CELL}:calm_gru").equations()
    assert "U.n @ (r[t] * h[t-1])" in text
    assert "mean(" in text


def test_a_cell_with_a_size_of_its_own(call, ts_file, refused):
    cell = ("--cell", "lstm_projection")
    refused(
        "--size: cell lstm_projection has a size 'projection'; give it",
        "train",
        ts_file,
        *SMALL,
        *cell,
        "--output",
        "run",
    )
    call("train", ts_file, *SMALL, *cell, "--size", "projection=3", "--output", "run")


def test_the_engine_is_recorded_and_goes_on(call, refused, tmp_path, ts_file):
    cell = ("--cell", "gru")
    call("train", ts_file, *SMALL, *cell, "--engine", "reference", "--output", "asked")
    call("train", ts_file, *SMALL, *cell, "--output", "suits")
    for name, engine in (("asked", "reference"), ("suits", engines.names()[0])):
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        assert config["settings"]["engine"] == metrics["engine"] == engine
    before = content(tmp_path / "asked")
    for gone in ("metrics.json", "model.safetensors", "checkpoints/last.safetensors"):
        (tmp_path / "asked" / gone).unlink()  # as if it had been killed in the first epoch
    resume = ("train", "--resume", "--output", "asked")
    refused("--engine: the run in asked has 'reference'", *resume, "--engine", "cpu")
    assert "on the reference engine" in call(*resume).out
    after = content(tmp_path / "asked")
    assert after["model.safetensors"] == before["model.safetensors"]
    assert json.loads(after["metrics.json"])["engine"] == "reference"


def test_tensorboard(call, refused, tmp_path, ts_file, monkeypatch):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    call("train", ts_file, *SMALL, "--tensorboard", "--output", "run")
    assert any("events.out" in name for name in content(tmp_path / "run"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(
        "--tensorboard: TensorBoard is not installed; install it with: pip install "
        "'cellwright[tensorboard]'",
        "train", ts_file, *SMALL, "--tensorboard", "--output", "other",
    )  # fmt: skip
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "which task or file? tasks are japanese-vowels"),
        (("train", "nothing"), "no task is named 'nothing'"),
        (("train", "none.ts"), "none.ts: there is no such file"),
        (("train", "mine.ts", "--epochs", 0), "--epochs: expected a whole number, 1 or more"),
        (("train", "mine.ts", "--epochs", "many"), "--epochs"),
        (("train", "mine.ts", "--dropout", 1), "--dropout: expected a number 0 or more and below"),
        (("train", "mine.ts", "--pooling", "sum"), "--pooling: expected one of last, mean"),
        (("train", "mine.ts", "--size", "projection"), "--size: expected NAME=N"),
        (("train", "mine.ts", "--cell", "no.py:cell"), "no.py"),
        (("train", "mine.ts", "--layer", "heads=7"), "--layer heads: 7 does not divide"),
        (
            ("train", "mine.ts", "--engine", "warp"),
            "--engine: expected one of cpu, gpu, reference, got 'warp'",
        ),
        (("train", "mine.ts", "--test", "none.ts"), "none.ts: there is no such file"),
        (("train", "mine.ts", "--test-share", 2), "--test-share: expected a number above 0"),
        (("train", "mine.ts", "--output", "mine.ts"), "--output: mine.ts is a file"),
        (("train", "mine.ts", "--resume"), "--resume: say with --output which run"),
        (("train", "mine.ts", "--resume", "--output", "x"), "there is no run to resume"),
        (("train", "mine.ts", "--resume", "--overwrite"), "exclude each other"),
        (("train", "--unknown"), "No such option"),
        (("trian",), "No such command"),
    ],
)
def test_wrong_input_is_one_message_and_writes_nothing(
    call, refused, ts_file, tmp_path, arguments, message
):
    refused(message, *arguments)
    assert list(tmp_path.iterdir()) == [ts_file]


def test_what_a_resumed_run_cannot_change(call, refused, tmp_path, ts_file):
    from cellwright.train import folder

    call("train", ts_file, *SMALL, "--output", "run")
    run = folder.RunFolder(tmp_path / "run", tmp_path / "run")
    run.metrics.unlink()  # as if it had been killed before its end
    resume = ("--resume", "--output", "run")
    refused("--epochs: the run in run has 2", "train", *resume, "--epochs", 3)
    refused("the run in run is on", "train", "japanese-vowels", *resume)
    refused("its data and their split", "train", ts_file, *resume, "--test-share", 0.4)
    ts_file.write_text(ts_file.read_text() + "1:2:rises\n")
    refused("mine.ts: the file has changed", "train", *resume)
    run.config.write_text(run.config.read_text().replace("epochs: 2", "epochs: two"))
    refused("config.yaml: what it records cannot be used: --epochs", "train", *resume)
    run.config.write_text("format_version: 2\n")
    refused("config.yaml: its format is version 2", "train", *resume)


def test_a_checkpoint_that_cannot_be_resumed(call, refused, tmp_path, ts_file):
    call("train", ts_file, *SMALL, "--output", "run")
    call("train", ts_file, *SMALL, "--output", "other", "--cell", "gru")
    resume = ("train", "--resume", "--output", "run")
    (tmp_path / "run" / "metrics.json").unlink()
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:-20])
    refused("last.safetensors: expected a safetensors file, but it is damaged", *resume)
    last.write_bytes((tmp_path / "other" / "checkpoints" / "last.safetensors").read_bytes())
    refused("the checkpoint belongs to another run", *resume)
    last.write_bytes(whole)
    call(*resume)


def test_a_model_too_large_for_memory_is_one_message(refused, tmp_path):
    size = ("--hidden-size", 10**12)  # no processor can address the first of its matrices
    refused("not enough memory", "train", "japanese-vowels", *size, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_the_process_with_2_and_no_traceback(spawn, tmp_path):
    (tmp_path / "bad.ts").write_text("@classLabel true a b\n@data\n1,2,?:a\n")
    process = spawn("train", "bad.ts", cwd=tmp_path)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert out == ""
    assert errors == (
        "Error: bad.ts:3: dimension 1, value 3 is missing; missing values are not supported: "
        "fill them in first\n"
    )


def test_help_loads_neither_torch_nor_lightning():
    code = (
        "import sys; from cellwright.apps.main import app\n"
        "from typer.testing import CliRunner\n"
        "for arguments in (['--help'], ['train', '--help'], ['cells'], ['cells', 'lstm']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'pandas', 'yaml', 'llvmlite', 'triton'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_method_can_be_asked_for(call, tmp_path, ts_file):
    call(
        "train", ts_file, *SMALL, "--output", "a", "--schedule", "plateau", "--decay", 0.5,
        "--decay-epochs", 1, "--gradient-clip-value", 0.1, "--nonfinite", "skip", "--accumulate", 2,
        "--average", 0.9, "--patience", 1, "--precision", "bf16-mixed", "--optimizer", "rmsprop",
        "--layer", "gradient=truncated",
    )  # fmt: skip
    settings = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["settings"]
    asked = {
        "schedule": "plateau", "decay": 0.5, "decay_epochs": 1, "gradient_clip_value": 0.1,
        "nonfinite": "skip", "accumulate": 2, "average": 0.9, "patience": 1,
        "precision": "bf16-mixed", "optimizer": "rmsprop", "layer": {"gradient": "truncated"},
    }  # fmt: skip
    assert {name: settings[name] for name in asked} == asked
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["skipped"] == 0
    with (tmp_path / "a" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["gradient_norm"]) > 0 for row in rows)
    assert all(0 <= float(row["clipped"]) <= 1 and row["skipped"] == "0" for row in rows)


def test_the_learning_rate_can_be_found(call, tmp_path, ts_file):
    answer = call(
        "train", ts_file, "--epochs", 1, "--hidden-size", 4, "--output", "a",
        "--find-learning-rate",
    )  # fmt: skip
    assert answer.err == ""  # no bar of Lightning's
    settings = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["settings"]
    assert f"learning rate {settings['learning_rate']:g}" in answer.out
    assert settings["learning_rate"] != 0.006
    assert 1e-5 < settings["learning_rate"] < 1
