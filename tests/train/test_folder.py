"""A run's folder: a new run never spoils an earlier one's, and each state is told apart."""

from __future__ import annotations

import re

import pytest

from cellwright.errors import CheckpointError, UsageError
from cellwright.train import folder


def finish(made: folder.RunFolder, text: str) -> None:
    folder.write_config(made, {"text": text})
    for name in ("log.csv", "model.safetensors", "curves.png"):
        (made.work / name).write_text(text)
    (made.work / "checkpoints").mkdir(exist_ok=True)
    for name in ("best", "last"):
        (made.work / "checkpoints" / f"{name}.safetensors").write_text(text)
    folder.write_metrics(made, {"text": text})


def content(path):
    return {
        str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def test_a_dated_folder_is_always_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder.time, "strftime", lambda form: "20240131-120000")
    names = [folder.create(None, "task").path.as_posix() for _ in range(3)]
    stem = "runs/task-20240131-120000"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]


def test_records_come_back(path):
    made = folder.create(path, "task")
    folder.write_config(made, {"settings": {"rate": 0.1, "cell": "a: b"}, "list": [1, None]})
    assert folder.read_config(made) == {
        "settings": {"rate": 0.1, "cell": "a: b"},
        "list": [1, None],
    }
    folder.write_metrics(made, {"test_accuracy": 0.1 + 0.2})
    assert folder.read_metrics(made) == {"test_accuracy": 0.1 + 0.2}


def test_a_finished_run_is_not_overwritten_unless_asked(path):
    finish(folder.create(path, "task"), "old")
    before = content(path)
    with pytest.raises(UsageError, match="holds a finished run; --overwrite replaces it"):
        folder.create(path, "task")
    assert content(path) == before


def test_the_earlier_run_stays_until_the_new_one_has_ended(path):
    finish(folder.create(path, "task"), "old")
    (path / "notes.txt").write_text("the user's own")
    (path / "tensorboard").mkdir()
    (path / "tensorboard" / "events").write_text("old")
    before = content(path)
    made = folder.create(path, "task", overwrite=True)
    folder.write_config(made, {"text": "new"})
    assert {name: text for name, text in content(path).items() if "overwriting" not in name} == (
        before
    )
    finish(made, "new")
    made.finish()
    after = content(path)
    assert after.pop("notes.txt") == "the user's own"
    assert all("new" in text for text in after.values())
    assert len(after) == 7


def test_a_run_that_replaces_another_can_be_killed_at_any_moment(path, monkeypatch):
    """Whatever move of the exchange it is killed at, resuming brings all new files."""
    for moves in range(8):
        target = path / str(moves)
        finish(folder.create(target, "task"), "old")
        made = folder.create(target, "task", overwrite=True)
        finish(made, "new")
        done = []
        replace = folder.os.replace

        def killed(source, to, replace=replace, done=done, moves=moves):
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(to)
            replace(source, to)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(folder.os, "replace", killed)
            made.finish()
            raise KeyboardInterrupt  # the last time, nothing is left to be interrupted
        found = folder.reopen(target)
        assert found.metrics.exists()
        found.finish()
        assert all("new" in text for text in content(target).values())
        assert len(content(target)) == 7


def test_an_unfinished_run_is_resumed_or_overwritten(path):
    made = folder.create(path, "task")
    folder.write_config(made, {"text": "old"})
    (path / "log.csv").write_text("old")
    (path / ".partial-1-log.csv").write_text("half")
    with pytest.raises(UsageError, match="holds an unfinished run; --resume continues it"):
        folder.create(path, "task")
    assert folder.reopen(path) == made
    assert not (path / ".partial-1-log.csv").exists()
    assert folder.create(path, "task", overwrite=True).work == path
    assert content(path) == {}


def test_resuming_continues_the_run_that_was_to_replace_another(path):
    finish(folder.create(path, "task"), "old")
    made = folder.create(path, "task", overwrite=True)
    folder.write_config(made, {"text": "new"})
    assert folder.reopen(path).work == made.work


def refused(error, message, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    assert re.search(message, str(caught.value))


def test_folders_that_are_no_runs(path, tmp_path):
    refused(CheckpointError, "there is no run to resume", folder.reopen, path)
    refused(CheckpointError, "there is no such run", folder.finished, path)
    path.mkdir()
    assert folder.create(path, "task").path == path  # an empty folder is as good as none
    (path / "thesis.tex").write_text("")
    refused(UsageError, "is not empty, and holds no run", folder.create, path, "task", True)
    refused(CheckpointError, "this is not the folder of a run", folder.finished, path)
    refused(UsageError, "is a file", folder.create, path / "thesis.tex", "task")
    refused(UsageError, "cannot be made", folder.create, path / "thesis.tex" / "run", "task")


def test_a_run_that_has_not_ended_cannot_be_used(path):
    folder.write_config(folder.create(path, "task"), {})
    refused(
        CheckpointError,
        "its training has not ended; to go on: cellwright train --resume",
        folder.finished,
        path,
    )


def test_damaged_records(path):
    made = folder.create(path, "task")
    refused(CheckpointError, "cannot be read", folder.read_config, made)
    made.config.write_text("a: [")
    refused(CheckpointError, "cannot be read", folder.read_config, made)
    made.config.write_text("a: 1")
    refused(CheckpointError, "no format_version", folder.read_config, made)
    made.config.write_text("format_version: 99")
    refused(CheckpointError, "version 99.*install a newer", folder.read_config, made)
    refused(CheckpointError, "cannot be read", folder.read_metrics, made)
    made.metrics.write_text("{")
    refused(CheckpointError, "cannot be read", folder.read_metrics, made)
