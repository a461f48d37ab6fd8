"""Calling the command line inside the test's own process."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from apps import shell
from apps.shell import make_series
from typer.testing import CliRunner

from cellwright.apps.main import app
from cellwright.tasks.long_csv import write_long_csv
from cellwright.tasks.ts_file import write_ts


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call a command in an empty folder; expects exit code 0 unless ``code`` says another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, code: int = 0) -> Answer:
        found = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
        assert found.exit_code == code, found.output
        assert "Traceback" not in found.output
        return Answer(found.exit_code, found.stdout, found.stderr)

    return run


@pytest.fixture
def spawn():
    """Start commands in processes of their own, of which none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **options) -> subprocess.Popen[str]:
        processes.append(shell.spawn(*arguments, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def refused(call):
    """Call a command that has to end with code 2 and this message on stderr."""

    def run(message: str, *arguments: object) -> str:
        answer = call(*arguments, code=2)
        text = " ".join(answer.err.split())
        assert message in text
        return text

    return run


@pytest.fixture
def ts_file(tmp_path) -> Path:
    path = tmp_path / "mine.ts"
    write_ts(path, make_series(30, 0))
    return path


@pytest.fixture
def csv_file(tmp_path) -> Path:
    path = tmp_path / "mine.csv"
    write_long_csv(path, make_series(30, 0))
    return path
