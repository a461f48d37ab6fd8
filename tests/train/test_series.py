from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cellwright.errors import DataError
from cellwright.train.series import SeriesSet, shortened, split_stratified


@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=30),
    st.floats(0.05, 0.95),
    st.integers(0, 2**32 - 1),
)
def test_a_split_takes_the_same_share_of_each_label(labels, share, seed):
    series = SeriesSet.of([np.full((1, 1), i) for i in range(len(labels))], labels)
    counts = {label: labels.count(label) for label in set(labels)}
    wanted = {label: min(round(share * n), n - 1) for label, n in counts.items()}
    assume(any(wanted.values()))
    first, second = split_stratified(series, share, seed)
    assert sorted([*first.names, *second.names]) == sorted(series.names)
    for label, count in wanted.items():
        assert second.labels.count(label) == count
    assert first.classes == second.classes == series.classes


def test_streams_of_one_seed_are_independent(series):
    one = split_stratified(series, 0.5, seed=1)[1].names
    assert one == split_stratified(series, 0.5, seed=1)[1].names
    assert one != split_stratified(series, 0.5, seed=1, stream=1)[1].names


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([], None, "there is no series"),
        ([np.zeros(3)], None, r"series 0 has shape \(3,\)"),
        ([np.zeros((0, 2))], None, r"series 0 has shape \(0, 2\)"),
        ([np.zeros((1, 2)), np.zeros((1, 3))], None, "series 1 has 3 features, the first has 2"),
        ([np.array([[np.nan]])], None, "series 0 has a value that is not finite"),
        ([np.zeros((1, 1))], ["a", "b"], "1 series, but 2 labels"),
    ],
)
def test_arrays_that_make_no_set(values, labels, message):
    with pytest.raises(DataError, match=message):
        SeriesSet.of(values, labels)


def test_labels_as_numbers(series):
    assert series.targets(("falls", "rises", "stays"))[:3].tolist() == [0, 2, 1]
    with pytest.raises(DataError, match=r"memory:3: label 'rises' did not occur in training"):
        series.targets(("falls", "stays"))
    with pytest.raises(DataError, match="the series have no labels"):
        SeriesSet.of(series.values).targets(("a",))


def test_long_rows_of_names_are_shortened():
    assert shortened(["a", "b"]) == "a, b"
    assert shortened(list("abcdef"), limit=2) == "a, b and 4 more"
