"""The layers of a stack side by side: the bits are those of one layer after the other."""

from dataclasses import replace

import pytest
import torch
from engines.cases import draw_cotangents, gradients_of, make_call, options_for, results_of
from engines.cpu.cpu_cases import ENGINE, assert_equal, by_engine, cast, guarded
from engines.cpu.test_cpu_lanes import LAYERS, trained
from engines.cpu.test_cpu_layers import make, randn, train
from engines.cpu.test_cpu_save import CALLS, CELLS, SHAPE, in_spans
from engines.cpu.test_cpu_threads import FORK, START, in_a_process, needs_fork, together

import cellwright as cw
from cellwright.engines.cpu import fronts, threads, wavefront
from cellwright.engines.cpu.schedule import WAITS, Work, schedule
from cellwright.plan import SAVES

SOME = (
    "lstm, everything", "gru_v1", "projection", "norm", "slstm", "no matrix in the loop",
    "a matrix before the loop", "bf16, a stage more", "of parameters",
)  # fmt: skip

# Layers of the same sizes are compiled once.
ALIKE = replace(SHAPE, inputs=SHAPE.hidden)


def stack_of(name, layers=2, save="gates", shape=ALIKE, more=0):
    """Calls of a stack, with their x; each layer has so many more units than the one below."""
    cell, option, dtype = CALLS[name]
    options = replace(options_for(CELLS[cell])[option], save=save)
    calls = [cast(make_call(CELLS[cell], options, shape), dtype)]
    for number in range(1, layers):
        x = ENGINE.forward(calls[-1], keep=False).output
        shape = replace(shape, inputs=x.shape[-1], hidden=shape.hidden + more)
        above = cast(make_call(CELLS[cell], options, shape, seed=number), dtype)
        calls.append(replace(above, x=x))
    return calls


def check(calls, *, keep=True):
    """Results and gradients of a stack against those of each layer by itself."""
    with guarded() as guards:
        copied = [
            replace(
                call,
                x=guards.copy(call.x) if number == 0 else call.x.new_empty(()).expand_as(call.x),
                states=[*map(guards.copy, call.states)],
                weights=[*map(guards.copy, call.weights)],
                streams=[*map(guards.copy, call.streams)],
            )
            for number, call in enumerate(calls)
        ]
        found = wavefront.forward(copied, keep=keep)
        cotangents = [draw_cotangents(each) for each in found]
        if keep:
            kept = [each.kept for each in found]
            copied = [replace(a, x=guards.copy(b.x)) for a, b in zip(copied, calls, strict=True)]
            gradients = wavefront.backward(copied, kept, cotangents, need_x=True)
    arriving = cotangents[-1].output
    for number in reversed(range(len(calls))):
        call, given = calls[number], replace(cotangents[number], output=arriving)
        results, expected, _ = by_engine(ENGINE, call, given)
        assert_equal(results_of(found[number], call), results, f"layer {number}")
        if keep:
            each = gradients[number]
            named = gradients_of(each.x, each.states, each.weights, call)
            assert_equal(named, expected, f"layer {number}")
            arriving = expected["d x"]


@pytest.mark.parametrize("name", SOME)
def test_the_bits_are_those_of_one_layer_after_the_other(name, monkeypatch):
    ways = [(1000, 2, 2), (6, 4, 2), (1, 2, 1)]
    for save, (rows, piece, team) in zip(SAVES, ways, strict=True):
        in_spans(monkeypatch, rows)
        monkeypatch.setattr(wavefront, "piece_of", lambda steps, piece=piece: piece)
        torch.set_num_threads(team)
        check(stack_of(name, save=save))


def test_layers_of_unlike_sizes(monkeypatch):
    monkeypatch.setattr(wavefront, "piece_of", lambda steps: 4)
    torch.set_num_threads(2)
    check(stack_of("lstm", shape=SHAPE, more=3))


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_any_number_of_steps(steps, monkeypatch):
    monkeypatch.setattr(wavefront, "piece_of", lambda steps: 2)
    torch.set_num_threads(2)
    check(stack_of("lstm, everything", shape=replace(ALIKE, steps=steps)))


@pytest.mark.parametrize(("layers", "team"), [(3, 2), (5, 3)])
def test_more_layers_than_threads(layers, team, monkeypatch):
    monkeypatch.setattr(wavefront, "piece_of", lambda steps: 2)
    torch.set_num_threads(team)
    check(stack_of("lstm", layers))


def test_without_keeping_anything(monkeypatch):
    monkeypatch.setattr(wavefront, "piece_of", lambda steps: 2)
    torch.set_num_threads(2)
    for rows in (6, 1000):
        in_spans(monkeypatch, rows)
        for name in ("gru_v1", "projection", "slstm"):
            check(stack_of(name), keep=False)


def test_another_number_of_threads_than_planned_for(monkeypatch):
    """The first thread then does everything."""
    monkeypatch.setattr(wavefront, "piece_of", lambda steps: 2)
    torch.set_num_threads(4)
    calls = stack_of("lstm", 4)
    for given in (1, 2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(threads, "count", lambda given=given: given)
            patch.setattr(wavefront, "fronts", lambda parts, team: fronts.fronts(parts, 4))
            check(calls)


# Who does what ------------------------------------------------------------------------------------

STACKS = {
    "alike": [Work(1, 6, 2, 1, (0, 4, 8))] * 2,
    "three": [Work(2, 9, 2, 2, (0, 4, 8))] * 3,
    "nothing around": [Work(0, 5, 1, 0, (0, 4, 0))] * 4,
    "unlike": [Work(1, 7, 1, 0, (0, 1, 0)), Work(0, 7, 2, 3, (3, 4, 40))],
    "alone": [Work(1, 3, 2, 1, (1, 1, 1))],
}


@pytest.mark.parametrize("team", [1, 2, 3])
@pytest.mark.parametrize("name", STACKS)
def test_everything_is_done_once_and_nobody_waits_for_ever(name, team):
    layers = tuple(STACKS[name])
    made = schedule(layers, team)
    total = sum(sum(work.jobs) for work in layers)
    *shares, (first, end) = zip(made.begins[:-1], made.begins[1:], strict=True)
    assert sorted(made.tasks[first:end]) == list(range(total))
    assert sorted(made.tasks[: shares[-1][1]]) == list(range(total))
    in_a_row = [*range(first, end)]
    for order in ([in_a_row], [[*range(*share)] for share in shares]):
        done, numbers = 0, [0] * len(layers)
        left = [[dict(zip(WAITS, made.waits[k], strict=True)) for k in each] for each in order]
        while any(left):
            able = [
                each
                for each in left
                if each
                and numbers[each[0]["below"]] >= each[0]["needs_below"]
                and numbers[each[0]["own"]] >= each[0]["needs_own"]
            ]
            assert able, "all threads wait"
            entry = able[-1].pop(0)
            numbers[entry["own"]] = entry["done"]
            done += 1
        assert done == total
    pieces = layers[0].pieces
    assert all(number >= pieces + 1 for number in numbers)


def test_two_layers_have_a_thread_each():
    made = schedule(tuple(STACKS["alike"]), 2)
    own = made.waits[:, WAITS.index("own")]
    one, other = ({*own[a:b]} for a, b in zip(made.begins[:2], made.begins[1:3], strict=True))
    assert [one, other] == [{0}, {1}]


def test_three_layers_are_shared_out_evenly():
    made = schedule(tuple(STACKS["three"]), 2)
    one, other, _ = (b - a for a, b in zip(made.begins[:-1], made.begins[1:], strict=True))
    assert abs(one - other) <= 0.1 * (one + other)


# Of a layer ---------------------------------------------------------------------------------------


@pytest.fixture
def ways(monkeypatch):
    """Let every stack go this way or that, and tell how many layers went side by side."""
    seen = []
    original = wavefront.forward

    def forward(calls, *, keep):
        seen.append(len(calls))
        return original(calls, keep=keep)

    monkeypatch.setattr(wavefront, "forward", forward)
    monkeypatch.setattr(wavefront, "piece_of", lambda steps: 4)

    def go(beside):
        monkeypatch.setattr(wavefront, "are_faster", lambda *_, **how: beside)
        return seen

    return go


SAVED = ("normalised", "checkpoints", "learnt")
STACKED = {name: options for name, options in LAYERS.items() if name in SAVED} | {
    "recurrent dropout": {"cell": "lstm", "recurrent_dropout": 0.2, "gradient": "truncated"},
    "bf16": {"cell": "gru", "precision": "bf16"},
    "projection": {"cell": "lstm_projection", "sizes": {"projection": 7}},
}


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_has_the_same_bits_either_way(name, ways):
    torch.set_num_threads(2)
    torch.manual_seed(1)
    layer = cw.nn.Recurrent(input_size=18, hidden_size=18, **STACKED[name] | {"num_layers": 3})
    x = torch.randn(9, 4, 18)
    given = {}
    if name not in ("bf16", "projection"):
        lengths, reset = torch.tensor([9, 0, 3, 7]), torch.rand(9, 4) < 0.2
        given = {"lengths": lengths, "reset": reset, "trace": True}
    ways(False)
    expected = trained(layer, x, **given)
    seen = ways(True)
    assert not seen
    assert_equal(*(dict(enumerate(each)) for each in (trained(layer, x, **given), expected)), name)
    assert seen == [3]
    with torch.no_grad():
        layer.eval()
        y = layer(x, **given)[0]
        ways(False)
        assert torch.equal(layer(x, **given)[0], y)


@pytest.mark.parametrize("cell", ["lstm", "gru_v1"])
def test_against_the_reference_engine(cell, ways):
    torch.set_num_threads(2)
    layer = make(cell, num_layers=3)
    x = randn(11, 2, layer.input_size)
    seen = ways(True)
    found = train(layer, x, lengths=torch.tensor([11, 6]), trace=True)
    assert seen == [3]
    expected = train(layer, x, engine="reference", lengths=torch.tensor([11, 6]), trace=True)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # Sums in another order: 1e-16 each, three layers of eleven steps deep.
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-10, msg=name)


def test_packed_sequences(ways):
    torch.set_num_threads(2)
    layer = make("gru", num_layers=2)
    packed = torch.nn.utils.rnn.pack_sequence([randn(9, layer.input_size), randn(4, 4)])
    ways(False)
    expected, after = layer(packed)
    seen = ways(True)
    found, state = layer(packed)
    assert seen == [2]
    assert torch.equal(found.data, expected.data)
    assert torch.equal(state.h, after.h)


def test_second_derivatives(ways):
    layer = cw.nn.Recurrent("elman", 3, 3, num_layers=2, dtype=torch.float64)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    ways(True)

    def run(x, weight):
        return torch.func.functional_call(layer, {"U_l0": weight}, x)[0]

    weight = layer.U_l0.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(run, (x, weight))


@pytest.mark.parametrize("frozen", ["nothing", "the first", "the last", "all"])
@pytest.mark.parametrize("of_x", [False, True])
def test_gradients_of_some_tensors(frozen, of_x, ways):
    torch.manual_seed(2)
    layer, x = cw.nn.LSTM(3, 4, num_layers=3), torch.randn(9, 2, 3)
    for name, each in layer.named_parameters():
        still = {"nothing": "-", "the first": "_l0", "the last": "_l2", "all": "_l"}[frozen]
        each.requires_grad_(still not in name)
    if frozen == "all" and not of_x:
        assert not layer(x)[0].requires_grad
        return
    found = []
    for beside in (False, True):
        seen = ways(beside)
        layer.zero_grad()
        turned = x.clone().requires_grad_(of_x)
        layer(turned)[0].square().sum().backward()
        grads = {"x": turned.grad} | {name: p.grad for name, p in layer.named_parameters()}
        found.append({name: each for name, each in grads.items() if each is not None})
    assert seen == [3]
    assert_equal(*found, frozen)


def test_dropout_between_layers_is_applied_in_turn(ways):
    layer = cw.nn.LSTM(8, 64, num_layers=2, dropout=0.5)
    x = torch.randn(100, 1, 8)
    seen = ways(True)
    layer(x)
    assert not seen
    assert "because of the dropout between them" in cw.explain(layer, x).reason
    layer.eval()(x)
    assert seen == [2]


def test_callers_at_the_same_time(ways):
    torch.set_num_threads(2)
    layer = make("lstm", hidden_size=33, num_layers=2)
    inputs = [randn(12, 3 + number, layer.input_size, seed=number) for number in range(4)]

    def forward_and_back(number):
        torch.set_num_threads(2)
        x = inputs[number].clone().requires_grad_()
        y, state = layer(x)
        (d_x,) = torch.autograd.grad(y.square().sum() + state.c.sum(), [x])
        with torch.no_grad():
            assert torch.equal(layer(x)[0], y)
        return y.detach(), d_x

    ways(False)
    expected = [forward_and_back(number) for number in range(4)]
    seen = ways(True)
    found = together(4, lambda number: [forward_and_back(number) for _ in range(4)])
    assert len(seen) == 32
    for number, results in enumerate(found):
        for result in results:
            assert all(map(torch.equal, result, expected[number]))


def test_stacks_of_other_extents_do_not_pile_up(ways, monkeypatch):
    monkeypatch.setattr(fronts, "KINDS", 3)
    ways(True)
    layer = make("gru", num_layers=2)
    for steps in range(5, 12):
        layer(randn(steps, 2, layer.input_size))
        assert len(fronts._known.fronts) <= 3


@needs_fork
def test_forked_children():
    stacked = START.replace(", 160)", ", 64, num_layers=2)").replace("(20, 32,", "(1000, 1,")
    check_ = """
assert "layers run at the same time" in cw.explain(layer, x).reason
"""
    assert in_a_process(stacked + check_ + FORK) == ["forked"]


# Which way is taken -------------------------------------------------------------------------------


def test_the_way_follows_from_the_shapes():
    def beside(steps, rows, hidden, layers=2, keep=False):
        layer = cw.nn.LSTM(8, hidden, num_layers=layers)
        signatures = [
            layer.signature(number, lengths=False, reset=False, trace=False)
            for number in range(layers)
        ]
        return wavefront.are_faster(signatures, torch.empty(steps, rows, 8), keep=keep)

    torch.set_num_threads(2)
    assert beside(100, 1, 64)
    assert beside(100, 1, 128, layers=3)
    assert not beside(5, 1, 64)  # done before another thread has begun
    assert not beside(100, 1, 64, keep=True)  # ready training calls have less around them
    assert beside(1000, 1, 64, keep=True)
    assert beside(100, 8, 128, layers=3)  # few rows are shared out
    assert not beside(100, 16, 128)  # many are
    assert beside(100, 1, 180)  # units are
    assert not beside(100, 1, 256)  # a large layer would go from thread to thread
    torch.set_num_threads(4)
    assert beside(100, 1, 64)
    assert not beside(100, 16, 128)  # two layers would leave two threads idle
    torch.set_num_threads(1)
    assert not beside(100, 1, 64)


@torch.no_grad()
def test_explain_tells():
    torch.set_num_threads(2)
    layer = cw.nn.LSTM(8, 64, num_layers=2)
    text = "the layers run at the same time"
    assert text in cw.explain(layer, torch.randn(100, 1, 8)).reason
    assert text not in cw.explain(layer, torch.randn(100, 64, 8)).reason
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(100, 8)])
    assert text in cw.explain(layer, packed).reason
    assert text not in cw.explain(cw.nn.LSTM(8, 64), torch.randn(100, 1, 8)).reason
    with cw.engine("reference"):
        assert text not in cw.explain(layer, torch.randn(100, 1, 8)).reason
