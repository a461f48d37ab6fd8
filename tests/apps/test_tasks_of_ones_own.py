"""Tasks in a file of the user's: trained, killed and resumed, measured, reproduced."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml
from apps.shell import content, wait_for_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"
REFERENCE = f"{EXAMPLE}:first_bit"

COUNTING = '''
from dataclasses import dataclass
from cellwright.errors import UsageError
from cellwright.tasks.task import Experiment, Published
from cellwright.train.settings import check_whole

@dataclass(frozen=True)
class Settings:
    seed: int = 0
    limit: int = 3

    def __post_init__(self):
        check_whole("limit", self.limit, 1)

def run(settings, folder, console):
    """Adds a line a call, and is killed at the first of them if the limit is 5."""
    path = folder / "log.csv"
    before = len(path.read_text().splitlines()) if path.exists() else 0
    for line in range(before, settings.limit):
        with path.open("a") as file:
            file.write(f"{line}\\n")
        if settings.limit == 5 and not before:
            raise UsageError("killed")
    return {"count": settings.limit + settings.seed, "seconds": 0.0}

counting = Experiment(
    name="counting-lines", title="Count lines", source="a test", settings_type=Settings,
    run=run, metric="count", published=(Published("by hand", 3, "a test"),), report=("count",),
)
'''


def test_it_is_shown_trained_and_measured(call, tmp_path):
    shown = call("tasks", EXAMPLE).out
    assert "Options (--with): length 10" in shown
    assert "Case length=30: length 30; 5 seeds" in shown
    answer = call("train", REFERENCE, "--with", "length=6", "--output", "run", "--threads", 1)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["solved"] is True
    assert 300 <= metrics["sequences"] < 40 * 500
    assert f"Solved after {metrics['sequences']:,} sequences" in answer.out
    assert metrics["test_wrong"] == round((1 - metrics["test_accuracy"]) * 1000) < 30
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"] == {"task": REFERENCE, "options": {"length": 6}}
    assert config["settings"]["bidirectional"] is False  # the objective's default
    measured = call("evaluate", "run").out
    assert f"{metrics['test_accuracy']:.2%}" in measured
    again = call("train", "--resume", "--output", "run").out
    assert "This run has ended" in again
    assert "Solved after" in again


def test_killed_and_resumed_ends_with_the_same_bytes(call, spawn, tmp_path):
    arguments = [REFERENCE, "--with", "length=40", "--epochs", 6, "--learning-rate", 1e-4]
    call("train", *arguments, "--output", "whole")
    process = spawn("train", *arguments, "--output", tmp_path / "killed")
    wait_for_rows(tmp_path / "killed" / "log.csv", 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()
    call("train", "--resume", "--output", "killed")
    whole, killed = content(tmp_path / "whole"), content(tmp_path / "killed")
    assert killed["model.safetensors"] == whole["model.safetensors"]
    ours, theirs = (json.loads(each["metrics.json"]) for each in (killed, whole))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_reproduce_runs_each_seed_once(call, tmp_path):
    arguments = ["reproduce", EXAMPLE, "--case", "length=10", "--seeds", 2, "--output", "all"]
    first = call(*arguments).out
    assert "first-bit: 2 runs in all" in first
    assert "length=10, seed 1: sequences" in first
    found = json.loads((tmp_path / "all" / "results.json").read_text())
    assert [each["seed"] for each in found["runs"]["length=10"]] == [0, 1]
    before = content(tmp_path / "all")
    call(*arguments)
    assert content(tmp_path / "all") == before


@pytest.fixture
def quick(tmp_path):
    """The example with less training, in a file of its own."""
    text = EXAMPLE.read_text().replace('"epochs": 40', '"epochs": 1').replace("=30", "=9")
    (tmp_path / "quick.py").write_text(text)
    return text


def test_results_of_other_cases_stay(call, tmp_path, quick):
    for case in ("length=10", "length=9"):
        call("reproduce", "quick.py", "--seeds", 1, "--case", case, "--output", "all")
    both = json.loads((tmp_path / "all" / "results.json").read_text())
    assert both["runs"].keys() == {"length=10", "length=9"}
    assert [each["seed"] for runs in both["runs"].values() for each in runs] == [0, 0]


def test_results_of_another_run_are_not_taken_for_a_case_s_own(call, refused, tmp_path, quick):
    """Two tasks with a case of the same name, or a case whose settings have changed."""
    (tmp_path / "other.py").write_text(quick.replace('"first-bit"', '"other-bit"'))
    arguments = ("--seeds", 1, "--case", "length=10", "--output", "all")
    call("reproduce", "quick.py", *arguments)
    (tmp_path / "all" / "results.json").unlink()  # as if it had been killed before its end
    before = content(tmp_path / "all")
    refused("--output: all/length=10/seed-0 holds another run", "reproduce", "other.py", *arguments)
    changed = quick.replace('Case("length=10")', 'Case("length=10", changes={"hidden_size": 9})')
    (tmp_path / "quick.py").write_text(changed)
    refused("--hidden-size: the run in all/length=10/seed-0 has 8", "reproduce", "quick.py",
            *arguments)  # fmt: skip
    assert content(tmp_path / "all") == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("all/results.json", "mine", "all/results.json is not what a reproduction writes"),
        ("all/results.json", "[]", "all/results.json is not what a reproduction writes"),
        ("all/results.json", '{"task": "adding", "runs": {}}', "results of the task adding"),
        ("all/config.yaml", "mine", "all holds a run"),
        ("all", "mine", "all/results.json is not what a reproduction writes"),
    ],
)
def test_a_reproduction_spoils_nothing(refused, tmp_path, quick, name, text, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    refused(message, "reproduce", "quick.py", "--seeds", 1, "--output", "all")
    assert path.read_text() == text
    assert {each.name for each in tmp_path.rglob("*")} <= {"quick.py", "all", path.name}


def test_an_experiment_goes_on_where_it_was_killed(call, refused, tmp_path):
    (tmp_path / "own.py").write_text(COUNTING)
    refused("killed", "train", "own.py", "--with", "limit=5", "--output", "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    refused("--limit: the run in run has 5", "train", "--resume", "own.py", "--with", "limit=4",
            "--output", "run")  # fmt: skip
    answer = call("train", "--resume", "--output", "run").out
    assert "count: 5" in answer
    assert (tmp_path / "run" / "log.csv").read_text() == "0\n1\n2\n3\n4\n"
    assert "This run has ended" in call("train", "--resume", "--output", "run").out
    (tmp_path / "run" / "model.safetensors").write_bytes(b"its own")
    refused("which is learnt and tested in its own way; its results are in", "evaluate", "run")
    out = call("reproduce", "own.py", "--seeds", 3, "--output", "all").out
    assert "count" in out and "by hand 3" in out
    runs = json.loads((tmp_path / "all" / "results.json").read_text())["runs"]["counting-lines"]
    assert [each["count"] for each in runs] == [3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", REFERENCE, "--with", "size=3"), "no option 'size'; it has length"),
        (("train", REFERENCE, "--with", "length=long"), "expected a value like 10, got 'long'"),
        (("train", REFERENCE, "--with", "length"), "--with: expected NAME=VALUE, got 'length'"),
        (("train", f"{EXAMPLE}:last_bit"), "no task is named 'last_bit'"),
        (("train", f"{EXAMPLE}:FIRST_BIT"), "is a Objective, not a task"),
        (("train", "nowhere.py:first"), "no file nowhere.py"),
        (("train", REFERENCE, "--layer", "gates=3"), "--layer: expected one of"),
        (("train", REFERENCE, "--tbptt", "4"), "--tbptt: the task has one target a sequence"),
        (("train", REFERENCE, "--devices", "11"), "11 processes cannot share batches of 10"),
        (("train", "jsb-chorales", "--devices", "9"), "9 processes cannot share batches of 8"),
        (("train", REFERENCE, "--validation", "0.2"), "only labelled series can be parted"),
        (("train", REFERENCE, "--test", "x.ts"), "has its own test data"),
        (("train", REFERENCE, "--optimizer", "lion"), "--optimizer: expected one of adamw"),
        (("train", "own.py", "--hidden-size", "3"), "the task counting-lines has no such setting"),
        (("train", "own.py", "--with", "limit=0"), "--limit: expected a whole number, 1 or more"),
        (("reproduce", EXAMPLE, "--case", "length=3"), "it has length=10, length=30"),
        (("tasks", "mnist"), "no task is named 'mnist'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message(refused, tmp_path, arguments, message):
    (tmp_path / "own.py").write_text(COUNTING)
    refused(message, *arguments)
    assert [each.name for each in tmp_path.iterdir()] == ["own.py"]


OWN = """
import torch
from cellwright.tasks.task import Data, task
from cellwright.train.sequences import Generated

@task("mine", title="mine", source="me", objective="value")
def mine(n: int = 3):
    if n == 1:
        raise KeyError("gone")
    if n == 2:
        return [1]
    def draw(random, count):
        if n == 3 and count == 8:
            return torch.zeros(count, 5, 1), torch.full((count,), 5), torch.zeros(count, 1)
        if n == 4 and count != 8:
            return 1 / 0
        return torch.zeros(5, count, 1), torch.full((count,), 5), torch.zeros(count, 1)
    drawn = Generated(draw, ("x",), ("y",), 9)
    return Data(train=drawn, test=drawn)
"""


@pytest.mark.parametrize(
    ("n", "message", "begun"),
    [
        (1, "own.py:9: KeyError: 'gone'", False),
        (2, "the task mine returned a list; expected its Data", False),
        (3, "mine: a batch's lengths are [5, 5, 5, 5, 5, 5, 5, 5]; expected a number from 0 to 8",
         False),
        (4, "own.py:16: ZeroDivisionError: division by zero", True),
    ],
)  # fmt: skip
def test_a_mistake_in_one_s_own_task_is_one_message(refused, tmp_path, n, message, begun):
    (tmp_path / "own.py").write_text(OWN)
    refused(message, "train", "own.py", "--batch-size", 8, "--with", f"n={n}", "--output", "run")
    assert (tmp_path / "run").exists() == begun


def test_a_folder_with_a_task_s_name_is_in_nobody_s_way(call, tmp_path):
    (tmp_path / "adding").mkdir()
    arguments = ("--epochs", 1, "--with", "length=20", "--output", "adding")
    assert "adding: 2000 training series" in call("train", "adding", *arguments).out


def test_series_of_a_file_are_for_classifiers(call, refused, ts_file):
    call("train", REFERENCE, "--epochs", 1, "--output", "run")
    refused("whose objective is 'first bit'", "predict", "run", ts_file)
    refused("whose objective is 'first bit'", "evaluate", "run", "--data", ts_file)
