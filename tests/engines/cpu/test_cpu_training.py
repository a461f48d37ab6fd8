"""Training calls that come again: written down once, with the bits of the ordinary passes."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import cellwright as cw
from cellwright.engines import direct

T, B, I, H = 9, 3, 5, 7
KINDS = {
    "LSTM": lambda: cw.nn.LSTM(I, H),
    "GRU": lambda: cw.nn.GRU(I, H, batch_first=True),
    "projected": lambda: cw.nn.LSTM(I, H, proj_size=2, bias=False),
    "learnt": lambda: cw.nn.Recurrent("peephole_lstm", I, H, learn_initial_state=True),
    "reset before": lambda: cw.nn.Recurrent("gru_v1", I, H),
    "two layers": lambda: cw.nn.Recurrent("slstm", I, H, num_layers=2, dtype=torch.float64),
    "normalised": lambda: cw.nn.Recurrent("layer_norm_lstm", I, H),
    "blocks": lambda: cw.nn.Recurrent("lstm", I, 8, heads=2),
}
NOT_READY = {"blocks"}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def layer():
    return cw.nn.Recurrent("peephole_lstm", I, H)


def sequence(layer, steps=T):
    dtype = next(layer.parameters()).dtype
    return torch.randn(steps, B, I, dtype=dtype, requires_grad=True)


def flat(result):
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def loss(results):
    return sum((each * each.detach().cos()).sum() for each in results)


def gradients(layer, x, results, **options):
    wanted = [x, *(each for each in layer.parameters() if each.requires_grad)]
    return torch.autograd.grad(loss(results), wanted, allow_unused=True, **options)


def everything(layer, x, *states):
    """Results, and gradients of x, parameters and the given states."""
    state = states[0] if len(states) == 1 else states
    results = flat(layer(x, state) if states else layer(x))
    first = torch.autograd.grad(loss(results), states, retain_graph=True) if states else ()
    return [*results, *gradients(layer, x, results), *first]


def ordinary(monkeypatch, run):
    """What the ordinary passes give."""
    with monkeypatch.context() as patch:
        patch.setattr(direct, "are_stored", lambda: True)
        return run()


def check_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def is_again(y):
    """Whether the passes behind an output are written down."""
    seen, left = set(), [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [each for each, _ in node.next_functions]
    return any("Again" in node.name() for node in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_of_the_ordinary_passes(kind, monkeypatch):
    layer = KINDS[kind]()
    for _ in range(3):
        x = sequence(layer)
        state = [each.detach().requires_grad_() for each in flat(layer(sequence(layer)))[1:]]
        for given in ((x,), (x, *state)):
            expected = ordinary(monkeypatch, lambda given=given: everything(layer, *given))
            check_same(everything(layer, *given), expected)
        with torch.no_grad():
            for each in layer.parameters():
                each.mul_(0.9)
    assert is_again(layer(x)[0]) == (kind not in NOT_READY)


def test_spans_are_written_down_too(monkeypatch):
    layer, x = cw.nn.LSTM(8, 96), torch.randn(90, 80, 8, requires_grad=True)
    expected = ordinary(monkeypatch, lambda: everything(layer, x))
    for _ in range(3):
        check_same(everything(layer, x), expected)
    assert is_again(layer(x)[0])


def test_calls_may_be_nested(layer, monkeypatch):
    inputs = [sequence(layer) for _ in range(4)]
    expected = ordinary(monkeypatch, lambda: [everything(layer, x) for x in inputs])
    results = [flat(layer(x)) for x in inputs]
    for number in (2, 0, 3, 1):
        found = gradients(layer, inputs[number], results[number], retain_graph=True)
        check_same(found, expected[number][3:])
        check_same(gradients(layer, inputs[number], results[number]), expected[number][3:])
    assert is_again(results[-1][0])


def test_second_derivatives_and_hooks_are_those_of_the_ordinary_passes(layer, monkeypatch):
    def run():
        x = sequence(layer)
        seen = []
        results = flat(layer(x))
        results[0].register_hook(lambda gradient: seen.append(gradient) or 2 * gradient)
        first = gradients(layer, x, results, create_graph=True)
        return is_again(results[0]), [*seen, *torch.autograd.grad(loss(first), [x])]

    x = sequence(layer)
    for _ in range(2):
        layer(x)
    state = torch.get_rng_state()
    again, found = run()
    torch.set_rng_state(state)
    _, expected = ordinary(monkeypatch, run)
    assert again
    check_same(found, expected)


@pytest.mark.parametrize("frozen", ["weights", "x", "some"])
def test_what_is_frozen_gets_no_gradient(frozen, layer):
    weights = [*layer.parameters()]
    x = sequence(layer)
    expected = {
        id(each): g for each, g in zip([x, *weights], everything(layer, x)[3:], strict=True)
    }
    for each in {"weights": weights, "x": [x], "some": weights[:1]}[frozen]:
        each.requires_grad_(False)
    for _ in range(3):
        results = flat(layer(x))
        wanted = [each for each in (x, *weights) if each.requires_grad]
        found = torch.autograd.grad(loss(results), wanted)
        check_same(found, [expected[id(each)] for each in wanted])
    assert is_again(results[0])


def test_another_thread_or_number_of_threads_may_go_back(layer, monkeypatch):
    x = sequence(layer)
    expected = ordinary(monkeypatch, lambda: everything(layer, x))[3:]
    found, threads = [], torch.get_num_threads()
    for _ in range(3):
        results = flat(layer(x))
        other = threading.Thread(target=lambda r=results: found.append(gradients(layer, x, r)))
        other.start()
        other.join()
    try:
        results = flat(layer(x))
        torch.set_num_threads(3 - min(threads, 2))
        found.append(gradients(layer, x, results))
    finally:
        torch.set_num_threads(threads)
    for each in found:
        check_same(each, expected)
    assert len(found) == 4
    assert is_again(results[0])


def test_longer_calls_in_between_take_their_own_memory(layer, monkeypatch):
    x, longer = sequence(layer), sequence(layer, 500)
    expected = ordinary(monkeypatch, lambda: everything(layer, x))
    for _ in range(2):
        everything(layer, x)
    results = flat(layer(x))
    for _ in range(3):
        everything(layer, longer)
    check_same(gradients(layer, x, results), expected[3:])
    check_same(everything(layer, x), expected)


def test_checkpointed_calls_count_what_is_saved(layer, monkeypatch):
    x = sequence(layer)
    expected = ordinary(monkeypatch, lambda: everything(layer, x))
    for _ in range(4):
        results = checkpoint(lambda: flat(layer(x)), use_reentrant=False)
        check_same(gradients(layer, x, results), expected[3:])
        layer(x)
