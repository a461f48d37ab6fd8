"""Which products share a panel of packed weights, and how wide panels are."""

import pytest
from engines.cases import CATALOGUE, Shape, make_call

from cellwright.engines.cpu.kernels import kernels
from cellwright.engines.cpu.targets import _panels
from cellwright.plan import StepOptions


@pytest.mark.parametrize("targets", [1, 2, 3, 4])
@pytest.mark.parametrize("vectors", [0, 1, 2, 3, 4, 5, 8, 9, 11, 25, 41])
def test_panels_cover_the_units(vectors, targets):
    first = before = 0
    widths = []
    for panels in _panels(vectors, targets):
        assert (panels.first, panels.before) == (first, before)
        first += panels.count * panels.blocks
        before += panels.count
        widths += [panels.blocks] * panels.count
    assert first == vectors
    assert widths == sorted(widths, reverse=True)
    assert max(widths, default=0) <= 4 // targets
    assert max(widths, default=0) - min(widths, default=0) <= 1


def groups_of(name, hidden=40):
    """The groups of products of a cell's backward and (with x inside) forward loop."""
    call = make_call(CATALOGUE[name], StepOptions(), Shape(1, 2, 3, hidden))
    made = kernels(call.signature.text, False, "")
    loops = made.forward(True, True)[2], made.backward(True)[2]
    return [[g for stage in loop.program.groups for g in stage] for loop in loops]


@pytest.mark.parametrize("name, widths", [("gru", [3, 3]), ("odyssey_fgr", [4, 3, 4, 3])])
def test_targets_with_some_operands_in_common_are_joined(name, widths):
    """The GRU's candidate has its products with x and h apart, each beside those of both gates.

    In the full-gate-recurrence LSTM only three gates read what gates were, f before h and i, o
    behind it.
    """
    forward, _ = groups_of(name)
    (joined,) = forward
    assert [each.width for each in joined.segments] == widths


def test_targets_with_the_same_operands_are_one_segment():
    (forward,), (backward,) = groups_of("lstm")
    assert [each.width for each in forward.segments] == [4]
    assert [each.width for each in backward.segments] == [1]
    assert backward.panels[0].blocks == 3
