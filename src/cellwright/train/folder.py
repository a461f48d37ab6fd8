"""A run's folder: which files it has, and how a new run never spoils an earlier one's."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellwright.errors import CheckpointError, UsageError
from cellwright.train.files import sweep, write_text

FORMAT_VERSION = 1
_ASIDE = ".overwriting"
_CHECKPOINTS = ("checkpoints/best.safetensors", "checkpoints/last.safetensors")
# A finished run has them all. metrics.json comes last: it is what makes a run a finished one.
_OWN = (
    "log.csv", "tensorboard", *_CHECKPOINTS, "model.safetensors", "curves.png", "config.yaml",
    "metrics.json",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: the folder that the user sees.
        work: where the files are written: ``path`` itself, or a folder inside it while a
            finished run in ``path`` is being overwritten.
    """

    path: Path
    work: Path

    @property
    def config(self) -> Path:
        """``config.yaml``: what was asked for."""
        return self.work / "config.yaml"

    @property
    def model(self) -> Path:
        """``model.safetensors``: the weights to use."""
        return self.work / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """``metrics.json``: the results."""
        return self.work / "metrics.json"

    @property
    def curves(self) -> Path:
        """``curves.png``: loss and metric by epoch."""
        return self.work / "curves.png"

    def finish(self) -> None:
        """Put the files of a run that was written aside in the place of the earlier run's."""
        if self.work == self.path:
            return
        # In this order, so that it can be called again if it was killed half-way.
        if (self.path / "metrics.json").exists():
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            (self.path / "metrics.json").unlink()
        for name in _OWN:
            if (self.work / name).exists():
                (self.path / name).parent.mkdir(exist_ok=True)
                os.replace(self.work / name, self.path / name)
        shutil.rmtree(self.work)


def create(output: str | os.PathLike[str] | None, name: str, overwrite: bool = False) -> RunFolder:
    """Make the folder of a new run.

    Args:
        output: the folder; None for ``runs/NAME-DATE-TIME``.
        name: of the task.
        overwrite: whether an earlier run in that folder may be replaced. Its results stay until
            the new ones are there.

    Raises:
        UsageError: the folder holds something else or an earlier run, or cannot be made.
    """
    if output is None:
        return _create_dated(name)
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output: {path} is a file, and a folder was expected")
    if path.is_dir() and any(path.iterdir()):
        if not (path / "config.yaml").exists() and not (path / _ASIDE).exists():
            raise UsageError(f"--output: {path} is not empty, and holds no run; choose another")
        if not overwrite:
            state = "a finished run" if (path / "metrics.json").exists() else "an unfinished run"
            also = "" if (path / "metrics.json").exists() else "; --resume continues it"
            raise UsageError(
                f"--output: {path} holds {state}{also}; --overwrite replaces it, or choose "
                "another folder"
            )
        return _create_over(path)
    return RunFolder(path, _make(path))


def _create_over(path: Path) -> RunFolder:
    aside = path / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    if (path / "metrics.json").exists():
        return RunFolder(path, _make(aside))
    shutil.rmtree(path / "tensorboard", ignore_errors=True)
    for name in _OWN:
        (path / name).unlink(missing_ok=True)
    sweep(path)
    return RunFolder(path, path)


def _create_dated(name: str) -> RunFolder:
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in range(1, 1000):
        path = Path("runs") / (stem if count == 1 else f"{stem}-{count}")
        try:
            _make(path.parent)
            path.mkdir()
            return RunFolder(path, path)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"{path}: cannot be made: {error.strerror}") from error
    raise UsageError(f"runs/{stem}: there is no free name for a folder; give one with --output")


def _make(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output: {path} cannot be made: {error.strerror}") from error
    return path


def reopen(output: str | os.PathLike[str]) -> RunFolder:
    """The folder of a run that is to be continued.

    Raises:
        CheckpointError: there is no run in it.
    """
    path = Path(output)
    aside = path / _ASIDE
    # An exchange may have been killed after config.yaml had been moved.
    begun = (aside / "config.yaml").exists() or (aside / "metrics.json").exists()
    work = aside if begun else path
    if not begun and not (work / "config.yaml").exists():
        raise CheckpointError(
            f"{path}: there is no run to resume: {path / 'config.yaml'} does not exist"
        )
    sweep(work)
    sweep(work / "checkpoints")
    return RunFolder(path, work)


def finished(output: str | os.PathLike[str]) -> RunFolder:
    """The folder of a run that has ended.

    Raises:
        CheckpointError: there is none, or it has not ended.
    """
    path = Path(output)
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such run; expected a folder made by train")
    for name in ("config.yaml", "metrics.json", "model.safetensors"):
        if not (path / name).exists():
            hint = "this is not the folder of a run"
            if (path / "config.yaml").exists():
                again = f"cellwright train --resume --output {path}"
                hint = f"its training has not ended; to go on: {again}"
            raise CheckpointError(f"{path}: {name} is missing; {hint}")
    return RunFolder(path, path)


def write_config(folder: RunFolder, config: dict[str, Any]) -> None:
    """Write ``config.yaml``."""
    import yaml

    text = yaml.safe_dump({"format_version": FORMAT_VERSION, **config}, sort_keys=False)
    write_text(folder.config, text)


def read_config(folder: RunFolder) -> dict[str, Any]:
    """Read ``config.yaml``.

    Raises:
        CheckpointError: it is missing, damaged or of a newer format.
    """
    import yaml

    path = folder.config
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    version = config.pop("format_version", None) if isinstance(config, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: this is not the record of a run: no format_version")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: its format is version {version}, and this cellwright reads versions up to "
            f"{FORMAT_VERSION}: install a newer cellwright to use it"
        )
    return dict(config)


def write_metrics(folder: RunFolder, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json``, which makes the run a finished one."""
    write_text(folder.metrics, json.dumps(metrics, indent=2) + "\n")


def read_metrics(folder: RunFolder) -> dict[str, Any]:
    """Read ``metrics.json``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return dict(json.loads(folder.metrics.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder.metrics}: cannot be read: {error}") from error
