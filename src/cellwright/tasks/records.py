"""What every run has, of a task or of an experiment: a folder, and a record of what was asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import cellwright as cw
from cellwright.errors import CheckpointError, UsageError
from cellwright.train import folder
from cellwright.train.folder import RunFolder
from cellwright.train.settings import option

Read = TypeVar("Read")


def begin(
    output: str | os.PathLike[str] | None,
    name: str,
    overwrite: bool,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> RunFolder:
    """Make the folder of a new run and write its record.

    Args:
        output: the folder; None for one under ``runs``.
        name: of the task.
        overwrite: whether an earlier run in that folder may be replaced.
        data, settings: what was asked for, as plain values.

    Raises:
        UsageError: the folder cannot be used.
    """
    made = folder.create(output, name, overwrite)
    folder.write_config(
        made, {"cellwright": cw.__version__, "data": dict(data), "settings": dict(settings)}
    )
    return made


@dataclass(frozen=True)
class Record:
    """A run that was begun.

    Attributes:
        folder: where it is.
        ended: whether its results are there.
        content: of its record.
    """

    folder: RunFolder
    ended: bool
    content: Mapping[str, Any]

    @classmethod
    def open(cls, output: str | os.PathLike[str]) -> Record:
        """The record of the run in a folder.

        Raises:
            CheckpointError: there is no run, or its record cannot be read.
        """
        found = folder.reopen(output)
        ended = found.metrics.exists()
        if ended:
            found.finish()
            found = RunFolder(found.path, found.path)
        return cls(found, ended, folder.read_config(found))

    def read(self, make: Callable[[Any, Any], Read]) -> Read:
        """What ``make(data, settings)`` makes of what was asked for.

        Raises:
            CheckpointError: it cannot.
        """
        try:
            return make(self.content["data"], self.content["settings"])
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise CheckpointError(
                f"{self.folder.config}: what it records cannot be used: {error}"
            ) from error

    def check_same(self, settings: object, changes: Mapping[str, Any] | None) -> None:
        """Compare settings that are said again with those of the run.

        Raises:
            UsageError: one is another.
        """
        for name, value in (changes or {}).items():
            before = getattr(settings, name, None)
            if before != value:
                raise UsageError(
                    f"{option(name)}: the run in {self.folder.path} has {before!r}, and a "
                    f"resumed run cannot change it to {value!r}"
                )
