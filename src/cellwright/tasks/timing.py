"""What the tasks on precise timing share: when an output is right, and where a stream ends."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from cellwright.train import objectives

GERS = "Gers, Schraudolph & Schmidhuber 2002, Learning precise timing with LSTM recurrent networks"

#: An output is right if it is less than this away from its target.
SPIKE_TOLERANCE, WAVE_TOLERANCE = 0.49, 0.3


def within_tolerance(outputs: Tensor, targets: Tensor, tolerance: float) -> Tensor:
    """Where an output is less than the tolerance from its target, or there is no target.

    Args:
        outputs, targets: (T, B, 1).

    Returns:
        (T, B) booleans.
    """
    return (((outputs - targets).abs() < tolerance) | targets.isnan()).all(-1)


def until_wrong(right: Tensor) -> Tensor:
    """Where every step before is right: the first wrong step counts, those after it do not.

    Args:
        right: (T, B) booleans.

    >>> import torch
    >>> until_wrong(torch.tensor([[True], [True], [False], [True]]))[:, 0].tolist()
    [True, True, True, False]
    """
    wrong = (~right).long()
    return wrong.cumsum(0) == wrong


def root_mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """The root of the mean square error over the values that are not NaN."""
    return objectives.value_error(outputs, targets).sqrt()


def all_within(tolerance: float) -> objectives.Objective:
    """One value a step; a sequence is right if every value is within the tolerance."""
    return replace(
        objectives.get("values"),
        name=f"values-within-{tolerance:g}",
        metric=root_mean_square,
        metric_name="rmse",
        right=lambda outputs, targets: within_tolerance(outputs, targets, tolerance).all(0),
    )
