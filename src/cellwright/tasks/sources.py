"""Where a run's series come from: a task by name, or data files of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellwright import tasks
from cellwright.errors import CheckpointError, DataError, UsageError
from cellwright.tasks.long_csv import Columns, match_features, read_long_csv
from cellwright.tasks.own import errors_named
from cellwright.tasks.task import Data, Published, Task
from cellwright.tasks.text import digest
from cellwright.tasks.ts_file import read_ts
from cellwright.train.series import SeriesSet, split_stratified
from cellwright.train.settings import Settings, check_share

SUFFIXES = (".ts", ".ts.gz", ".csv", ".csv.gz")


def read_series(path: str | Path, columns: Columns | None = None) -> SeriesSet:
    """Read a data file, in the form that its name says.

    Raises:
        UsageError: the name has another ending.
        DataError: the file is missing or malformed.
    """
    name = str(path).lower()
    if name.endswith((".ts", ".ts.gz")):
        return read_ts(path)
    if name.endswith((".csv", ".csv.gz")):
        return read_long_csv(path, columns)
    raise UsageError(f"{path}: expected a file whose name ends in {', '.join(SUFFIXES)}")


def learnt(reference: str) -> Task:
    """The task of that name, one that is learnt from sequences.

    Raises:
        UsageError: there is none.
    """
    found = tasks.get(reference)
    if not isinstance(found, Task):
        raise UsageError(f"the task {found.name} has no sequences: it is learnt in its own way")
    return found


def absolute(reference: str) -> str:
    """A reference to something in a file, so that it does not depend on the current folder."""
    path, separator, name = reference.rpartition(".py")
    return f"{Path(path + separator).absolute()}{name}"


def is_csv(path: str | Path) -> bool:
    """Whether a file's features have names of their own."""
    return str(path).lower().endswith((".csv", ".csv.gz"))


@dataclass(frozen=True)
class Source:
    """A task, or a file with an optional second file for testing.

    Attributes:
        task: the task's name, or path/to/file.py:name, or None.
        options: of the task, all of them.
        train, test: the files, or None.
        test_share: share of the series that is tested on where there is no test file.
        columns: of CSV files.
        digests: SHA-256 of each file, once it has been read.
    """

    task: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    train: str | None = None
    test: str | None = None
    test_share: float = 0.2
    columns: Columns = field(default_factory=Columns)
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        what: str,
        test: str | None = None,
        test_share: float | None = None,
        columns: Columns | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Source:
        """The source that a command line names.

        Raises:
            UsageError: there is no such task, or the options do not go together.
        """
        if not what.lower().endswith(SUFFIXES):
            own = tasks.is_reference(what)
            known = own or what in tasks.names()
            if not known and ("/" in what or Path(what).exists()):
                raise UsageError(
                    f"{what}: expected a task ({', '.join(tasks.names())}), a task of your own "
                    "(path/to/file.py:task_name) or a file whose name ends in "
                    f"{', '.join(SUFFIXES)}"
                )
            task = tasks.get(what)
            for option, value in (("--test", test), ("--test-share", test_share)):
                if value is not None:
                    raise UsageError(f"{option}: the task {what} has its own test data")
            return cls(task=absolute(what) if own else what, options=task.complete(options or {}))
        if options:
            raise UsageError("--with: a data file has no options; they are for tasks")
        if test is not None and test_share is not None:
            raise UsageError("--test-share: all of --test is tested on; leave one of them out")
        if test_share is not None:
            check_share("test_share", test_share)
        return cls(
            train=str(Path(what).absolute()),
            test=None if test is None else str(Path(test).absolute()),
            test_share=0.2 if test_share is None else test_share,
            columns=columns or Columns(),
        )

    @property
    def name(self) -> str:
        """The task's name, or the training file's without its ending."""
        if self.task is not None:
            return tasks.get(self.task).name
        name = Path(self.train or "").name
        return name[: name.lower().rindex(".ts" if not is_csv(name) else ".csv")]

    @property
    def objective(self) -> str:
        """What to train for."""
        return "classification" if self.task is None else learnt(self.task).objective.name

    def settings(self, changes: Mapping[str, Any] | None = None) -> Settings:
        """The task's own settings, or the ordinary ones, with these changes.

        Raises:
            UsageError: a value is out of range.
        """
        if self.task is None:
            return Settings(**(changes or {}))
        return learnt(self.task).settings(changes)

    @property
    def published(self) -> tuple[Published, ...]:
        """What others got on this task."""
        return () if self.task is None else tasks.get(self.task).published

    @property
    def features_by_name(self) -> bool:
        """Whether features have names of their own."""
        return self.train is not None and is_csv(self.train)

    def load(self, seed: int) -> tuple[Data, Source]:
        """The series, and the source with the digests of its files.

        Args:
            seed: of the split, where there is no test file.

        Raises:
            DataError: a file is malformed, or the two do not go together.
            CheckpointError: a file is not the one of which the digest is known.
        """
        if self.task is not None:
            with errors_named(self.task):
                data = learnt(self.task).load(**self.options)
            if not isinstance(data, Data):
                raise UsageError(
                    f"the task {self.name} returned a {type(data).__name__}; expected its Data"
                )
            return data, self
        series = read_series(_near(self.train or ""), self.columns)
        _check_training(series)
        if self.test is None:
            parts = split_stratified(series, self.test_share, seed)
        else:
            parts = series, conform(read_series(_near(self.test), self.columns), series)
            parts[1].targets(series.classes)
        digests = {file: digest(Path(file)) for file in (self.train, self.test) if file}
        for file, found in digests.items():
            if self.digests.get(file, found) != found:
                raise CheckpointError(f"{file}: the file has changed since the run was started")
        return Data(*parts), replace(self, digests=digests)

    def check_same(self, recorded: Source, path: Path) -> None:
        """Compare what is said again with a run's record; what is not said is not compared.

        Raises:
            UsageError: the run in ``path`` is on something else.
        """
        usual = {} if self.task is None else tasks.get(self.task).options
        unsaid = Source(task=self.task, options=usual, train=self.train)
        for name in ("task", "options", "train", "test", "test_share", "columns"):
            said, before = getattr(self, name), getattr(recorded, name)
            if said != before and (
                name in ("task", "options", "train") or said != getattr(unsaid, name)
            ):
                raise UsageError(
                    f"the run in {path} is on {recorded.task or recorded.train}; its data and "
                    "their split cannot change: leave them out to resume it"
                )

    def as_dict(self) -> dict[str, Any]:
        """The source as plain values, for ``config.yaml``."""
        if self.task is not None:
            options = {"options": dict(self.options)} if self.options else {}
            return {"task": self.task, **options}
        columns = {k: v for k, v in self.columns.__dict__.items() if v is not None}
        split = {"test": self.test} if self.test else {"test_share": self.test_share}
        return {
            "train": self.train,
            **split,
            **({"columns": columns} if columns else {}),
            "sha256": dict(self.digests),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Source:
        """The source that `as_dict` gave; TypeError or KeyError if it is not one."""
        if "task" in values:
            task = tasks.get(values["task"])
            return cls(task=values["task"], options=task.complete(values.get("options", {})))
        return cls(
            train=values["train"],
            test=values.get("test"),
            test_share=values.get("test_share", 0.2),
            columns=Columns(**values.get("columns", {})),
            digests=dict(values["sha256"]),
        )


def _near(path: str) -> Path:
    """The path as seen from the current folder if it lies below: as a user would write it."""
    here = Path.cwd()
    return Path(path).relative_to(here) if Path(path).is_relative_to(here) else Path(path)


def conform(series: SeriesSet, like: SeriesSet) -> SeriesSet:
    """The series with the features of another set, in its order.

    Raises:
        DataError: the features are others.
    """
    return conform_features(series, like.features, is_csv(like.path))


def conform_features(series: SeriesSet, features: tuple[str, ...], by_name: bool) -> SeriesSet:
    """The series with these features, by name or, where they have no names, by number.

    Raises:
        DataError: the features are others.
    """
    if by_name and is_csv(series.path):
        return match_features(series, features)
    if series.num_features != len(features):
        raise DataError(
            f"{series.path}:{series.lines[0]}: expected {len(features)} features as in training, "
            f"got {series.num_features}"
        )
    return replace(series, features=features)


def _check_training(series: SeriesSet) -> None:
    if series.labels is None:
        what = "the header says @classLabel false"
        if is_csv(series.path):
            what = "expected a column named label, class or target, or name it by --label-column"
        raise DataError(f"{series.path}:1: training needs labels, and there are none: {what}")
    if len(set(series.labels)) < 2:
        raise DataError(
            f"{series.path}: all series have the label {series.labels[0]!r}; "
            "training needs at least two labels"
        )
