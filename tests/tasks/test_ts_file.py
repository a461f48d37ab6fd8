"""The reader of .ts files: what is written comes back, and each mistake is named by its line."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellwright.errors import DataError
from cellwright.tasks.ts_file import read_ts, write_ts
from cellwright.train.series import SeriesSet

HEADER = """\
# a comment
@problemName Steps
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down
@data
"""
FIRST = 10  # the line of the first series


@pytest.fixture
def path(tmp_path):
    return tmp_path / "steps.ts"


def test_reads_series_of_unlike_lengths(path):
    path.write_text(HEADER + "1,2,3:-0.5,.5,1e-3:up\n\n# between\n4,5 : 6 ,7:down\n")
    found = read_ts(path)
    assert found.lengths == (3, 2)
    assert found.labels == ("up", "down")
    assert found.classes == ("up", "down")
    assert found.lines == (FIRST, FIRST + 3)
    np.testing.assert_array_equal(found.values[0], [[1, -0.5], [2, 0.5], [3, 0.001]])
    np.testing.assert_array_equal(found.values[1], [[4, 6], [5, 7]])


def test_windows_line_ends_and_a_byte_order_mark_are_read(path):
    text = (HEADER + "1,2:3,4:up\n").replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_ts(path).labels == ("up",)


def test_without_labels(path):
    path.write_text(HEADER.replace("true up down", "false") + "1,2:3,4\n")
    found = read_ts(path)
    assert found.labels is None
    assert found.num_features == 2


def test_compressed(tmp_path):
    path = tmp_path / "steps.ts.gz"
    path.write_bytes(gzip.compress((HEADER + "1,2:3,4:up\n").encode()))
    assert read_ts(path).lengths == (2,)


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text("abcXYZ019_-.#@%ä", min_size=1, max_size=5)


@st.composite
def series_sets(draw):
    features = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    values = [
        np.array(draw(st.lists(numbers, min_size=n * features, max_size=n * features))).reshape(
            n, features
        )
        for n in lengths
    ]
    labels = draw(
        st.none() | st.lists(words, min_size=len(lengths), max_size=len(lengths)),
    )
    return SeriesSet.of(values, labels)


@given(series_sets())
def test_what_is_written_is_read_back_exactly(tmp_path_factory, series):
    path = tmp_path_factory.mktemp("ts") / "written.ts"
    write_ts(path, series)
    found = read_ts(path)
    assert found.labels == series.labels
    assert found.classes == series.classes
    assert found.lengths == series.lengths
    for here, there in zip(found.values, series.values, strict=True):
        assert here.tobytes() == there.tobytes()


def test_a_label_that_would_break_the_format_is_refused(path):
    series = SeriesSet.of([np.zeros((2, 1))], ["a:b"])
    with pytest.raises(DataError, match=r"'a:b' cannot be written"):
        write_ts(path, series)
    assert not path.exists()
    write_ts(path, replace(series, labels=None, classes=()))


WHOLE = HEADER + "1,2,3:-0.5,.5,1e-3:up\n4,5:6,7:down\n"


@given(
    st.integers(0, len(WHOLE)),
    st.integers(0, len(WHOLE)),
    st.text("@#:,?.\n 0aé\0\u2028", max_size=4),
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, first, last, other):
    path = tmp_path_factory.mktemp("ts") / "damaged.ts"
    path.write_text(WHOLE[: min(first, last)] + other + WHOLE[max(first, last) :])
    try:
        found = read_ts(path)
    except DataError as error:
        assert str(error).startswith(f"{path}:")
    else:
        assert all(np.isfinite(each).all() and each.size for each in found.values)


@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        ("1,?:3,4:up", FIRST, "dimension 1, value 2 is missing"),
        ("1,2:3,:up", FIRST, "dimension 2, value 2 is missing"),
        ("1,2:3,4:up\n1,NaN:3,4:up", FIRST + 1, "expected a finite number, got NaN"),
        ("1,2:3,x:up", FIRST, "dimension 2, value 2: expected a number, got 'x'"),
        ("1,2:3,4:left", FIRST, "label 'left' is not in @classLabel; expected one of up, down"),
        (
            "1,2:up",
            FIRST,
            "expected 2 dimensions and a label, 3 fields with ':' between, got 2; is",
        ),
        (
            "1,2:3,4:5,6:up",
            FIRST,
            "expected 2 dimensions and a label, 3 fields with ':' between, got 4",
        ),
        ("1,2,3:4,5:up", FIRST, "dimension 2 has 2 values, dimension 1 has 3"),
        ("1,2::up", FIRST, "dimension 2 has no values"),
        ("1,2:3,4:up\n1,2:3", FIRST + 1, "is the line cut short?"),
        ("1,2:3,4:u", FIRST, "label 'u' is not in @classLabel"),
        ("", FIRST - 1, "no series comes after @data"),
    ],
)
def test_a_mistake_in_the_data_is_named_by_its_line(path, body, line, message):
    path.write_text(HEADER + body + "\n")
    with pytest.raises(DataError) as caught:
        read_ts(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("@data", "# no data", 10, "@data before the first series; got '1,2:3,4:up'"),
        ("@classLabel true up down\n", "", 8, "the header has no @classLabel line"),
        ("@classLabel true up down", "@classLabel true", 8, "names no labels"),
        ("@classLabel true up down", "@classLabel false up", 8, "but labels follow"),
        ("@classLabel true up down", "@classLabel true up up", 8, "names a label twice"),
        ("@classLabel true up down", "@classLabel yes", 8, "got yes"),
        ("@timeStamps false", "@timeStamps true", 3, "time stamps are not supported"),
        ("@missing false", "@missing true", 4, "missing values are not supported"),
        ("@dimensions 2", "@dimensions two", 6, "a whole number above 0, got two"),
        ("@univariate false", "@univariate true", 6, "an earlier line says 1"),
        ("@equalLength false", "@equalLength", 7, "got nothing"),
        ("@problemName", "@problem", 2, "unknown header line @problem"),
        ("@missing false", "@", 4, "unknown header line @;"),
        ("@problemName Steps", "Steps", 2, "expected a header line"),
        ("@missing false", "@targetLabel true", 4, "a regression target"),
    ],
)
def test_a_mistake_in_the_header_is_named_by_its_line(path, old, new, line, message):
    assert old in HEADER
    path.write_text((HEADER + "1,2:3,4:up\n").replace(old, new))
    with pytest.raises(DataError) as caught:
        read_ts(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


def test_a_file_that_ends_in_its_header(path):
    path.write_text(HEADER.replace("@data\n", ""))
    with pytest.raises(DataError, match=r"steps\.ts:8: the file ends without an @data line"):
        read_ts(path)


@pytest.mark.parametrize(
    ("header", "body", "line", "message"),
    [
        ("@equalLength true", "1,2:3,4:up\n1:3:up", FIRST + 1, "@seriesLength 2"),
        ("@equalLength true\n@seriesLength 3", "1,2:3,4:up", FIRST + 1, "@seriesLength 3"),
    ],
)
def test_lengths_that_are_said_to_be_equal_are_checked(path, header, body, line, message):
    path.write_text(HEADER.replace("@equalLength false", header) + body)
    with pytest.raises(DataError) as caught:
        read_ts(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


def test_files_that_are_no_text(tmp_path):
    def refused(path, message):
        with pytest.raises(DataError) as caught:
            read_ts(path)
        assert str(caught.value).startswith(str(path))
        assert message in str(caught.value)

    refused(tmp_path / "none.ts", "there is no such file")
    refused(tmp_path, "this is a folder")
    (tmp_path / "empty.ts").write_text(" \n")
    refused(tmp_path / "empty.ts", "the file is empty")
    (tmp_path / "binary.ts").write_bytes(b"@data\n\xff\xfe\n")
    refused(tmp_path / "binary.ts", ":2: this is not UTF-8 text")
    whole = gzip.compress((HEADER + "1,2:3,4:up\n").encode())
    (tmp_path / "cut.ts.gz").write_bytes(whole[:-12])
    refused(tmp_path / "cut.ts.gz", "damaged or truncated")
    (tmp_path / "false.ts.gz").write_bytes(b"plain text")
    refused(tmp_path / "false.ts.gz", "damaged or truncated")
