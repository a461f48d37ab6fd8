"""The tasks by name, and the data that is shipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

import cellwright.tasks
from cellwright.errors import CheckpointError, DataError, UsageError
from cellwright.tasks.long_csv import write_long_csv
from cellwright.tasks.sources import Source
from cellwright.tasks.task import Experiment
from cellwright.tasks.ts_file import write_ts
from cellwright.train import objectives
from cellwright.train.series import SeriesSet
from cellwright.train.settings import Settings

SHIPPED = Path(cellwright.tasks.__file__).parent / "data"


def test_japanese_vowels_is_the_published_split():
    data = cellwright.tasks.get("japanese-vowels").load()
    assert (len(data.train), len(data.test)) == (270, 370)
    for part in (data.train, data.test):
        assert part.num_features == 12
        assert min(part.lengths) == 7
        assert max(part.lengths) <= 29
        assert part.classes == tuple("123456789")
    counts = [data.train.labels.count(label) for label in data.train.classes]
    assert counts == [30] * 9
    counts = [data.test.labels.count(label) for label in data.test.classes]
    assert counts == [31, 35, 88, 44, 29, 24, 40, 50, 29]


@pytest.mark.parametrize(
    "name",
    [
        "japanese-vowels/JapaneseVowels_TRAIN.ts",
        "japanese-vowels/JapaneseVowels_TEST.ts",
        "pendigits/pendigits.tra",
        "pendigits/pendigits.tes",
    ],
)
def test_the_shipped_files_are_the_published_ones(data_dir, name):
    shipped = gzip.decompress((SHIPPED / f"{name}.gz").read_bytes())
    assert shipped == (data_dir / name).read_bytes()


@pytest.mark.parametrize("name", cellwright.tasks.names())
def test_every_task_is_complete(name):
    task = cellwright.tasks.get(name)
    assert task.name == name
    assert task.title and task.source and task.licence
    if isinstance(task, Experiment):
        assert isinstance(task.settings(), task.settings_type)
        assert task.metric in task.report
    else:
        assert objectives.get(task.objective.name) is task.objective
        assert isinstance(task.settings(), Settings)
    assert task.complete({}) == task.options
    for published in task.published:
        assert published.source


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(UsageError, match=r"'japanese-vowel'; did you mean japanese-vowels\?"):
        cellwright.tasks.get("japanese-vowel")
    with pytest.raises(UsageError, match=r"there are japanese-vowels"):
        cellwright.tasks.get("mnist")


@pytest.fixture
def series():
    random = np.random.default_rng(0)
    values = [random.normal(size=(n, 2)) for n in range(1, 21)]
    return SeriesSet.of(values, ["a", "b"] * 10)


def test_a_file_is_split_by_share_and_seed(tmp_path, series):
    write_ts(tmp_path / "mine.ts", series)
    source = Source.parse(str(tmp_path / "mine.ts"), test_share=0.3)
    assert source.name == "mine"
    data, found = source.load(seed=5)
    assert (len(data.train), len(data.test)) == (14, 6)
    assert data.test.labels.count("a") == 3
    assert not set(data.train.names) & set(data.test.names)
    assert data.test.names == source.load(seed=5)[0].test.names
    assert data.test.names != source.load(seed=6)[0].test.names
    assert Source.from_dict(found.as_dict()) == found


def test_a_changed_file_is_noticed(tmp_path, series):
    path = tmp_path / "mine.csv"
    write_long_csv(path, series)
    source = Source.parse(str(path)).load(0)[1]
    source.load(0)
    write_long_csv(path, series.take(range(18)))
    with pytest.raises(CheckpointError, match=r"mine\.csv: the file has changed"):
        source.load(0)


def test_test_files_have_to_fit(tmp_path, series):
    write_ts(tmp_path / "train.ts", series)
    other = SeriesSet.of([np.zeros((2, 3))], ["a"])
    write_ts(tmp_path / "other.ts", other)
    with pytest.raises(DataError, match=r"other\.ts:10: expected 2 features as in training, got 3"):
        Source.parse(str(tmp_path / "train.ts"), str(tmp_path / "other.ts")).load(0)
    write_ts(tmp_path / "label.ts", SeriesSet.of([np.zeros((2, 2))], ["c"]))
    with pytest.raises(DataError, match=r"label\.ts:10: label 'c' did not occur in training"):
        Source.parse(str(tmp_path / "train.ts"), str(tmp_path / "label.ts")).load(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist",), "no task is named 'mnist'"),
        (("some/where.txt",), "expected a task"),
        (("japanese-vowels", "x.ts"), "--test: the task japanese-vowels has its own test data"),
        (("japanese-vowels", None, 0.2), "--test-share: the task"),
        (("a.ts", "b.ts", 0.2), "--test-share: all of --test is tested on"),
        (("a.ts", None, 1.0), "--test-share: expected a number above 0 and below 1, got 1.0"),
    ],
)
def test_what_does_not_go_together(arguments, message):
    with pytest.raises(UsageError) as caught:
        Source.parse(*arguments)
    assert message in str(caught.value)


def test_training_needs_labels(tmp_path, series):
    path = tmp_path / "one.ts"
    write_ts(path, SeriesSet.of(series.values, ["a"] * 20))
    with pytest.raises(DataError, match=r"all series have the label 'a'"):
        Source.parse(str(path)).load(0)
    write_ts(path, SeriesSet.of(series.values))
    with pytest.raises(DataError, match=r"one\.ts:1: training needs labels"):
        Source.parse(str(path)).load(0)
    path = tmp_path / "none.csv"
    write_long_csv(path, SeriesSet.of(series.values))
    with pytest.raises(DataError, match=r"none\.csv:1: .*name it by --label-column"):
        Source.parse(str(path)).load(0)
    path = tmp_path / "few.ts"
    write_ts(path, series.take([0, 1]))
    with pytest.raises(DataError, match=r"too few to set a share of 0\.2 apart"):
        Source.parse(str(path)).load(0)
