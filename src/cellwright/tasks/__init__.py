"""The tasks, by name; a task's module is imported when it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from cellwright.errors import UsageError

if TYPE_CHECKING:
    from cellwright.tasks.task import Task

__all__ = ["get", "names"]

# Each module has a Task named TASK.
_MODULES = {"japanese-vowels": "japanese_vowels"}


def names() -> list[str]:
    """Names of all tasks.

    >>> "japanese-vowels" in names()
    True
    """
    return list(_MODULES)


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        UsageError: there is none; the message names those that there are.

    >>> get("japanese-vowels").metric
    'accuracy'
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_MODULES)}"
        raise UsageError(
            f"no task is named {name!r}; {hint} (a data file of your own ends in .ts or .csv)"
        )
    return import_module(f"{__name__}.{_MODULES[name]}").TASK
