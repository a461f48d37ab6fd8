"""The CPU engine against the reference engine: every cell, option and awkward size.

The reference engine's own gradients are compared with torch's and with a plain loop elsewhere.
"""

from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, assert_same, make_call, options_for
from engines.cpu.cpu_cases import (
    ENGINE,
    Guards,
    by_cpu,
    by_reference,
    cast,
    cast_cotangents,
    guarded,
)

from cellwright.engines.cpu import backward_pass, pages
from cellwright.plan import StepOptions

# Sums of up to 100 terms in another order, over at most nine steps; functions off by 3 units in
# the last place. assert_same takes it relative to the largest number of each tensor.
FLOAT64 = 1e-11
# The same with 6e-8 (half a unit of float32) for 1e-16, and for each of some 300 roundings in a
# row: the longest chain is 9 steps of 33 products. The twin computes in float64.
FLOAT32 = 2e-5

WIDTHS = [(4, 6), (3, 17), (5, 33)]  # input and hidden size: less than a vector, one more, two more
LENGTHS = [(5, 3), (1, 1), (7, 9)]  # steps and batch
EVERY_OPTION = [name for name in options_for(CATALOGUE["lstm"]) if name != "bf16"]
OPTIONS = [
    "everything", "zoneout, training", "reset to a learnt state", "lengths", "heads",
    "recurrent_dropout",
]  # fmt: skip
NAMES = list(CATALOGUE)


def compare(call, *, unkept=True):
    """Results and all gradients of both engines; the reference engine's in float64."""
    results, gradients, cotangents = by_cpu(call, unkept=unkept)
    tolerance = FLOAT64
    if call.x.dtype == torch.float32:
        tolerance = FLOAT32
        call, cotangents = cast(call, torch.float64), cast_cotangents(cotangents, torch.float64)
        assert {v.dtype for v in (*results.values(), *gradients.values())} == {torch.float32}
        results = {name: value.double() for name, value in results.items()}
        gradients = {name: value.double() for name, value in gradients.items()}
    expected, of_reference = by_reference(call, cotangents)
    assert_same(results, expected, tolerance, "result")
    assert_same(gradients, of_reference, tolerance, "gradient")


def shapes(widths):
    """All lengths with one pair of widths: one compilation."""
    return [Shape(steps, batch, *widths) for steps, batch in LENGTHS]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_every_cell_in_float64(number):
    spec = CATALOGUE[NAMES[number]]
    for shape in shapes(WIDTHS[number % 3]):
        reverse = shape.batch == 3
        compare(make_call(spec, StepOptions(trace=True), shape, reverse=reverse, seed=number))


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_every_cell_with_options_in_float32(number):
    """Each cell with one of the options that change most."""
    spec = CATALOGUE[NAMES[number]]
    options = options_for(spec)[OPTIONS[number // 3 % len(OPTIONS)]]
    for shape in shapes(WIDTHS[(number + 1) % 3]):
        call = make_call(spec, options, shape, reverse=shape.batch == 1, stacked=True, seed=number)
        compare(cast(call, torch.float32), unkept=False)


@pytest.mark.parametrize(
    ("name", "dtype", "widths"),
    [
        ("lstm", torch.float32, [(1, 1), (70, 2), (2, 70)]),
        ("lstm", torch.float64, [(1, 1), (70, 2), (2, 70)]),
        ("gru_v1", torch.float32, [(1, 1), (2, 70)]),
        ("lstm_projection", torch.float64, [(1, 1), (2, 70)]),
    ],
    ids=str,
)
def test_the_narrowest_and_the_widest(name, dtype, widths):
    for pair in widths:
        call = make_call(CATALOGUE[name], StepOptions(), Shape(3, 4, *pair), stacked=True)
        compare(cast(call, dtype), unkept=False)


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_every_option(option):
    name = "lstm" if len(option) % 2 else "gru_v1"
    options = options_for(CATALOGUE[name])[option]
    compare(make_call(CATALOGUE[name], options, Shape(5, 3, 4, 9)))
    compare(make_call(CATALOGUE[name], options, Shape(4, 1, 4, 9), reverse=True))


@pytest.mark.parametrize(
    "options",
    [
        StepOptions(lengths=True, reset=True, trace=True),
        StepOptions(heads=3, layer_norm=True),
        StepOptions(recurrent_dropout=True, zoneout=(("c", 0.4),), training=True, grad_clip=0.1),
    ],
    ids=["lengths, reset", "heads, layer_norm", "dropout, zoneout, clip"],
)
def test_options_together(options):
    compare(make_call(CATALOGUE["lstm_projection"], options, Shape(5, 3, 4, 7)))


def test_every_count_of_rows():
    """Rows are taken by 6, 4, 3, 2 and 1, tiles have 48, and a single row goes another way."""
    for batch in (1, 2, 3, 4, 5, 6, 7, 11, 47, 48, 49, 97):
        compare(make_call(CATALOGUE["lstm"], StepOptions(), Shape(2, batch, 4, 6)))


@pytest.mark.parametrize("hidden", [7, 8, 9, 15, 16, 32, 48, 63, 64, 65])
def test_every_kind_of_edge_between_vectors(hidden):
    """Vectors have 8 or 16 units; a panel one to four of them."""
    dtype = torch.float64 if hidden % 2 else torch.float32
    compare(cast(make_call(CATALOGUE["elman"], StepOptions(), Shape(3, 2, 2, hidden)), dtype))


def test_more_rows_and_columns_than_a_block():
    """Gradients are products over steps x rows in blocks of 512, and 64 columns of x."""
    for shape in (Shape(13, 50, 3, 5), Shape(2, 2, 131, 5)):
        compare(make_call(CATALOGUE["elman"], StepOptions(), shape), unkept=False)
        call = make_call(CATALOGUE["elman"], StepOptions(), shape)
        compare(cast(call, torch.float32), unkept=False)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_two_kept_steps_are_enough_without_gradients(steps):
    """by_cpu compares with the run that keeps all steps; the last may lie in either half."""
    for reverse in (False, True):
        shape = Shape(steps, 2, 4, 9)
        by_cpu(make_call(CATALOGUE["lstm"], StepOptions(lengths=True), shape, reverse=reverse))


def test_the_gradient_of_x_is_left_out_and_the_others_stay():
    call = make_call(CATALOGUE["gru"], StepOptions(trace=True), Shape(5, 3, 4, 9))
    _, gradients, cotangents = by_cpu(call)
    kept = ENGINE.forward(call, keep=True).kept
    found = ENGINE.backward(call, kept, cotangents, need_x=False)
    assert found.x is None
    for state, value in zip(call.signature.spec.states, found.states, strict=True):
        assert torch.equal(value, gradients[f"d {state.name}"])
    for place in call.signature.slices:
        value = found.weights[place.tensor][place.start : place.stop]
        assert torch.equal(value, gradients[f"d {place.parameter}"])


def test_nothing_that_was_given_is_changed():
    spec = CATALOGUE["elman"]
    call = make_call(spec, options_for(spec)["everything"])
    result = ENGINE.forward(call, keep=True)
    given = [call.x, *call.states, *call.weights, *call.streams, *result.kept]
    before = [each.clone() for each in given]
    _, _, cotangents = by_cpu(call)
    ENGINE.backward(call, result.kept, cotangents, need_x=True)
    for each, copy in zip(given, before, strict=True):
        assert torch.equal(each, copy)


def test_results_lie_in_memory_of_their_own():
    """The engine says that it never returns what it was given, nor one tensor twice."""
    assert ENGINE.fresh
    call = make_call(CATALOGUE["lstm"], StepOptions(trace=True), Shape(2, 1, 3, 5))
    for keep in (False, True):
        result = ENGINE.forward(call, keep=keep)
        found = [result.output, *result.states, *result.trace, *result.kept]
        given = [call.x, *call.states, *call.weights]
        places = [each.untyped_storage().data_ptr() for each in (*found, *given)]
        assert len(places) == len(set(places))
        assert not any(each._is_view() for each in found)


# --- what it does not run ----------------------------------------------------------------------


def objection(signature, device="cpu", dtype=torch.float32):
    return ENGINE.objection(signature, torch.device(device), dtype)


def test_it_says_what_it_cannot_run():
    signature = make_call(CATALOGUE["lstm"]).signature
    assert objection(signature) is None
    assert objection(signature, dtype=torch.float64) is None
    assert "meta" in objection(signature, device="meta")
    for dtype in (torch.float16, torch.bfloat16):
        assert str(dtype).removeprefix("torch.") in objection(signature, dtype=dtype)
    assert objection(replace(signature, spatial=2)) is None


# --- the comparison itself ---------------------------------------------------------------------


def test_a_number_behind_an_array_is_noticed():
    def write(guards, place):
        values = guards.empty(3, dtype=torch.float64)
        whole, edge, _ = guards.wholes[-1]
        whole[edge + place] = 1.0
        return values

    inside = Guards()
    write(inside, 2)
    inside.check()
    for place in (-1, 3):
        outside = Guards()
        write(outside, place)
        with pytest.raises(AssertionError, match="outside"):
            outside.check()


def test_a_number_read_from_behind_x_is_noticed():
    call = make_call(CATALOGUE["elman"], StepOptions(), Shape(3, 2, 2, 4))
    with guarded() as guards:
        x = guards.copy(call.x)
        beyond = torch.as_strided(x, (3, 2, 2), x.stride(), x.storage_offset() + 2)
        assert beyond[-1, -1].isnan().all()
        assert ENGINE.forward(replace(call, x=beyond), keep=False).output[-1, -1].isnan().all()
        assert pages.torch is backward_pass.torch is guards
    assert pages.torch is backward_pass.torch is torch
