"""The option ``save`` on the reference engine, and as part of the operator."""

from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, assert_same, by_the_plan, make_call, options_for
from engines.cpu.cpu_cases import ENGINE
from engines.test_finite_differences import check_by_differences
from engines.test_operator import arguments

from cellwright.engines import parse
from cellwright.engines.reference import ReferenceEngine
from cellwright.plan import SAVES, StepOptions

SHAPE = Shape(8, 3, 3, 5)  # two steps from checkpoint to checkpoint
OTHERS = SAVES[1:]


def call_of(name, options, save, shape=SHAPE, *, reverse=False):
    return make_call(CATALOGUE[name], replace(options, save=save), shape, reverse=reverse)


@pytest.mark.parametrize("save", OTHERS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_cell(name, save):
    """Sums over steps in another order, so rounding may differ; results may not."""
    for option in ("trace", "everything"):
        options = options_for(CATALOGUE[name])[option]
        for reverse in (False, True):
            results, gradients, cotangents = by_the_plan(
                call_of(name, options, "gates", reverse=reverse)
            )
            call = call_of(name, options, save, reverse=reverse)
            others, of_others, _ = by_the_plan(call, cotangents)
            assert_same(others, results, 0.0)
            # 24 terms of order 1, each off by 1e-16.
            assert_same(of_others, gradients, 1e-13)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_both_engines_keep_the_same(steps, save):
    """What one keeps the other can go back from: a program may be compiled for either."""
    for reverse in (False, True):
        shape = replace(SHAPE, steps=steps)
        call = call_of("gru_v1", StepOptions(trace=True), save, shape, reverse=reverse)
        ours, theirs = (e.forward(call, keep=True).kept for e in (ENGINE, ReferenceEngine()))
        assert [each.shape for each in ours] == [each.shape for each in theirs]
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("save", OTHERS)
@pytest.mark.parametrize("name", ["lstm", "gru_v1", "slstm"])
def test_finite_differences(name, save):
    options = StepOptions(trace=True, save=save)
    for reverse in (False, True):
        shape = Shape(5, 2, 1, 3)
        check_by_differences(make_call(CATALOGUE[name], options, shape, reverse=reverse, seed=5))


@pytest.mark.parametrize("save", OTHERS)
@pytest.mark.parametrize("steps", [1, 8])
def test_the_operator_is_registered_as_torch_asks(steps, save):
    call = call_of("gru_v1", StepOptions(trace=True), save, replace(SHAPE, steps=steps))
    operator = torch.ops.cellwright.recurrence.default
    found = torch.library.opcheck(operator, arguments(call))
    assert set(found.values()) == {"SUCCESS"}


def test_a_signature_remembers_it():
    signature = call_of("lstm", StepOptions(), "checkpoints").signature
    assert parse(signature.text) == signature
    assert parse(signature.text).options.save == "checkpoints"
