"""Rankings: the test of significance against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cellwright.tasks.ranking import holm, permutation_test, rank


def test_all_signs_are_tried():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 7))
    differences = first - second
    hits = sum(
        abs(np.dot(signs, differences)) >= abs(differences.sum()) - 1e-12
        for signs in itertools.product((1, -1), repeat=7)
    )
    assert permutation_test(first, second) == pytest.approx(hits / 2**7)


def test_many_pairs_are_drawn_and_agree_with_all_signs():
    random = np.random.default_rng(1)
    first = random.normal(size=15)
    second = first + 0.3 + random.normal(scale=0.6, size=15)
    differences = first - second
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=15)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert permutation_test(first, second) == pytest.approx(exact, abs=0.005)
    assert permutation_test(first, second) == permutation_test(first, second)


def test_no_difference_is_no_finding_and_a_large_one_is():
    same = np.arange(20.0)
    assert permutation_test(same, same) == 1.0
    assert permutation_test(same, same + 1) < 1e-4


def test_chance_is_found_as_often_as_it_says():
    random = np.random.default_rng(2)
    p = [permutation_test(*random.normal(size=(2, 8))) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.08


def test_holm_never_turns_the_order_round():
    assert holm([]) == []
    assert holm([0.5]) == [0.5]
    assert holm([0.6, 0.02]) == pytest.approx([0.6, 0.04])
    assert holm([0.04, 0.04, 0.9]) == pytest.approx([0.12, 0.12, 0.9])


def test_a_ranking_begins_with_the_best():
    values = {"base": [3.0, 4.0, 5.0], "worse": [4.0, 5.5, 6.0], "better": [1.0, 2.0, 4.5]}
    places = rank(values, "base")
    assert [each.case for each in places] == ["better", "base", "worse"]
    assert places[1].p is None
    assert places[2].best == 4.0 and places[2].median == 5.5
    assert places[0].p == pytest.approx(0.5)  # 2 of 8 signs, twice
