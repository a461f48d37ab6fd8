"""Clipping by norm and by value, and what it says that it did."""

from __future__ import annotations

import pytest
import torch

from cellwright.train.clipping import clip


def parameters(*gradients):
    found = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(len(gradient)))
        parameter.grad = torch.tensor(gradient)
        found.append(parameter)
    return [*found, torch.nn.Parameter(torch.zeros(3))]  # one that has no gradient


def gradients(found):
    return [each.grad.tolist() for each in found if each.grad is not None]


def test_by_norm():
    found = parameters([3.0, 0.0], [4.0])
    done = clip(found, norm=2.5)
    assert (done.norm, done.scale, done.values, done.finite) == (5.0, 0.5, 0, True)
    # torch divides by the norm + 1e-6.
    assert gradients(found)[0] == pytest.approx([1.5, 0.0], rel=1e-6)
    assert gradients(found)[1] == pytest.approx([2.0], rel=1e-6)
    assert not clip(found, norm=2.6).changed


def test_by_value_and_then_by_norm():
    found = parameters([3.0, -0.5], [-4.0])
    done = clip(found, norm=1.5, value=1.0)
    assert (done.values, done.changed) == (2, True)
    assert done.scale == pytest.approx(1.0)  # of (1, -0.5, -1) the norm is 1.5
    assert gradients(found) == [[1.0, -0.5], [-1.0]]
    assert clip(found, norm=0.75, value=1.0).scale == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_is_left_alone(bad):
    found = parameters([3.0, bad], [4.0])
    done = clip(found, norm=1.0, value=1.0)
    assert not done.finite
    assert not done.changed
    assert found[0].grad[0] == 3.0
    assert str(found[0].grad[1].item()) == str(bad)
