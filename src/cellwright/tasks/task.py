"""What a task is: data, what to train for, settings, and what others have published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cellwright.train.series import SeriesSet


@dataclass(frozen=True)
class Published:
    """A result that others have published.

    Attributes:
        method: what got it.
        value: the metric, in the task's unit.
        source: where it is published.
        note: in which its setting differs from ours, if it does.
    """

    method: str
    value: float
    source: str
    note: str = ""


@dataclass(frozen=True)
class Data:
    """The series of a task, in the parts in which they are used."""

    train: SeriesSet
    test: SeriesSet


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: what it is called on the command line.
        title: a line that says what is to be learnt.
        source: citation of the data.
        licence: of the data.
        load: reads the data.
        objective: head, loss and metric, by the name of a `cellwright.train.objectives`.
        metric: name of the metric.
        defaults: settings in which the task differs from `Settings`.
        published: what others got.
    """

    name: str
    title: str
    source: str
    licence: str
    load: Callable[[], Data]
    objective: str
    metric: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
