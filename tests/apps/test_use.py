"""``cellwright evaluate`` and ``cellwright predict``."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from apps.shell import SMALL, content, make_series

import cellwright as cw
from cellwright.nn.stack import RecurrentStack
from cellwright.tasks.long_csv import write_long_csv
from cellwright.tasks.ts_file import read_ts, write_ts
from cellwright.train import storage
from cellwright.train.series import SeriesSet


@pytest.fixture
def run(call, ts_file, tmp_path):
    call("train", ts_file, *SMALL, "--epochs", 20, "--output", "run")
    return tmp_path / "run"


def unlabelled(series):
    return SeriesSet.of(series.values)


def test_evaluate_repeats_the_test(call, run):
    metrics = json.loads((run / "metrics.json").read_text())
    before = content(run)
    answer = call("evaluate", run)
    assert "the test series of mine" in answer.out
    assert f"{metrics['test_accuracy']:.2%}" in answer.out
    assert f"{metrics['test_loss']:.4f}" in answer.out
    assert content(run) == before


def test_evaluate_on_a_file(call, run, tmp_path):
    write_ts(tmp_path / "new.ts", make_series(9, 5))
    answer = call("evaluate", run, "--data", "new.ts")
    assert "measured on new.ts" in answer.out
    assert " 9 " in answer.out


def test_predict_prints_and_writes(call, run, tmp_path):
    write_ts(tmp_path / "new.ts", make_series(9, 5))
    answer = call("predict", run, "new.ts", "--rows", 3, "--output", "out/answers.csv")
    assert "... and 6 more" in answer.out
    with (tmp_path / "out" / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["series"] for row in rows] == [str(i) for i in range(1, 10)]
    assert [row["label"] for row in rows] == ["falls", "stays", "rises"] * 3
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert f"{right} of 9 as labelled" in answer.out
    assert right >= 5  # chance is 3
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)


def test_labels_are_not_needed_to_predict(call, run, tmp_path, refused):
    write_ts(tmp_path / "new.ts", unlabelled(make_series(3, 5)))
    answer = call("predict", run, "new.ts", "--output", "answers.csv")
    assert "as labelled" not in answer.out
    assert (tmp_path / "answers.csv").read_text().startswith("series,predicted,probability\n1,")
    refused("new.ts: the series have no labels", "evaluate", run, "--data", "new.ts")


def test_a_label_unseen_in_training(call, run, tmp_path, refused):
    series = make_series(3, 5)
    write_ts(tmp_path / "new.ts", SeriesSet.of(series.values, ["falls", "jumps", "stays"]))
    line = read_ts(tmp_path / "new.ts").lines[1]
    refused(
        f"new.ts:{line}: label 'jumps' did not occur in training; the labels there are falls",
        "evaluate", run, "--data", "new.ts",
    )  # fmt: skip
    assert "jumps" in call("predict", run, "new.ts").out


def test_another_number_of_features(refused, run, tmp_path):
    series = make_series(3, 5)
    wide = SeriesSet.of([each[:, [0, 1, 1]] for each in series.values], series.labels)
    write_ts(tmp_path / "wide.ts", wide)
    line = read_ts(tmp_path / "wide.ts").lines[0]
    message = f"wide.ts:{line}: expected 2 features as in training, got 3"
    refused(message, "predict", run, "wide.ts")
    refused(message, "evaluate", run, "--data", "wide.ts")
    write_long_csv(tmp_path / "wide.csv", wide)
    refused("wide.csv:2: expected 2 features", "predict", run, "wide.csv")


def test_csv_features_go_by_their_names(call, refused, csv_file, tmp_path):
    call("train", csv_file, *SMALL, "--epochs", 20, "--output", "run")
    text = "series_id,time,x1,x0\n" + "".join(f"s,{t},0,{3 * t}\n" for t in range(6))
    (tmp_path / "new.csv").write_text(text)
    assert " rises " in call("predict", "run", "new.csv").out
    (tmp_path / "new.csv").write_text(text.replace("x1", "x2"))
    refused("new.csv:1: expected the features x0, x1; missing: x1; unknown: x2", "predict", "run",
            "new.csv")  # fmt: skip


def test_columns_named_in_training_are_known_afterwards(call, csv_file):
    text = csv_file.read_text().replace("series_id", "utt").replace("label", "speaker")
    csv_file.write_text(text)
    names = ("--series-column", "utt", "--label-column", "speaker")
    call("train", csv_file, *SMALL, *names, "--output", "run")
    assert "of 30 as labelled" in call("predict", "run", csv_file).out
    call("evaluate", "run", "--data", csv_file)


def test_the_engine_is_the_run_s_own_or_the_one_asked_for(call, refused, run, ts_file):
    ran = []

    def seen(module, arguments, output):
        if isinstance(module, RecurrentStack):
            ran.append(cw.explain(module, arguments[0]).engine)

    removed = torch.nn.modules.module.register_module_forward_hook(seen)
    try:
        for command in (("evaluate", run), ("predict", run, ts_file)):
            call(*command)
            call(*command, "--engine", "reference")
            refused(
                "--engine: expected one of cpu, gpu, reference, got ''", *command, "--engine", ""
            )
    finally:
        removed.remove()
    own = json.loads((run / "metrics.json").read_text())["engine"]
    assert ran == [own, "reference", own, "reference"]


def test_runs_that_cannot_be_used(call, refused, run, tmp_path, ts_file, monkeypatch):
    model = run / "model.safetensors"
    whole = model.read_bytes()
    refused("none: there is no such run", "evaluate", "none")
    (tmp_path / "empty").mkdir()
    refused("this is not the folder of a run", "evaluate", "empty")
    model.write_bytes(whole[:-1])
    refused("model.safetensors: expected a safetensors file, but it is damaged", "evaluate", run)
    torch.save({"weights": torch.zeros(1)}, model)
    refused("it is damaged or truncated", "predict", run, ts_file)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT_VERSION", 9)
        storage.save(model, "cellwright-model", {})
    refused("its format is version 9", "evaluate", run)
    call("train", ts_file, *SMALL, "--cell", "gru", "--output", "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", model)
    refused("weights of another run, whose cell is 'gru'; ", "evaluate", run)
    renamed = ts_file.rename(tmp_path / "yours.ts")
    call("train", renamed, *SMALL, "--output", "third")
    renamed.rename(ts_file)
    shutil.copy(tmp_path / "third" / "model.safetensors", model)
    refused("weights of another run, whose task is 'yours'", "evaluate", run)
    model.write_bytes(whole)
    refused("weights of the cell lstm, not of gru", "evaluate", run, "--cell", "gru")
    (run / "metrics.json").unlink()
    refused("its training has not ended", "evaluate", run)


def test_files_that_cannot_be_used(call, refused, run, ts_file):
    refused("none.ts: there is no such file", "predict", run, "none.ts")
    refused("x.txt: expected a file whose name ends in .ts", "predict", run, "x.txt")
    refused("is the file to read; name another", "predict", run, ts_file, "--output", ts_file)
    Path("mine").write_text("")
    refused("cannot be written", "predict", run, ts_file, "--output", "mine/answers.csv")
    ts_file.write_text(ts_file.read_text() + "1:2:rises\n")
    refused("mine.ts: the file has changed", "evaluate", run)
