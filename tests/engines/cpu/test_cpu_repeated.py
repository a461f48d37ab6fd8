"""Calls that come again run with arguments that were made ready: the same bits, nothing shared."""

import threading

import pytest
import torch
from engines.cpu.test_cpu_bits import Launches

import cellwright as cw
from cellwright.engines.cpu import lanes, repeated, rivals, sharing, wavefront


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def is_ready():
    return sum(each is not None for each in repeated._ready.runs.values())


def outputs(result):
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


CELLS = ("elman", "lstm", "gru", "gru_v1", "layer_norm_lstm", "sru", "indrnn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (7, 1, 5, 33), (4, 9, 20, 64)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_are_those_of_the_first_call(cell, sizes, dtype):
    steps, batch, inputs, hidden = sizes
    layer = cw.nn.Recurrent(cell, inputs, hidden, bidirectional=True, dtype=dtype)
    x, other = torch.randn(2, steps, batch, inputs, dtype=dtype)
    with torch.no_grad():
        first = outputs(layer(x))
        kept = [each.clone() for each in first]
        for _ in range(3):
            layer(other)
            assert is_ready() in (0, 2)  # both directions, if the cell can be
            assert all(map(torch.equal, outputs(layer(x)), kept))
    assert all(map(torch.equal, first, kept))  # nobody wrote into an earlier result
    assert all(map(torch.equal, outputs(layer(x)), kept))  # with a gradient


def test_only_what_comes_twice_in_a_row_is_made_ready():
    layer = cw.nn.LSTM(3, 4)
    with torch.no_grad():
        for steps in (5, 6, 5, 6):
            layer(torch.randn(steps, 2, 3))
        assert not is_ready()
        layer(torch.randn(6, 2, 3))
        assert is_ready() == 1


def test_changes_of_weights_are_seen_even_behind_the_back_of_torch():
    layer, twin = cw.nn.LSTM(3, 4), torch.nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        assert is_ready()
        for weight in layer.parameters():
            weight.data.mul_(0.5)
        layer.weight_hh_l0.data = layer.weight_hh_l0.data.clone() + 0.25
        twin.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x)[0], twin(x)[0])


def test_states_and_layouts_of_any_kind():
    layer = cw.nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    state = tuple(torch.randn(1, 2, 8)[..., ::2] for _ in range(2))
    with torch.no_grad():
        expected = [each.clone() for each in (layer(x, state)[0], layer(x)[0])]
        for _ in range(3):
            assert torch.equal(layer(x, state)[0], expected[0])
            assert torch.equal(layer(x)[0], expected[1])


def test_kinds_of_calls_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(repeated, "CALLS", 3)
    layer = cw.nn.GRU(2, 3)
    with torch.no_grad():
        for steps in range(1, 9):
            x = torch.randn(steps, 1, 2)
            expected = layer(x)[0]
            for _ in range(2):
                assert torch.equal(layer(x)[0], expected)
    assert len(repeated._ready.runs) <= 3


@pytest.mark.parametrize("team", [1, 2])
def test_several_threads_of_python(team):
    torch.set_num_threads(team)
    layer = cw.nn.LSTM(40, 200)
    inputs = [torch.randn(6, 1, 40) for _ in range(4)]
    expected = [layer(x)[0].detach() for x in inputs]
    wrong = []

    def work(number):
        torch.set_num_threads(team)
        with torch.no_grad():
            for _ in range(30):
                if not torch.equal(layer(inputs[number])[0], expected[number]):
                    wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert not wrong


def test_both_directions_start_together(monkeypatch):
    monkeypatch.setattr(lanes, "are_faster", lambda *_, **how: True)
    torch.set_num_threads(2)
    layer = cw.nn.LSTM(5, 18, bidirectional=True)
    x, other = torch.randn(2, 9, 4, 5)
    with torch.no_grad():
        first = [each.clone() for each in outputs(layer(x))]
        layer(x)
        assert is_ready() == 1
        launches = Launches(monkeypatch)
        for _ in range(3):
            layer(other)
            assert all(map(torch.equal, outputs(layer(x)), first))
        assert not launches.seen, "all of it is prepared"
        layer.weight_hh_l0_reverse.mul_(0.5)
        forwards, backwards = layer(x)[0].split(18, -1)
        assert torch.equal(forwards, first[0][..., :18])
        assert not torch.equal(backwards, first[0][..., 18:])
        torch.set_num_threads(1)
        assert torch.equal(layer(x)[0][..., :18], forwards)


@pytest.mark.parametrize("cell", ["lstm", "gru_v1", "elman"])
def test_layers_of_a_stack_start_together(cell, monkeypatch):
    monkeypatch.setattr(wavefront, "are_faster", lambda *_, **how: True)
    torch.set_num_threads(2)
    layer = cw.nn.Recurrent(cell, 5, 18, num_layers=3)
    x, other = torch.randn(2, 21, 2, 5)
    with torch.no_grad():
        first = [each.clone() for each in outputs(layer(x))]
        layer(x)
        assert is_ready() == 1
        launches = Launches(monkeypatch)
        kept = outputs(layer(x))
        for _ in range(3):
            layer(other)
            assert all(map(torch.equal, outputs(layer(x)), first))
        assert all(map(torch.equal, kept, first))  # nobody wrote into an earlier result
        assert not launches.seen, "all of it is prepared"
        layer.U_l1.mul_(0.5)
        changed = layer(x)[0]
        assert not torch.equal(changed, first[0])
        torch.set_num_threads(1)
        assert torch.equal(layer(x)[0], changed)
        monkeypatch.setattr(wavefront, "are_faster", lambda *_, **how: False)
        assert torch.equal(layer(x)[0], changed)


@pytest.mark.parametrize("cell", ["lstm", "layer_norm_lstm"])
def test_one_thread_and_several_take_turns_where_either_may_be_faster(cell, monkeypatch):
    for limit in ("CLOSE_FROM", "CLOSE_ALONE_BELOW"):
        monkeypatch.setattr(sharing, limit, 0)
    torch.set_num_threads(2)
    with torch.no_grad():
        layer, x = cw.nn.Recurrent(cell, 5, 40), torch.randn(6, 1, 5)
        first = outputs(layer(x))
        layer(x)
        taken, choose = set(), rivals.Rivals.choose
        monkeypatch.setattr(
            rivals.Rivals, "choose", lambda self: taken.add(way := choose(self)) or way
        )
        assert all(all(map(torch.equal, outputs(layer(x)), first)) for _ in range(rivals.TRIALS))
        assert taken == {0, 1}


def test_the_faster_way_is_taken():
    times, found = [3.0, 1.0], rivals.Rivals()

    def share_of_first():
        taken = []
        for _ in range(10 * rivals.AGAIN):
            taken.append(found.choose())
            found.note(taken[-1], times[taken[-1]])
        return taken.count(0) / len(taken)

    assert share_of_first() < 0.1
    times[1] = 9.0
    for _ in range(8):
        found.note(found.choose(), 9.0)
    assert share_of_first() > 0.9
    times[1] = 1.0
    share_of_first()
    assert share_of_first() < 0.1
