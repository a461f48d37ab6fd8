"""A small set of series that a small model can learn."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.train.series import SeriesSet


def make_series(count: int, seed: int) -> SeriesSet:
    """Series of two features and three labels: the first feature rises, falls or stays."""
    random = np.random.default_rng(seed)
    values, labels = [], []
    for index in range(count):
        steps = int(random.integers(3, 9))
        slope = index % 3 - 1
        rising = slope * np.arange(steps) + random.normal(scale=0.3, size=steps)
        values.append(np.stack([rising, random.normal(scale=5, size=steps) + 100], axis=1))
        labels.append(("falls", "stays", "rises")[index % 3])
    return SeriesSet.of(values, labels)


@pytest.fixture
def series() -> SeriesSet:
    return make_series(30, seed=0)
