"""What a task is: data, what to train for, settings, and what others have published."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cellwright.errors import UsageError
from cellwright.tasks.data_files import DataFile
from cellwright.train import objectives
from cellwright.train.examples import Examples
from cellwright.train.objectives import Objective
from cellwright.train.settings import Settings, option

if TYPE_CHECKING:
    from rich.console import Console


GENERATED = "none needed: the data is generated"
"""The licence of data that a task makes itself."""


@dataclass(frozen=True)
class Published:
    """A result that others have published.

    Attributes:
        method: what got it.
        value: the metric, in the task's unit.
        source: where it is published.
        note: in which its setting differs from ours, if it does.
        measure: what the value is, where it is not the task's metric: ``"sequences"``.
        case: the case of the task to which it belongs; "" for all.
    """

    method: str
    value: float
    source: str
    note: str = ""
    measure: str = ""
    case: str = ""


@dataclass(frozen=True)
class Case:
    """One setting of a task that is to be reproduced.

    Attributes:
        name: of the case, as ``T=500``.
        options: of the task.
        changes: settings in which it differs from the task's defaults.
        seeds: how many seeds are run.
        search: draws further changes, for each seed others; None for no search.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 5
    search: Callable[[np.random.Generator], dict[str, Any]] | None = None

    def changes_for(self, seed: int) -> dict[str, Any]:
        """All changes for a run with this seed, the seed among them.

        What is drawn depends on the seed alone, so that it is the same in every case.
        """
        drawn = self.search(np.random.default_rng([7, seed])) if self.search else {}
        return {**self.changes, **drawn, "seed": seed}


@dataclass(frozen=True)
class Data:
    """The sequences of a task, in the parts in which they are used.

    Attributes:
        train, test: sequences with targets.
        validation: to choose the best epoch by, where the task has its own; None to leave that
            to the settings.
        check: to test on after every epoch; training ends once all of them are right. None to
            go on for all epochs.
    """

    train: Examples
    test: Examples
    validation: Examples | None = None
    check: Examples | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What every task has.

    Attributes:
        name: what it is called on the command line.
        title: a line that says what is to be learnt.
        source: citation.
        licence: of the data.
        options: the options with their defaults.
        published: what others got.
        cases: what is run to reproduce it; without any, the task as it is.
        report: names in ``metrics.json`` that a reproduction tells.
        baseline: the case with which the others are compared, by the first name of the report, of
            which the lowest is the best; "" for no ranking.
    """

    name: str
    title: str
    source: str
    licence: str = GENERATED
    options: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    cases: tuple[Case, ...] = ()
    report: tuple[str, ...] = ()
    baseline: str = ""

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, with these values for some of them.

        Raises:
            UsageError: an option is unknown, or its value is of another kind.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise UsageError(
                    f"--with: the task {self.name} has no option {name!r}; it has {known}"
                )
            default = self.options[name]
            whole_for_number = isinstance(default, float) and type(value) is int
            if default is not None and type(value) is not type(default) and not whole_for_number:
                raise UsageError(f"--with {name}: expected a value like {default!r}, got {value!r}")
        return {**self.options, **options}


@dataclass(frozen=True, kw_only=True)
class Task(Entry):
    """A task that is learnt from sequences with targets; `task` makes one of a function.

    Attributes:
        load: reads or makes the data; its keyword arguments are the task's options.
        objective: head, loss and metric.
        defaults: settings in which the task differs from those of its objective.
        files: what is downloaded when the task is first loaded.
    """

    load: Callable[..., Data]
    objective: Objective
    defaults: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[DataFile, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.objective.metric_name

    def settings(self, changes: Mapping[str, Any] | None = None) -> Settings:
        """The settings of a run: the objective's, the task's, and changes to both.

        Raises:
            UsageError: a value is out of range.
        """
        return Settings(**{**self.objective.defaults, **self.defaults, **(changes or {})})


class Method(Protocol):
    """Learns a task in a way of its own, in a folder, and goes on where it was killed."""

    def __call__(self, settings: Any, folder: Path, console: Console | None) -> dict[str, Any]:
        """Run it; returns what ``metrics.json`` is to say."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Entry):
    """A task that is not learnt from sequences with targets: evolution, policy gradient.

    Its options are its settings.

    Attributes:
        settings_type: a frozen dataclass that checks its values; has a ``seed``.
        run: does it.
        metric: the name in ``metrics.json`` of what counts.
    """

    settings_type: type[Any]
    run: Method
    metric: str

    def __post_init__(self) -> None:
        defaults = asdict(self.settings_type())
        object.__setattr__(self, "options", {**defaults, **self.options})

    def settings(self, changes: Mapping[str, Any] | None = None) -> Any:
        """The settings of a run.

        Raises:
            UsageError: a setting is unknown, or its value out of range.
        """
        for name in changes or {}:
            if name not in self.options:
                raise UsageError(
                    f"{option(name)}: the task {self.name} has no such setting; it has "
                    f"{', '.join(self.options)}"
                )
        return self.settings_type(**{**self.options, **(changes or {})})


def task(
    name: str,
    *,
    title: str,
    source: str,
    objective: str | Objective,
    licence: str = GENERATED,
    defaults: Mapping[str, Any] | None = None,
    published: tuple[Published, ...] = (),
    cases: tuple[Case, ...] = (),
    report: tuple[str, ...] = (),
    baseline: str = "",
    files: tuple[DataFile, ...] = (),
) -> Callable[[Callable[..., Data]], Task]:
    """Make a task of a function that returns the data.

    The function's keyword arguments are the task's options; each needs a default.

    Args:
        name: what the task is called on the command line.
        title: a line that says what is to be learnt.
        source: citation.
        objective: head, loss and metric: the name of one that is built in (see
            `cellwright.train.objectives.get`), or one of one's own.
        licence: of the data.
        defaults: settings in which it differs from those of the objective.
        published: what others got.
        cases: what is run to reproduce it; without them, the task as it is with five seeds.
        report: names in ``metrics.json`` that a reproduction tells; the metric, if there are none.
        baseline: the case with which a reproduction compares the others; "" for no ranking.
        files: what is downloaded when the task is first loaded.

    Raises:
        UsageError: there is no such objective, or an option has no default.

    Example:
        >>> import torch
        >>> from cellwright.tasks.task import Data, task
        >>> from cellwright.train.sequences import Generated
        >>> @task(
        ...     "last-number",
        ...     title="Say the last number",
        ...     source="an example",
        ...     objective="value",
        ...     defaults={"hidden_size": 4},
        ... )
        ... def last_number(length: int = 10) -> Data:
        ...     def draw(random, count):
        ...         x = torch.from_numpy(random.random((length, count, 1), dtype="float32"))
        ...         return x, torch.full((count,), length), x[-1]
        ...
        ...     return Data(*[Generated(draw, ("x",), ("last",), 1000)] * 2)
        >>> last_number.options
        {'length': 10}
    """

    def make(load: Callable[..., Data]) -> Task:
        options = {}
        for each in inspect.signature(load).parameters.values():
            if each.default is inspect.Parameter.empty:
                raise UsageError(
                    f"task {name}: the option {each.name!r} of {load.__qualname__} needs a default"
                )
            options[each.name] = each.default
        if isinstance(objective, str):
            found = objectives.get(objective)
        else:
            found = objectives.add(objective)
        return Task(
            name=name, title=title, source=source, licence=licence, load=load, objective=found,
            options=options, defaults=dict(defaults or {}), published=published, cases=cases,
            report=report or (f"test_{found.metric_name}",), baseline=baseline, files=files,
        )  # fmt: skip

    return make
