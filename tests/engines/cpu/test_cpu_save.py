"""``save`` in all three ways: the same bits, with less memory; and spans of any length."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from engines.cases import CATALOGUE, Shape, draw_cotangents, make_call, options_for
from engines.cpu.cpu_cases import ENGINE, assert_equal, by_cpu, cast, share_units
from engines.cpu.test_cpu_layers import B, I, T, make, randn, some_state, train
from engines.test_backward import UNUSUAL
from engines.test_finite_differences import check_by_differences

from cellwright.engines.cpu import jit, memory, pages, spans, threads
from cellwright.engines.keeping import checkpoints, spacing
from cellwright.plan import SAVES, StepOptions

CELLS = CATALOGUE | UNUSUAL
F32, F64 = torch.float32, torch.float64
# Masks of both kinds, lengths, resets, clipping and traces are all in "everything".
CALLS = {
    "lstm": ("lstm", "trace", F32),
    "lstm, everything": ("lstm", "everything", F32),
    "lstm in float64": ("lstm", "lengths", F64),
    "gru": ("gru", "recurrent_dropout", F32),
    "gru_v1": ("gru_v1", "everything", F64),
    "peephole": ("peephole_lstm", "grad_clip", F32),
    "projection": ("lstm_projection", "reset", F32),
    "norm": ("layer_norm_lstm", "reset to a learnt state", F32),
    "slstm": ("slstm", "zoneout, training", F64),
    "no matrix in the loop": ("mingru", "lengths", F32),
    "a matrix twice": ("matrix_used_twice", "trace", F32),
    "a matrix before the loop": ("matrix_before_and_in_the_loop", "plain", F32),
    "compared": ("chosen_by_a_number_a_row", "trace", F32),
    "bf16": ("lstm", "bf16", F32),
    "bf16, a stage more": ("gru_v1", "bf16", F32),
    "of parameters": ("matrix_on_parameters_and_in_the_loop", "plain", F64),
}
SHAPE = Shape(11, 3, 4, 17)  # two steps from checkpoint to checkpoint, and one that is left


def call_of(name, shape=SHAPE, save="gates", *, reverse=False):
    cell, option, dtype = CALLS[name]
    options = replace(options_for(CELLS[cell])[option], save=save)
    return cast(make_call(CELLS[cell], options, shape, reverse=reverse), dtype)


def in_spans(monkeypatch, rows):
    """Let spans have that many rows, as near as whole steps and checkpoints allow."""
    monkeypatch.setattr(spans, "LEAST_ROWS", rows)
    monkeypatch.setattr(spans, "ROOM", 1)
    monkeypatch.setattr(spans, "WHOLE", 0)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_in_all_ways(name, reverse, monkeypatch):
    results, gradients, cotangents = by_cpu(call_of(name, reverse=reverse))
    for rows in (1, 6, 1000):
        in_spans(monkeypatch, rows)
        for save in SAVES:
            found = by_cpu(call_of(name, save=save, reverse=reverse), cotangents)
            assert_equal(found[0], results, f"{save}, spans of {rows} rows")
            assert_equal(found[1], gradients, f"{save}, spans of {rows} rows")


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 10])
def test_any_number_of_steps(steps, reverse, monkeypatch):
    shape, name = replace(SHAPE, steps=steps), "lstm, everything"
    results, gradients, cotangents = by_cpu(call_of(name, shape, reverse=reverse))
    in_spans(monkeypatch, 1)
    for save in SAVES:
        found = by_cpu(call_of(name, shape, save, reverse=reverse), cotangents)
        assert_equal(found[0], results, save)
        assert_equal(found[1], gradients, save)


@pytest.mark.parametrize("save", SAVES)
def test_threads_and_processors(save, monkeypatch):
    """As for the whole sequence: not a bit depends on who computes."""
    results, gradients, cotangents = by_cpu(call_of("lstm, everything"))
    in_spans(monkeypatch, 6)
    share_units(monkeypatch)
    torch.set_num_threads(2)
    teams = set()
    launch = threads.launch

    def counted(*given):
        teams.add(given[-1])
        launch(*given)

    monkeypatch.setattr(threads, "launch", counted)
    found = by_cpu(call_of("lstm, everything", save=save), cotangents)
    assert 2 in teams
    assert_equal(found[1], gradients, "two threads")
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", jit.AVX2)
    found = by_cpu(call_of("lstm, everything", save=save), cotangents)
    assert_equal(found[0], results, "AVX2")
    assert_equal(found[1], gradients, "AVX2")


LAYERS = {
    "two layers": {"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.3},
    "both directions": {"bidirectional": True, "zoneout": {"h": 0.2, "c": 0.4}, "grad_clip": 0.2},
    "batch first": {"batch_first": True, "bidirectional": True, "cell": "gru"},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, monkeypatch):
    """Masks are drawn alike; x that does not lie in one piece is copied span by span."""
    in_spans(monkeypatch, 6)
    given = {"lengths": torch.tensor([T, 0, 3]), "trace": True}
    found = {}
    for save in SAVES:
        layer = make(**LAYERS[name], save=save)
        x = randn(B, T, I) if layer.batch_first else randn(T, B, I)
        found[save] = train(layer, x, some_state(layer), **given)
    for save in SAVES[1:]:
        assert_equal(found[save], found["gates"], save)


def kept(save, steps, batch=2, hidden=3):
    """Tensors that are kept for the backward pass."""
    call = make_call(CATALOGUE["lstm"], StepOptions(save=save), Shape(steps, batch, 2, hidden))
    return ENGINE.forward(call, keep=True).kept


def test_what_is_kept():
    """By number of elements: working memory is bounded elsewhere."""
    count = {
        (save, steps): sum(each.numel() for each in kept(save, steps))
        for save in SAVES
        for steps in (100, 10_000)
    }
    row = 2 * 3  # B x H
    for steps in (100, 10_000):
        assert count["gates", steps] == steps * row * (2 + 4), "h, c and four gates"
        assert count["states", steps] == steps * row * 2
        assert count["checkpoints", steps] <= (steps**0.5 + 2) * row * 2
    assert count["checkpoints", 10_000] > 8 * count["checkpoints", 100]
    assert [tuple(each.shape) for each in kept("checkpoints", 1)] == [(2, 2, 3)] * 2


@pytest.mark.parametrize("save", SAVES)
def test_memory_is_given_back_at_once(save):
    """Nothing refers to itself, so nothing waits for Python's garbage collector."""
    call = call_of("lstm", save=save)
    gc.collect()
    gc.disable()
    try:
        result = ENGINE.forward(call, keep=True)
        gradients = ENGINE.backward(call, result.kept, draw_cotangents(result), need_x=True)
        watched = [weakref.ref(each) for each in (result.output, *result.kept, gradients.x)]
        del result, gradients
        assert [each() for each in watched] == [None] * len(watched)
    finally:
        gc.enable()


@pytest.mark.parametrize("save", SAVES)
def test_working_memory_does_not_grow_with_the_sequence(save):
    held, used = memory.memory._held, {}
    for steps in (200, 6000, 12_000):
        options, shape = StepOptions(save=save), Shape(steps, 2, 3, 64)
        call = cast(make_call(CATALOGUE["lstm"], options, shape), F32)
        held.clear()
        result = ENGINE.forward(call, keep=True)
        ENGINE.backward(call, result.kept, draw_cotangents(result), need_x=True)
        used[steps] = sum(each.nbytes for each in held.values())
    assert used[12_000] == used[6000]
    # Two passes, each with values of a span; every piece is as long as its large pages.
    assert used[12_000] <= used[200] + 2 * spans.ROOM + len(held) * pages.LARGE_PAGE


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100, 101, 1000, 4096, 100_000, 4**15])
def test_checkpoints_are_about_as_many_as_the_steps_between(steps):
    between, segments = spacing(steps), checkpoints(steps) - 1
    assert between % 2 == 0, "for products that take rows two by two"
    assert 0.9 * steps**0.5 - 2 <= between <= 1.26 * steps**0.5 + 2
    assert (segments - 1) * between < steps <= segments * between


@pytest.mark.parametrize("rows", [0, 1, 3, 700])
@pytest.mark.parametrize("steps, unit", [(1, 1), (7, 1), (100, 10), (101, 10), (9, 3)])
def test_spans_cover_the_sequence(steps, rows, unit):
    for row_bytes in (0, 1, 10_000, spans.ROOM):
        found = spans.spans(steps, rows, row_bytes, unit)
        assert [each.first for each in found] == [0, *(each.stop for each in found[:-1])]
        assert found[-1].stop == steps
        assert all(each.first % unit == 0 < each.stop - each.first for each in found)
        longest = max(each.stop - each.first for each in found)
        allowed = max(spans.LEAST_ROWS, max(spans.ROOM, spans.WHOLE) // max(row_bytes, 1))
        assert longest == found[0].stop
        assert longest <= unit or longest * rows <= allowed or not row_bytes


@pytest.mark.parametrize("name", ["lstm", "gru_v1", "layer_norm_lstm"])
def test_finite_differences(name, monkeypatch):
    in_spans(monkeypatch, 2)
    for reverse in (False, True):
        call = make_call(
            CATALOGUE[name], StepOptions(trace=True, save="checkpoints"), Shape(5, 2, 1, 3),
            reverse=reverse, seed=5,
        )  # fmt: skip
        check_by_differences(call)
