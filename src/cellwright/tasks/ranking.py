"""Which of several cases is best, and which differences are more than chance."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EXACT = 14  # pairs up to which all signs are tried: 16,384 of them
DRAWS = 100_000


@dataclass(frozen=True)
class Place:
    """A case's place in a ranking.

    Attributes:
        case: its name.
        mean, median, best: of the metric, over the runs.
        p: the probability of a difference from the baseline at least as large by chance, after
            Holm's correction for as many comparisons as there are; None for the baseline.
    """

    case: str
    mean: float
    median: float
    best: float
    p: float | None


def rank(values: Mapping[str, Sequence[float]], baseline: str) -> list[Place]:
    """The cases by the mean of a metric of which the lowest is the best.

    Runs with the same seed have the same settings in every case, so that a case is compared with
    the baseline pair by pair: by a permutation test on the mean difference, in which the sign of
    each is thrown anew (Fisher 1935).

    Args:
        values: the metric of each case's runs, in the order of the seeds.
        baseline: the case with which the others are compared.

    Example:
        >>> places = rank({"a": [1.0, 2.0, 3.0], "b": [2.0, 3.5, 4.5]}, baseline="a")
        >>> [(each.case, each.mean, each.p) for each in places]
        [('a', 2.0, None), ('b', 3.3333333333333335, 0.25)]
    """
    others = [case for case in values if case != baseline]
    found = holm([permutation_test(values[case], values[baseline]) for case in others])
    p: dict[str, float | None] = {baseline: None, **dict(zip(others, found, strict=True))}
    places = [
        Place(case, statistics.fmean(each), statistics.median(each), min(each), p[case])
        for case, each in values.items()
    ]
    return sorted(places, key=lambda place: place.mean)


def permutation_test(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of pairs' mean difference under signs thrown by chance.

    All signs are tried for up to 14 pairs; beyond, 100,000 of them, the same in every call.

    Example:
        >>> permutation_test([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
        1.0
    """
    differences = np.subtract(first, second)
    observed = abs(differences.mean())
    if len(differences) <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(differences))))
    else:
        random = np.random.default_rng(0)
        signs = random.integers(0, 2, (DRAWS, len(differences))) * 2.0 - 1.0
        signs[0] = 1.0  # the signs that were observed are among those that may be thrown
    means = np.abs(signs @ differences / len(differences))
    # A sum in another order may differ in its last bits.
    return float(np.mean(means >= observed * (1 - 1e-9)))


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in the order in which they came.

    >>> [round(each, 6) for each in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda index: p[index])
    corrected = [0.0] * len(p)
    largest = 0.0
    for done, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(p) - done)))
        corrected[index] = largest
    return corrected
