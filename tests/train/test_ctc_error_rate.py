"""Edits are the fewest there are, and their kinds add up."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellwright.errors import InputError, InputTypeError
from cellwright.train.ctc import ErrorRate, label_error_rate

LABELS = st.lists(st.sampled_from("abc"), max_size=7)


def fewest(hypothesis, reference):
    """(edits, substitutions, insertions, deletions), the smallest of all, by recursion."""

    @functools.cache
    def of(h, r):
        if not h or not r:
            return h + r, 0, h, r
        same = hypothesis[h - 1] == reference[r - 1]
        ways = [
            (of(h - 1, r - 1), (0, 0, 0, 0) if same else (1, 1, 0, 0)),
            (of(h - 1, r), (1, 0, 1, 0)),
            (of(h, r - 1), (1, 0, 0, 1)),
        ]
        return min(tuple(map(sum, zip(*way, strict=True))) for way in ways)

    return of(len(hypothesis), len(reference))


@given(st.lists(st.tuples(LABELS, LABELS), max_size=3))
def test_against_the_definition(pairs):
    found = label_error_rate([h for h, _ in pairs], [r for _, r in pairs])
    expected = [fewest(*pair) for pair in pairs]
    kinds = found.substitutions, found.insertions, found.deletions
    assert kinds == tuple(sum(each[1 + k] for each in expected) for k in range(3))
    assert found.edits == sum(each[0] for each in expected)
    assert found.length == sum(len(r) for _, r in pairs)


@pytest.mark.parametrize(
    "hypotheses, references, rate",
    [
        ([[1, 2, 3]], [[1, 2, 3]], 0.0),
        ([[1, 3]], [[1, 2, 3]], 1 / 3),
        ([[]], [[1, 2]], 1.0),
        ([[1, 1, 1, 1]], [[1]], 3.0),
        ([[1], []], [[1], [2, 2, 2]], 0.75),
        ([[4], [1, 2]], [[], [1, 2]], 0.5),
        ([[], []], [[], []], 0.0),
        ([[1]], [[]], math.inf),
        ([], [], 0.0),
        ([["the", "cat", "sat"]], [["the", "cat", "sat", "down"]], 0.25),
        ([(1, 2)], [torch.tensor([1, 3])], 0.5),
    ],
)
def test_rates(hypotheses, references, rate):
    assert label_error_rate(hypotheses, references).rate == rate


def test_kinds():
    assert label_error_rate(["xbcd"], ["abd"]) == ErrorRate(1, 1, 0, 3)
    # Two substitutions would do as well.
    assert label_error_rate(["bc"], ["ab"]) == ErrorRate(0, 1, 1, 2)


@pytest.mark.parametrize(
    "hypotheses, references, message",
    [
        ("abc", ["abc"], "hypotheses: expected a list of sequences of labels, got str"),
        (["abc"], torch.zeros(2, 3), "references: .* got Tensor"),
        ([1, 2], [[1], [2]], "hypotheses: expected a sequence of labels at position 0, got 1"),
        ([[1]], [[[1], [2]]], "references: expected a sequence of labels at position 0"),
    ],
)
def test_types(hypotheses, references, message):
    with pytest.raises(InputTypeError, match=message):
        label_error_rate(hypotheses, references)


def test_unequal_numbers():
    with pytest.raises(InputError, match="one for each of the 1 references, got 2"):
        label_error_rate([[1], [2]], [[1]])
