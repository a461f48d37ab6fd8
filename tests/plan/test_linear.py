"""Sums over units that are taken apart where they would wait for another sum."""

import pytest
import torch

import cellwright as cw
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.ir import ONE, Vector, apply, leaf, topological
from cellwright.plan import build
from cellwright.plan.linear import take_apart

UNITS = 5
A, B, C = (leaf("cotangent", name, Vector("hidden")) for name in "abc")
R = leaf("value", "saved.0", Vector(ONE))


def mean(value):
    return apply("mean", value)


def total(value):
    return apply("sum", value)


def sums_one_behind_the_other(root):
    """The longest chain of sums and means behind a value."""
    depth = {}
    for each in topological([root]):
        below = max((depth[source] for source in each.inputs), default=0)
        depth[each] = below + (each.op in ("sum", "mean"))
    return depth[root]


def value_of(root):
    """In float64, of numbers that are always the same."""
    torch.manual_seed(0)
    leaves = [each for each in topological([root, A, B, C, R]) if not each.inputs]
    given = {
        each: torch.randn((3, 1 if each.size == ONE else UNITS), dtype=torch.float64)
        for each in sorted((n for n in leaves if n.op in ("cotangent", "value")), key=repr)
    }
    like = torch.zeros((1, 1, 1), dtype=torch.float64)
    evaluator = Evaluator(algebra(0), {"hidden": UNITS, ONE: 1}, like)
    return evaluator.complete([root], given)[0]


WAITING = {
    "a number": total(A * R + B * total(C)),
    "its square": total(A - B * total(C) * total(C)),
    "negated": total(-(A * total(B * C)) + B * 0.5),
    "of a mean": total(A * 3.0 + B * (mean(C) * R)),
    "alike": total(A * total(C) * 2.0 + B * total(C) * 2.0),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_same_value_sooner(name):
    before = WAITING[name]
    (after,) = take_apart([before], [])
    assert sums_one_behind_the_other(before) == 2
    assert sums_one_behind_the_other(after) == 1
    torch.testing.assert_close(value_of(after), value_of(before), rtol=1e-12, atol=1e-12)


LEFT = {
    "nothing waits": total(A * R + B),
    "a vector waits": total(A * (B + total(C))),
    "all of it waits": total(A * R + (B * total(C)) * (A + total(C))),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_would_not_be_known_sooner_is_left(name):
    assert take_apart([LEFT[name]], []) == [LEFT[name]]


def test_distances_from_a_mean_add_up_to_nothing():
    for values in ([A], [A, B], [A, B, C]):
        together = values[0]
        for each in values[1:]:
            together = together + each
        center = mean(together) * (1.0 / len(values))
        known = [each - center for each in values]
        weighed = B * R
        for each in known:
            weighed = weighed + each * total(C) * 2.0
        (after,) = take_apart([total(weighed)], topological(known))
        assert after == total(B) * R
        # With another center something is left.
        known = [each - center * 0.5 for each in values]
        weighed = B * R
        for each in known:
            weighed = weighed + each * total(C)
        (after,) = take_apart([total(weighed)], topological(known))
        assert sum(each.op == "sum" for each in topological([after])) == 3
        torch.testing.assert_close(value_of(after), value_of(total(weighed)))


def test_a_normalisation_keeps_products_and_numbers():
    """Four products; means and deviations, one a row; gates are computed again from both."""
    plan = build(cw.cells.get("layer_norm_lstm"))
    kept = list(plan.forward.saved.values())
    assert [each.op for each in kept if each.size != ONE] == ["matvec"] * 4
    assert sum(each.size == ONE for each in kept) == 4
    kept = list(plan.forward.saved_inputs.values())
    assert [each.op for each in kept if each.size != ONE] == ["matvec"] * 4


def test_two_normalisations_are_two_waits_on_the_way_back():
    plan = build(cw.cells.get("layer_norm_lstm"))
    reductions = [stage for stage in plan.backward.loop.stages if stage.reductions]
    assert len(reductions) == 2
