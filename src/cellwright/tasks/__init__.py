"""The tasks: those that come with the package, those of installed packages, and users' own.

A task's module is imported when the task is asked for.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from cellwright.errors import UsageError

if TYPE_CHECKING:
    from cellwright.tasks.task import Experiment, Task

__all__ = ["get", "is_reference", "names"]

# name of the task -> "module:attribute"
_BUILT_IN = {
    "japanese-vowels": "japanese_vowels:japanese_vowels",
    "sequential-digits": "sequential_digits:sequential_digits",
    "sequential-mnist": "sequential_digits:sequential_mnist",
    "jsb-chorales": "jsb_chorales:jsb_chorales",
    "odyssey": "jsb_chorales:odyssey",
    "embedded-reber": "reber:embedded_reber",
    "continual-reber": "continual_reber:continual_reber",
    "counting": "counting:count_letters",
    "spike-delays": "spike_delays:spike_delays",
    "timed-spikes": "timed_spikes:timed_spikes",
    "periodic-functions": "periodic:periodic_functions",
    "adding": "marked_pairs:adding",
    "multiplication": "marked_pairs:multiplication",
    "temporal-order": "temporal_order:temporal_order",
    "copying": "copying:copying",
    "long-lag": "long_lag:long_lag",
    "double-pole": "double_pole:double_pole",
    "cart-pole": "cart_pole:cart_pole",
}
GROUP = "cellwright.tasks"
"""The entry point group in which another package names its tasks."""


def names() -> list[str]:
    """Names of all tasks: the package's own, then those of installed packages.

    >>> "japanese-vowels" in names()
    True
    """
    return [*_BUILT_IN, *(name for name in _installed() if name not in _BUILT_IN)]


@cache
def _installed() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=GROUP)}


def is_reference(text: str) -> bool:
    """Whether a text names a task in a file, as "path/to/file.py:task_name" does.

    >>> is_reference("mine.py:parity"), is_reference("adding")
    (True, False)
    """
    return text.endswith(".py") or ".py:" in text


def get(name: str) -> Task | Experiment:
    """The task of that name, or the one in a file of the user's own.

    Args:
        name: a name, or "path/to/file.py:task_name". The file is Python and is run.

    Raises:
        UsageError: there is none; the message names those that there are.

    >>> get("japanese-vowels").metric
    'accuracy'
    """
    if is_reference(name):
        from cellwright.lang.files import find_in_file
        from cellwright.tasks.task import Entry

        return _known(find_in_file(name, Entry, "task", "@task(...)"))
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name].split(":")
        return _known(getattr(import_module(f"{__name__}.{module}"), attribute))
    if name in _installed():
        return _from_package(_installed()[name])
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
    raise UsageError(
        f"no task is named {name!r}; {hint} (a task of your own is path/to/file.py:task_name, a "
        "data file of your own ends in .ts or .csv)"
    )


def _known(found: object) -> Task | Experiment:
    from cellwright.tasks.task import Experiment, Task

    assert isinstance(found, (Task, Experiment))
    return found


def _from_package(point: EntryPoint) -> Task | Experiment:
    from cellwright.tasks.task import Experiment, Task

    found = point.load()
    if not isinstance(found, (Task, Experiment)):
        raise UsageError(
            f"the task {point.name!r} of the package {point.module} is a {type(found).__name__}; "
            f"its entry point in the group {GROUP!r} has to name a task"
        )
    return found
