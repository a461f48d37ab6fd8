"""The reader of long CSV files: what is written comes back, and mistakes are named by line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellwright.errors import DataError
from cellwright.tasks.long_csv import Columns, match_features, read_long_csv, write_long_csv
from cellwright.train.series import SeriesSet

GOOD = """\
series_id,time,a,b,label
s1,0,1.5,2,left
s1,1,1.25,-2,left
s2,0,0,1e3,right
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "long.csv"


def test_reads_rows_as_series(path):
    path.write_text(GOOD)
    found = read_long_csv(path)
    assert found.names == ("s1", "s2")
    assert found.features == ("a", "b")
    assert found.labels == ("left", "right")
    assert found.lines == (2, 4)
    np.testing.assert_array_equal(found.values[0], [[1.5, 2], [1.25, -2]])
    np.testing.assert_array_equal(found.values[1], [[0, 1000]])


def test_columns_in_any_order_and_rows_in_the_order_of_time(path):
    path.write_text(
        "Class, b ,T,a,Case\nx,1,10,2,q\n\ny,7,0,8,p\nx,3,9.5,4,q\n",
    )
    found = read_long_csv(path)
    assert found.names == ("q", "p")
    assert found.features == ("b", "a")
    np.testing.assert_array_equal(found.values[0], [[3, 4], [1, 2]])


def test_dates_order_rows_as_well(path):
    path.write_text(
        "id,time,a,label\n1,2024-01-31T12:00,1,x\n1,2024-01-30,2,x\n1,2024-02-01T00:00:30,3,x\n"
    )
    np.testing.assert_array_equal(read_long_csv(path).values[0], [[2], [1], [3]])


def test_columns_by_their_names(path):
    path.write_text("utterance,frame,a,b,speaker\n1,0,1,2,ann\n2,0,3,4,bob\n")
    found = read_long_csv(path, Columns("utterance", "frame", "speaker"))
    assert found.labels == ("ann", "bob")
    assert found.features == ("a", "b")


def test_no_labels(path):
    path.write_text("id,time,a\n1,0,1\n")
    assert read_long_csv(path).labels is None
    path.write_text("id,time,a,label\n1,0,1,\n")
    assert read_long_csv(path).labels is None


def test_labels_that_are_numbers_are_in_the_order_of_numbers(path):
    path.write_text("id,time,a,label\n1,0,1,10\n2,0,1,9\n")
    assert read_long_csv(path).classes == ("9", "10")


names = st.text("ab,\"' ä1", min_size=1, max_size=4).map(lambda text: f"n{text}n")
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def series_sets(draw):
    features = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    ids = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    lengths = [draw(st.integers(1, 5)) for _ in ids]
    width = len(features)
    values = [
        np.array(draw(st.lists(numbers, min_size=n * width, max_size=n * width))).reshape(n, width)
        for n in lengths
    ]
    labels = draw(st.none() | st.lists(names, min_size=len(ids), max_size=len(ids)))
    return SeriesSet.of(values, labels).__class__(
        **{
            **SeriesSet.of(values, labels).__dict__,
            "features": tuple(features),
            "names": tuple(ids),
        }
    )


@given(series_sets())
def test_what_is_written_is_read_back_exactly(tmp_path_factory, series):
    path = tmp_path_factory.mktemp("csv") / "written.csv"
    write_long_csv(path, series)
    found = read_long_csv(path)
    assert (found.names, found.features, found.labels) == (
        series.names, series.features, series.labels,
    )  # fmt: skip
    for here, there in zip(found.values, series.values, strict=True):
        np.testing.assert_array_equal(here, there)


@given(
    st.integers(0, len(GOOD)),
    st.integers(0, len(GOOD)),
    st.text(",\"'\n\r 0aé\0-", max_size=4),
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, first, last, other):
    path = tmp_path_factory.mktemp("csv") / "damaged.csv"
    path.write_text(GOOD[: min(first, last)] + other + GOOD[max(first, last) :])
    try:
        found = read_long_csv(path)
    except DataError as error:
        assert str(error).startswith(f"{path}:")
    else:
        assert all(np.isfinite(each).all() and each.size for each in found.values)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("series_id", "who", 1, "there is no column for the series; expected one named series_id"),
        ("time", "when", 1, "there is no column for the time"),
        ("a,b", "id,b", 1, "'series_id' and 'id' could both be the series"),
        ("a,b", "a,a", 1, "two columns named 'a'"),
        ("a,b", "a,", 1, "a column without a name"),
        ("1.25,-2", "1.25", 3, "expected 5 columns as in the header, got 4"),
        ("1.25,-2", "1.25,-2,3", 3, "expected 5 columns as in the header, got 6"),
        ("1.25,", ",", 3, "column 'a': the value is missing"),
        ("1.25,", "NA,", 3, "column 'a': the value is missing"),
        ("1.25,", "much,", 3, "column 'a': expected a finite number, got 'much'"),
        ("1.25,", "inf,", 3, "column 'a': expected a finite number, got 'inf'"),
        ("-2,left", "-2,right", 3, "series 's1' has label 'right' here and 'left' before"),
        ("-2,left", "-2,", 3, "column 'label' is empty"),
        ("s1,1,", ",1,", 3, "column 'series_id' is empty"),
        ("s1,1,", "s1,0.0,", 3, "series 's1' has the time of this row twice"),
        ("s1,1,", "s1,later,", 3, "column 'time': expected a number or a date"),
        ("s1,1,", "s1,,", 3, "column 'time': expected a number or a date"),
        ("1e3,right", '1e3,"right', 4, "this is not CSV"),
    ],
)
def test_a_mistake_is_named_by_its_line(path, old, new, line, message):
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        read_long_csv(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", ": the file is empty"),
        ("id,time,a,label\n", ":1: no row comes after the header"),
        ("id,time,label\n1,0,x\n", ":1: no column is left for features"),
    ],
)
def test_files_without_data(path, text, message):
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_long_csv(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_named_column_has_to_be_there(path):
    path.write_text(GOOD)
    with pytest.raises(DataError, match=r"long\.csv:1: there is no column 'who' for the series"):
        read_long_csv(path, Columns(series="who"))


def test_features_are_matched_by_name(path):
    path.write_text(GOOD)
    series = read_long_csv(path)
    turned = match_features(series, ("b", "a"))
    np.testing.assert_array_equal(turned.values[0], series.values[0][:, ::-1])
    with pytest.raises(DataError, match=r"missing: c; unknown: b"):
        match_features(series, ("a", "c"))
