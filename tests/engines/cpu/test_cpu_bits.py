"""The same bits, however a call is computed: docs/decisions/0005.

Every comparison here is exact, for results and for gradients.
"""

import os
import subprocess
import sys
from dataclasses import replace

import llvmlite.binding as llvm
import pytest
import torch
from engines.cases import CATALOGUE, Shape, make_call, options_for, results_of
from engines.cpu.cpu_cases import ENGINE, UNITS, Guards, assert_equal, by_cpu, by_engine, cast
from engines.test_backward import UNUSUAL

from cellwright.engines import Cotangents
from cellwright.engines.cpu import jit, kernels, packing, product, sharing, threads
from cellwright.engines.cpu.joined import pays
from cellwright.engines.cpu.programs import can_fuse, forward
from cellwright.lang import cell, cos, mean, next_state, tanh

CELLS = CATALOGUE | UNUSUAL
# One or more of a kind: gates, a stage more, unlike sizes, reductions, many states, comparisons
# that are saved, values of parameters alone.
F32, F64 = torch.float32, torch.float64
CALLS = {
    "lstm": ("lstm", "trace", F32),
    "lstm in float64": ("lstm", "trace", F64),
    "gru": ("gru", "plain", F32),
    "gru_v1": ("gru_v1", "everything", F64),
    "projection": ("lstm_projection", "lengths", F32),
    "projection in float64": ("lstm_projection", "lengths", F64),
    "norm": ("layer_norm_lstm", "reset to a learnt state", F32),
    "slstm": ("slstm", "trace", F64),
    "compared": ("chosen_by_a_number_a_row", "trace", F32),
    "of parameters": ("matrix_on_parameters_and_in_the_loop", "plain", F64),
}
every_call = pytest.mark.parametrize("name", CALLS)
every_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=str)


def call_of(name):
    """Seven sequences; units that fill two vectors and one or two lanes of a third."""
    cell, option, dtype = CALLS[name]
    options = options_for(CELLS[cell])[option]
    shape = Shape(5, 7, 4, 33 if options.heads == 1 else 17)  # heads double the hidden size
    return cast(make_call(CELLS[cell], options, shape, reverse=len(name) % 2 == 0), dtype)


_found = {}


def expected(name):
    """Results, gradients and what arrived, by one thread; computed once."""
    if name not in _found:
        _found[name] = by_cpu(call_of(name))
    return _found[name]


def check(call, name, what):
    results, gradients, cotangents = expected(name)
    found = by_cpu(call, cotangents)
    assert_equal(found[0], results, what)
    assert_equal(found[1], gradients, what)


class Launches:
    """How loops were shared out."""

    def __init__(self, monkeypatch):
        self.seen = set()
        original = threads.launch

        def launch(address, arguments, rows, how, team):
            self.seen.add((how, team))
            original(address, arguments, rows, how, team)

        monkeypatch.setattr(threads, "launch", launch)


SHARED = {
    "batch": {"ALONE_BELOW": 0, "SUMS_ALONE_BELOW": 0, "LARGE_WEIGHTS": 1 << 60, "MANY_ROWS": 1},
    "units": {"MANY_ROWS": 1 << 40, **UNITS},
}


@pytest.mark.parametrize("shared", SHARED)
@every_call
def test_any_number_of_threads(name, shared, monkeypatch):
    expected(name)
    for limit, value in SHARED[shared].items():
        monkeypatch.setattr(sharing, limit, value)
    how = threads.ROWS if shared == "batch" else threads.SHARES
    call = call_of(name)
    for team in (2, 3):
        torch.set_num_threads(team)
        launches = Launches(monkeypatch)
        check(call, name, f"{team} threads share the {shared}")
        assert (how, team) in launches.seen


@every_dtype
def test_any_number_of_threads_where_they_pay(dtype, monkeypatch):
    """Sizes at which threads are used unasked, for packing, loops, sums and products."""
    call = cast(make_call(CATALOGUE["lstm"], None, Shape(36, 64, 20, 170)), dtype)
    results, gradients, cotangents = by_cpu(call)
    for team in (2, 3):
        torch.set_num_threads(team)
        launches = Launches(monkeypatch)
        found = by_cpu(call, cotangents)
        assert {(threads.ROWS, team), (threads.SHARES, team)} <= launches.seen
        assert_equal(found[0], results, f"{team} threads")
        assert_equal(found[1], gradients, f"{team} threads")


# --- a batch in parts --------------------------------------------------------------------------


def rows_of(call, cotangents, start, stop):
    """Some sequences of a call, and of the gradients that arrive."""
    streams = [
        mask[:, start:stop] if spec.per_step else mask[start:stop]
        for spec, mask in zip(call.signature.plan.graph.streams, call.streams, strict=True)
    ]
    part = replace(
        call,
        x=call.x[:, start:stop],
        states=[each[start:stop] for each in call.states],
        streams=streams,
    )
    arriving = Cotangents(
        cotangents.output[:, start:stop],
        [each[start:stop] for each in cotangents.states],
        [each[:, start:stop] for each in cotangents.trace],
    )
    return part, arriving


def of_rows(call, results, gradients):
    """What belongs to sequences, with the axis along which they lie: not weights' gradients."""
    states = {f"{prefix} {s.name}" for s in call.signature.spec.states for prefix in ("d", "final")}
    found = {name: (value, 0 if name in states else 1) for name, value in results.items()}
    kept = {name: value for name, value in gradients.items() if name in states or name == "d x"}
    return found | {name: (value, 0 if name in states else 1) for name, value in kept.items()}


@every_call
def test_a_batch_in_parts(name):
    """A single sequence goes another way than several, and several by six, four, three, two."""
    call = call_of(name)
    results, gradients, cotangents = expected(name)
    whole = of_rows(call, results, gradients)
    parts = []
    for start, stop in ((0, 1), (1, 3), (3, 7)):
        part, arriving = rows_of(call, cotangents, start, stop)
        found = by_cpu(part, arriving)
        parts.append(of_rows(part, found[0], found[1]))
    for key, (value, axis) in whole.items():
        joined = torch.cat([part[key][0] for part in parts], axis)
        assert torch.equal(joined, value), key


@every_dtype
def test_a_large_batch_in_parts(dtype):
    call = cast(make_call(CATALOGUE["gru"], None, Shape(3, 101, 70, 12)), dtype)
    results, gradients, cotangents = by_cpu(call)
    whole = of_rows(call, results, gradients)
    for start, stop in ((0, 53), (53, 101)):
        part, arriving = rows_of(call, cotangents, start, stop)
        found = by_cpu(part, arriving)
        for key, (value, axis) in of_rows(part, found[0], found[1]).items():
            assert torch.equal(value, whole[key][0].narrow(axis, start, stop - start)), key


# --- a sequence in steps -----------------------------------------------------------------------


def step_of(call, t, states):
    """One step of a call."""
    streams = [
        mask[t : t + 1] if spec.per_step else mask
        for spec, mask in zip(call.signature.plan.graph.streams, call.streams, strict=True)
    ]
    return replace(call, x=call.x[t : t + 1], states=states, streams=streams)


@every_call
def test_a_sequence_in_steps(name):
    """Outputs, states and traces going forward; gradients of x and of the states going back."""
    call = call_of(name)
    results, gradients, cotangents = expected(name)
    names = [state.name for state in call.signature.spec.states]
    states, before, kept = call.states, {}, {}
    for t in call.steps:
        step = step_of(call, t, states)
        result = ENGINE.forward(step, keep=True)
        before[t], kept[t], states = states, result.kept, result.states
        for key, value in results_of(result, step).items():
            if key == "output" or key.startswith("trace"):
                assert torch.equal(value[0], results[key][t]), f"{key} at {t}"
    for each, value in zip(names, states, strict=True):
        assert torch.equal(value, results[f"final {each}"]), each
    carried = cotangents.states
    for t in reversed(call.steps):
        traced = [each[t : t + 1] for each in cotangents.trace]
        arriving = Cotangents(cotangents.output[t : t + 1], carried, traced)
        found = ENGINE.backward(step_of(call, t, before[t]), kept[t], arriving, need_x=True)
        assert torch.equal(found.x[0], gradients["d x"][t]), f"d x at {t}"
        carried = found.states
    for each, value in zip(names, carried, strict=True):
        assert torch.equal(value, gradients[f"d {each}"]), each


# --- what is stored beside the results ----------------------------------------------------------


@cell(state=("h", "n"))
def a_state_and_a_saved_vector(x, h, n, W, U, V):
    v = cos(V * h)
    return next_state(h=tanh(W @ x + U.h @ h + U.v @ v) + mean(v) * n, n=tanh(h))


def test_whatever_is_stored():
    """A vector that the backward pass reads lies elsewhere: its products keep their place."""
    call = make_call(a_state_and_a_saved_vector, None, Shape(4, 3, 5, 18))
    kept, alone = (ENGINE.forward(call, keep=keep) for keep in (True, False))
    assert_equal(results_of(kept, call), results_of(alone, call), "with and without keeping")


# --- products with x, before the loop or in it -------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        ("elman", F32),
        ("lstm", F32),
        ("lstm", F64),
        ("gru", F64),
        ("lstm_projection", F32),
        ("layer_norm_lstm", F32),
        ("layer_norm_lstm", F64),
        ("minlstm", F32),
        ("mut1", F32),
        ("sru", F64),
    ],
    ids=str,
)
def test_products_with_x_before_the_loop_or_in_it(cell, dtype, monkeypatch):
    assert can_fuse(make_call(CATALOGUE[cell], None, Shape(4, 5, 19, 18)).signature)
    call = cast(make_call(CATALOGUE[cell], None, Shape(4, 5, 19, 18)), dtype)
    used = []
    original = kernels.Kernels.forward

    def forward(self, keep, fuse):
        used.append(fuse)
        return original(self, keep, fuse)

    monkeypatch.setattr(kernels.Kernels, "forward", forward)
    found, cotangents = [], None
    for fuse in (False, True):
        monkeypatch.setattr(kernels.Kernels, "fuses", lambda self, rows, team, fuse=fuse: fuse)
        results, gradients, cotangents = by_cpu(call, cotangents)
        found.append((results, gradients))
    assert used == [False, False, True, True], "with and without keeping, both ways"
    assert_equal(found[0][0], found[1][0], "hoisted and fused")
    assert_equal(found[0][1], found[1][1], "hoisted and fused")


def test_a_value_in_a_sum_with_a_product_of_the_loop_stays_before_it():
    """v * (W @ x) + b + U @ h: the chain begins with what has been computed before."""

    @cell(state="h")
    def scaled(x, h, W, U, v, b):
        return next_state(h=tanh(v * (W @ x) + b + U @ h))

    call = make_call(scaled, None, Shape(4, 5, 19, 18))
    assert not can_fuse(call.signature)


def test_what_is_saved_as_it_was_hoisted_is_written_once():
    """The loop of an SRU reads two products with x where the backward pass will read them."""
    plain = make_call(CATALOGUE["sru"], None, Shape(4, 5, 19, 18)).signature
    made = forward(plain, keep=True, in_place=True)
    kept = {name for name, node in plain.plan.forward.saved.items() if node.op == "value"}
    before, inside = (
        {array.slot for arrays in program.stores.values() for array in arrays}
        for program in (made.inputs, made.loop)
    )
    assert len(kept) == 2
    assert before == {"inputs", *kept}
    assert not inside & kept
    assert made.width == 2 * 18


@every_dtype
def test_gradients_of_hoisted_values_after_the_loop_or_in_it(dtype, monkeypatch):
    """The same numbers; vectors' gradients are added up row by row in the loop."""
    call = cast(make_call(CATALOGUE["layer_norm_lstm"], None, Shape(5, 7, 19, 33)), dtype)
    found, cotangents = [], None
    for rows in (1, 8):
        monkeypatch.setattr(kernels, "JOIN_FROM", rows)
        _, gradients, cotangents = by_cpu(call, cotangents)
        found.append(gradients)
    joined, apart = found
    vectors = [name for name, each in joined.items() if each.dim() == 1]
    assert len(vectors) == 9 + 9 + 4, "gains, shifts, biases"
    for name in vectors:
        torch.testing.assert_close(joined.pop(name), apart.pop(name))
    assert_equal(joined, apart, "in the loop and after it")


def test_only_what_has_sums_over_units_joins_the_loop():
    assert pays(make_call(CATALOGUE["layer_norm_lstm"], None).signature.plan)
    for name in ("lstm", "peephole_lstm", "sru", "minlstm"):
        assert not pays(make_call(CATALOGUE[name], None).signature.plan)


# --- other processors --------------------------------------------------------------------------


def has_wide_registers():
    return jit.target("").width == 64


@pytest.mark.skipif(not has_wide_registers(), reason="this processor has no AVX-512")
def test_the_limit_takes_the_wide_registers_away():
    text = packing.emit_pack(False)
    assert "zmm" in jit.assembly(text, "")
    assert "zmm" not in jit.assembly(text, "avx2")
    assert "ymm" in jit.assembly(text, "avx2")


@pytest.mark.skipif(not has_wide_registers(), reason="this processor has no AVX-512")
def test_narrower_registers(tmp_path):
    """Another process computes with AVX2 from its beginning; no code of this one is in it."""
    code = """
import sys, torch
from engines.cpu.test_cpu_bits import by_cpu, call_of
torch.set_num_threads(1)
arriving = torch.load(sys.argv[1], weights_only=False)
found = {name: by_cpu(call_of(name), each)[:2] for name, each in arriving.items()}
torch.save(found, sys.argv[2])
"""
    given, results = tmp_path / "arriving.pt", tmp_path / "found.pt"
    names = ["lstm", "gru_v1", "projection", "slstm", "compared"]
    torch.save({name: expected(name)[2] for name in names}, given)
    environment = {
        **os.environ,
        "CELLWRIGHT_CPU_FEATURES": "avx2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, given, results], env=environment, check=False,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = torch.load(results, weights_only=False)
    for name in names:
        assert_equal(found[name][0], expected(name)[0], f"AVX2, {name}")
        assert_equal(found[name][1], expected(name)[1], f"AVX2, {name}")


def test_the_limit_may_change_from_call_to_call(monkeypatch):
    """Code for either is linked with micro-kernels of its own."""
    call = call_of("gru")
    for limit in ("avx2", "", "avx2"):
        monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", limit)
        check(call, "gru", f"limit {limit!r}")


@pytest.mark.skipif(not has_wide_registers(), reason="this processor has no AVX-512")
def test_each_limit_has_micro_kernels_of_its_own(monkeypatch):
    places = []
    for limit in ("", "avx2", ""):
        monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", limit)
        product.provide(False)
        places.append(llvm.address_of_symbol(product.micro_name(6, 4, False)))
    assert None not in places
    assert places[0] == places[2] != places[1]


# --- twice the same ----------------------------------------------------------------------------


def moved(guards, given):
    """The same numbers at an address that only a single element is aligned to."""
    room = guards.empty(given.numel() + 1, dtype=given.dtype)
    return room[1:].view(given.shape).copy_(given)


@every_call
def test_any_address(name):
    """Nothing depends on where tensors lie, nor on what memory held."""
    call = call_of(name)
    check(call, name, "again")
    guards = Guards()
    call = replace(
        call,
        x=moved(guards, call.x),
        states=[moved(guards, each) for each in call.states],
        weights=[moved(guards, each) for each in call.weights],
    )
    results, gradients, cotangents = expected(name)
    found = by_engine(ENGINE, call, cotangents)
    assert_equal(found[0], results, "at other addresses")
    assert_equal(found[1], gradients, "at other addresses")


def test_other_bits_are_noticed():
    """The comparison itself."""
    results, _, _ = expected("gru")
    other = {name: value.clone() for name, value in results.items()}
    other["output"].view(torch.int32)[0, 0, 0] ^= 1
    with pytest.raises(AssertionError, match="output"):
        assert_equal(other, results, "one bit")
