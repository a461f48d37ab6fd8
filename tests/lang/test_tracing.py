"""Tracing: kinds and shapes follow from use, and a cell may be written anywhere."""

import builtins

import numpy as np
import pytest
import torch

import cellwright as cw
from cellwright import CellError, InputError, lang
from cellwright.ir import HIDDEN, INPUT, Matrix, Vector, topological
from cellwright.lang import layer_norm, mean, next_state, sigmoid, tanh, where


def types(spec):
    return {parameter.name: parameter.type for parameter in spec.parameters}


@cw.cell(state=("h", "c"), forget_gate="f", input_gate="i")
def with_all_kinds(x, h, c, W, U, V, R, b):
    """A cell with all kinds. Someone & Other 1999, A title: with a colon, 2nd edition.

    What sets it apart,
    in two lines.

    And a second paragraph.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    c = f * c + i * tanh(R @ (f * h))
    h = tanh(c)
    return next_state(h=h, c=c, watch={"i": i, "f": f})


def test_kinds_follow_from_use():
    assert types(with_all_kinds) == {
        "W.i": Matrix(HIDDEN, INPUT), "W.f": Matrix(HIDDEN, INPUT),
        "U.i": Matrix(HIDDEN, HIDDEN), "U.f": Matrix(HIDDEN, HIDDEN),
        "V.i": Vector(HIDDEN), "V.f": Vector(HIDDEN),
        "b.i": Vector(HIDDEN), "b.f": Vector(HIDDEN),
        "R": Matrix(HIDDEN, HIDDEN),
    }  # fmt: skip


def test_parameters_are_in_the_order_of_first_use_group_by_group():
    names = [parameter.name for parameter in with_all_kinds.parameters]
    assert names == ["W.i", "W.f", "U.i", "U.f", "V.i", "V.f", "b.i", "b.f", "R"]


def test_a_cell_tells_what_it_is():
    spec = with_all_kinds
    assert spec.name == "with_all_kinds"
    assert spec.title == "A cell with all kinds"
    assert spec.source == "Someone & Other 1999, A title: with a colon, 2nd edition"
    assert spec.year == 1999
    assert spec.notes == "What sets it apart,\nin two lines.\n\nAnd a second paragraph."
    assert [(state.name, state.size) for state in spec.states] == [("h", HIDDEN), ("c", HIDDEN)]
    assert spec.watches == ("i", "f")
    assert (spec.forget_gate, spec.input_gate) == ("f", "i")
    assert spec.output == "h"
    assert spec.size_names == ()


def test_the_decorators_arguments_come_before_the_docstring():
    @cw.cell(state="h", name="short", source="Nobody 2001", year=2002, init={"W": 0.5, "b": 2})
    def long_name(x, h, W, b):
        """Title. Somebody 1990."""
        return next_state(h=W.i @ x * b.i + h)

    assert (long_name.name, long_name.source, long_name.year) == ("short", "Nobody 2001", 2002)
    assert long_name.title == "Title"
    assert [parameter.initial for parameter in long_name.parameters] == [0.5, 2]


def test_an_initial_value_of_a_member_comes_before_its_groups():
    @cw.cell(state="h", init={"b": 1.0, "b.f": 3.0})
    def mine(x, h, W, b):
        return next_state(h=W.i @ x * b.i + b.f * h)

    assert {p.name: p.initial for p in mine.parameters} == {"W.i": None, "b.i": 1.0, "b.f": 3.0}


def test_a_cell_without_a_docstring():
    @cw.cell(state="h")
    def mine(x, h, W):
        return next_state(h=W @ x + h)

    assert (mine.title, mine.source, mine.year, mine.notes) == ("", "", None, "")


# --- sizes -------------------------------------------------------------------------------------


def test_a_projection_has_a_size_of_its_own():
    spec = cw.cells.get("lstm_projection")
    found = types(spec)
    assert spec.size_names == ("projection",)
    assert found["W.i"] == Matrix(HIDDEN, INPUT)
    assert found["U.i"] == Matrix(HIDDEN, "projection")
    assert found["P"] == Matrix("projection", HIDDEN)
    assert found["b.i"] == Vector(HIDDEN)


def test_sizes_are_inferred_backwards_too():
    @cw.cell(state={"h": "small", "c": "hidden"})
    def mine(x, h, c, W, A, B, b, k):
        lifted = A.up @ h + k  # nothing says yet how long this is
        lowered = B.down @ lifted + b  # only here: as long as h
        return next_state(h=lowered + h, c=c + lifted * (W @ x))

    found = types(mine)
    assert found["A.up"] == Matrix(HIDDEN, "small")
    assert found["B.down"] == Matrix("small", HIDDEN)
    assert (found["b"], found["k"]) == (Vector("small"), Vector(HIDDEN))
    assert found["W"] == Matrix(HIDDEN, INPUT)


def test_a_size_that_nothing_settles_is_hidden():
    @cw.cell(state={"h": "small"})
    def mine(x, h, W, A, B):
        return next_state(h=A @ tanh(B @ tanh(W @ x)) + h)

    assert types(mine)["B"] == Matrix(HIDDEN, HIDDEN)
    assert types(mine)["W"] == Matrix(HIDDEN, INPUT)
    assert types(mine)["A"] == Matrix("small", HIDDEN)


def test_single_numbers_broadcast():
    @cw.cell(state="h")
    def mine(x, h, W):
        m = mean(h)
        spread = mean((h - m) ** 2)
        return next_state(h=W @ x + where(m > spread, h, m), watch={"m": m, "spread": spread})

    assert mine.watch["m"].type == Vector("one")
    assert mine.watch["spread"].type == Vector("one")
    assert mine.next["h"].type == Vector(HIDDEN)


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("elman", {}, 5 * 3 + 5 * 5 + 5),
        ("lstm", {}, 4 * (5 * 3 + 5 * 5 + 5)),
        ("peephole_lstm", {}, 4 * (5 * 3 + 5 * 5 + 5) + 3 * 5),
        ("gru", {}, 3 * (5 * 3 + 5 * 5) + 4 * 5),
        ("indrnn", {}, 5 * 3 + 5 + 5),
        ("lstm_projection", {"projection": 2}, 4 * (5 * 3 + 5 * 2 + 5) + 2 * 5),
        ("rhn", {}, 2 * (5 * 3) + 6 * (5 * 5 + 5)),
    ],
)
def test_the_count_of_parameters(name, sizes, expected):
    spec = cw.cells.get(name)
    assert spec.num_parameters(3, 5, **sizes) == expected
    assert spec.num_parameters(input_size=3, hidden_size=5, **sizes) == expected
    layer = cw.nn.Recurrent(spec, 3, 5, sizes=sizes)
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("lstm_projection", {}, ["'projection'", "sizes="]),
        ("lstm_projection", {"projection": 0}, ["'projection'", "0"]),
        ("lstm_projection", {"projection": 2.5}, ["'projection'", "2.5"]),
        ("lstm_projection", {"projection": 2, "depth": 2}, ["'depth'", "projection"]),
        ("lstm", {"projection": 2}, ["lstm", "'projection'"]),
    ],
)
def test_sizes_that_are_missing_or_idle_are_told(name, sizes, words):
    with pytest.raises(InputError) as caught:
        cw.cells.get(name).num_parameters(3, 5, **sizes)
    for word in words:
        assert word in str(caught.value)


# --- the language ------------------------------------------------------------------------------


def test_numbers_may_stand_on_either_side():
    @cw.cell(state="h")
    def mine(x, h, W):
        h = 1 + h + 2.5
        h = 3 - (h - 0.5)
        h = 2 * h * np.float64(0.5)
        h = 1 / (h / 4)
        h = +h - -h
        return next_state(h=h + W @ x)

    h = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    expected = 1 + h + 2.5
    expected = 3 - (expected - 0.5)
    expected = 2 * expected * 0.5
    expected = 1 / (expected / 4)
    expected = 2 * expected
    layer = cw.nn.Recurrent(mine, 1, 2, dtype=torch.float64)
    y, _ = layer(torch.zeros(1, 1, 1, dtype=torch.float64), h[None])
    torch.testing.assert_close(y[0], expected, rtol=1e-15, atol=0)  # the same operations


def test_pythons_own_functions_that_act_on_whole_vectors():
    @cw.cell(state="h")
    def mine(x, h, W):
        h = sum([W.a @ x, W.b @ x, abs(h), h**2, (h**2 + 1) ** 0.5])
        return next_state(h=h)

    used = {each.op for each in topological(mine.next.values())}
    assert {"abs", "square", "sqrt"} <= used


@pytest.mark.parametrize("name", sorted(set(lang.__all__) & set(dir(builtins))))
def test_names_that_hide_builtins_are_known(name):
    assert name == "abs"


def test_equal_expressions_are_shared():
    @cw.cell(state="h")
    def mine(x, h, W, U):
        return next_state(h=tanh(W @ x + U @ h) * tanh(W @ x + U @ h))

    nodes = topological(mine.next.values())
    assert sum(each.op == "tanh" for each in nodes) == 1
    assert sum(each.op == "matvec" for each in nodes) == 2


def test_layer_norm_of_one_and_of_several():
    @cw.cell(state=("h", "c"))
    def mine(x, h, c, W):
        alone = layer_norm(h)
        first, second = layer_norm(h, c, eps=1e-3)
        return next_state(h=alone + W @ x, c=first + second)

    eps = sorted(
        n.attribute("eps") for n in topological(mine.next.values()) if n.op == "layer_norm"
    )
    assert eps == [1e-5, 1e-3, 1e-3]


def test_a_state_that_stays_and_one_that_is_not_read():
    @cw.cell(state=("h", "c"))
    def mine(x, h, c, W):
        return next_state(h=tanh(W @ x), c=c)

    x = torch.randn(3, 2, 4)
    state = (torch.randn(1, 2, 5), torch.randn(1, 2, 5))
    y, after = cw.nn.Recurrent(mine, 4, 5)(x, state)
    assert torch.equal(after.c, state[1])
    assert torch.equal(y[-1], after.h[0])


# --- where a cell may be written ---------------------------------------------------------------

NOTEBOOK = '''
import cellwright as cw
from cellwright import sigmoid, tanh

@cw.cell(state=("h", "c"))
def peephole_lstm(x, h, c, W, U, V, b):
    """LSTM with peepholes. Gers & Schmidhuber 2000."""
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = f * c + i * g
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = o * tanh(c)
    return cw.next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))
'''


@pytest.mark.parametrize("namespace", [{}, {"__name__": "__main__"}, {"__name__": "gone"}])
def test_a_cell_in_a_notebook(namespace):
    exec(compile(NOTEBOOK, "<ipython-input-1>", "exec"), namespace)
    spec = namespace["peephole_lstm"]
    assert spec.equations() == cw.cells.get("peephole_lstm").equations()
    assert spec.fingerprint == cw.cells.get("peephole_lstm").fingerprint
    layer = cw.nn.Recurrent(spec, 3, 4)
    y, state = layer(torch.randn(5, 2, 3))
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert state.c.shape == (1, 2, 4)


def test_a_cell_made_in_a_function():
    def make(gates, squash):
        @cw.cell(state="h", name=f"sum_of_{gates}")
        def inner(x, h, W, U):
            total = 0
            for index in range(gates):
                member = f"g{index}"
                total = total + squash(getattr(W, member) @ x + getattr(U, member) @ h)
            return next_state(h=total / gates)

        return inner

    two, three = make(2, tanh), make(3, sigmoid)
    assert (two.name, len(two.parameters)) == ("sum_of_2", 4)
    assert (three.name, len(three.parameters)) == ("sum_of_3", 6)
    y, _ = cw.nn.Recurrent(three, 2, 3)(torch.zeros(1, 1, 2))
    # sigmoid(0 + 0) is 1 / 2 exactly, and so is the mean of three of them to rounding.
    torch.testing.assert_close(y, torch.full((1, 1, 3), 0.5), rtol=1e-6, atol=0)


def test_a_lambda_and_a_method():
    squared = cw.cell(state="h", name="squared")(lambda x, h, W: next_state(h=(W @ x) ** 2 + h))
    assert squared.equations() == "h[t] = square(W @ x[t]) + h[t-1]"

    class Cells:
        @staticmethod
        @cw.cell(state="h")
        def inside(x, h, W):
            return next_state(h=W @ x + h)

    assert Cells.inside.name == "inside"


def test_a_helper_may_hold_part_of_the_equations():
    def gate(W, U, b, member, x, h):
        return sigmoid(getattr(W, member) @ x + getattr(U, member) @ h + getattr(b, member))

    @cw.cell(state="h")
    def mine(x, h, W, U, b):
        z = gate(W, U, b, "z", x, h)
        return next_state(h=z * h + (1 - z) * tanh(W.n @ x + U.n @ h + b.n))

    ugrnn = cw.cells.get("ugrnn")
    assert types(mine) == types(ugrnn)


def test_tracing_runs_the_function_once():
    calls = []

    @cw.cell(state="h")
    def mine(x, h, W):
        calls.append(1)
        return next_state(h=W @ x + h)

    layer = cw.nn.Recurrent(mine, 2, 3)
    layer(torch.zeros(4, 1, 2))
    layer(torch.zeros(5, 1, 2), trace=True)
    mine.equations()
    assert calls == [1]


def test_a_decorated_cell_cannot_be_decorated_again():
    with pytest.raises((CellError, AttributeError, TypeError)):
        cw.cell(state="h")(with_all_kinds)


def test_a_cell_can_be_made_under_a_profiler():
    import cProfile

    with cProfile.Profile() as profiler:
        traced = cw.cell(state=("h",))(plain)
        sorted([1])
    assert traced.name == "plain"
    profiler.create_stats()
    # The profiler has gone on to what came after the cell.
    assert any("sorted" in name for _, _, name in profiler.stats)


def plain(x, h, W, U):
    """Plain. Nobody 2000."""
    h = tanh(W.h @ x + U.h @ h)
    return next_state(h=h)
