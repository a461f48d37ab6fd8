"""What the forward pass keeps for the backward pass; a layer's option ``save``.

    gates        the states after each step and the plan's saved values
    states       the states after each step; saved values are computed again, span by span
    checkpoints  the states where segments of about sqrt(T) steps begin and end; all steps of a
                 segment are run again

With B sequences, S units of all states together and G units of saved values (for an LSTM S = 2 H
and G = 4 H) that is T B (S + G) numbers, T B S, or about sqrt(T) B S.
"""

from __future__ import annotations

from functools import reduce

import torch

_TOUCHING = tuple(4**power for power in range(1, 9))
"""Roots at whose squares a straight line touches the curve of the square root."""


def spacing(steps: int) -> int:
    """Steps of a segment, about sqrt(steps); the last may have fewer.

    It is an even number: products of bfloat16 numbers take rows two by two.

    Args:
        steps: of the sequence, at least one; a symbol while a program is being compiled.

    The least of some tangents of the square root, in whole numbers: a program that is exported
    keeps such a formula, and its range, where it would lose a root.
    """
    found: int = reduce(torch.sym_min, [steps // (4 * root) + root // 4 for root in _TOUCHING])
    return 2 * found


def checkpoints(steps: int) -> int:
    """How many there are: one before each segment, and one after the last step.

    There are at least two. torch.export takes an axis of 0 or 1 for another program than one of
    any other length.
    """
    return (steps - 1) // spacing(steps) + 2


def kept_steps(save: str, steps: int) -> int:
    """Steps of which the states are kept."""
    return checkpoints(steps) if save == "checkpoints" else steps
