"""Equations as text and LaTeX: what is printed is what is computed."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from lang.programs import TENSORS, cell_of, ends, groups_of, perform, programs, weights_of

import cellwright as cw
from cellwright.lang import layer_norm, mean, next_state, sigmoid, square, tanh, where

B, SIZES = 2, {"input": 3, "hidden": 4, "projection": 2, "one": 1}


class Names(dict):
    """The values of a step by name: ``c[t]``, ``c[t - 1]``; new names appear when written to."""

    def __missing__(self, name):
        if hasattr(TENSORS, name):
            raise KeyError(name)
        return self.setdefault(name, {})


def computed_from_text(spec, weights, x, states):
    """Run the printed equations of one step as a Python program."""
    names = Names(t=1, x={1: x}, **groups_of(spec, weights))
    names |= {name: {0: value} for name, value in states.items()}
    lefts = []
    for line in spec.equations().splitlines():
        left = line.split(" = ")[0]
        assert left not in lefts, f"{left} is defined twice:\n{spec.equations()}"
        lefts.append(left)
        exec(line, dict(vars(TENSORS)), names)
    return {state.name: names[state.name][1] for state in spec.states}


def run_one_step(spec, weights, x, states):
    """The same step by a layer."""
    sizes = {name: SIZES[name] for name in spec.size_names}
    layer = cw.nn.Recurrent(spec, x.shape[1], SIZES["hidden"], sizes=sizes, dtype=torch.float64)
    with torch.no_grad():
        for name, value in weights.items():
            layer.parameter(name).copy_(value)
    _, after = layer(x[None], {name: value[None] for name, value in states.items()})
    return {state.name: getattr(after, state.name)[0].detach() for state in spec.states}


def draw(spec, seed=0):
    """Weights, input and states for a cell."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, SIZES["input"], generator=generator, dtype=torch.float64)
    states = {
        state.name: torch.rand(B, SIZES[state.size], generator=generator, dtype=torch.float64) + 0.1
        for state in spec.states
    }
    return weights_of(spec, SIZES, seed), x, states


@pytest.mark.parametrize("name", cw.cells.names())
def test_the_printed_equations_are_what_a_layer_computes(name):
    spec = cw.cells.get(name)
    weights, x, states = draw(spec)
    expected = run_one_step(spec, weights, x, states)
    found = computed_from_text(spec, weights, x, states)
    for state in expected:
        # Another order of sums: a few units in the last place of numbers of order 1.
        torch.testing.assert_close(found[state], expected[state], rtol=1e-12, atol=1e-13)


@settings(max_examples=60)
@given(programs())
def test_brackets_are_where_they_have_to_be(program):
    spec = cell_of(program)
    weights, x, states = draw(spec)
    groups = groups_of(spec, weights)
    values = perform(program, TENSORS, x, states["h"], states["c"], **groups)
    h, c = ends(TENSORS, values)
    found = computed_from_text(spec, weights, x, states)
    # The same operations in the same order, but for the order of products with constants.
    torch.testing.assert_close(found["h"], h, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["c"], c, rtol=1e-11, atol=1e-12)


@settings(max_examples=60)
@given(programs())
def test_latex_is_balanced(program):
    check_latex(cell_of(program))


@pytest.mark.parametrize("name", cw.cells.names())
def test_latex_of_the_catalogue_is_balanced(name):
    check_latex(cw.cells.get(name))


def check_latex(spec):
    text = spec.latex()
    lines = text.splitlines()
    assert lines[0] == r"\begin{aligned}"
    assert lines[-1] == r"\end{aligned}"
    rows = lines[1:-1]
    assert len(rows) == len(spec.equations().splitlines())
    for row in rows:
        assert row.count("&=") == 1
        bare = row.replace(r"\{", "").replace(r"\}", "")
        depth = 0
        for letter in bare:
            depth += {"{": 1, "}": -1}.get(letter, 0)
            assert depth >= 0
        assert depth == 0
        assert row.count(r"\left") == row.count(r"\right")
        assert "@" not in row
        assert "*" not in row
    assert all(row.endswith(r" \\") for row in rows[:-1])


def test_text_of_a_cell_with_all_that_may_be_written():
    @cw.cell(state=("h", "c"))
    def mine(x, h, c, W, U, k, b):
        alpha = sigmoid(k)
        a = W.a @ x - (U.a @ h - b.a)
        c = -(c * (a + 1)) / (2 - alpha) / square(c)
        s = mean(c)
        n, m = layer_norm(c, h)
        h = where(c > s, n, 0.5 * m) + tanh(U.z @ (h * alpha)) * 1e-05
        return next_state(h=h, c=c)

    assert mine.equations() == "\n".join(
        [
            "alpha[t] = sigmoid(k)",
            "a[t] = W.a @ x[t] - (U.a @ h[t-1] - b.a)",
            "c[t] = -(c[t-1] * (a[t] + 1)) / (2 - alpha[t]) / square(c[t-1])",
            "s[t] = mean(c[t])",
            "n[t] = layer_norm(c[t], h[t-1])[0]",
            "m[t] = layer_norm(c[t], h[t-1])[1]",
            "h[t] = where(c[t] > s[t], n[t], 0.5 * m[t]) + tanh(U.z @ (h[t-1] * alpha[t])) * 1e-05",
        ]
    )


def test_latex_spells_gates_greek_letters_and_fractions():
    @cw.cell(state="h")
    def mine(x, h, W, U):
        alpha = sigmoid(W.alpha @ x)
        forget_gate = sigmoid(U.f @ h)
        h = alpha / (1 + forget_gate) * h
        return next_state(h=h)

    rows = mine.latex().splitlines()[1:-1]
    assert rows[0].startswith(r"\alpha_{t} &= \sigma(W_{\alpha} x_{t})")
    assert rows[1].startswith(r"\mathrm{forget\_gate}_{t} &= \sigma(U_{f} h_{t-1})")
    assert r"\frac{\alpha_{t}}{1 + \mathrm{forget\_gate}_{t}}" in rows[2]
    assert r"\odot h_{t-1}" in rows[2]


def test_a_local_value_that_has_a_states_name_is_not_taken_for_the_new_state():
    @cw.cell(state="h")
    def mine(x, h, W, U):
        h = tanh(U @ h)
        following = h + W @ x
        return next_state(h=following)

    weights, x, states = draw(mine)
    expected = run_one_step(mine, weights, x, states)
    found = computed_from_text(mine, weights, x, states)
    torch.testing.assert_close(found["h"], expected["h"], rtol=1e-12, atol=1e-13)  # as above


def test_states_that_take_each_others_place():
    @cw.cell(state=("h", "c"))
    def mine(x, h, c, W):
        c = c + W @ x
        return next_state(h=c, c=h)

    weights, x, states = draw(mine)
    expected = run_one_step(mine, weights, x, states)
    found = computed_from_text(mine, weights, x, states)
    for state in "hc":
        torch.testing.assert_close(found[state], expected[state], rtol=1e-12, atol=1e-13)


def test_two_states_with_one_value():
    @cw.cell(state=("h", "c"))
    def mine(x, h, c, W):
        new = tanh(W @ x + 0.5 * h - c)
        return next_state(h=new, c=new)

    assert len(mine.equations().splitlines()) == 2
    weights, x, states = draw(mine)
    found = computed_from_text(mine, weights, x, states)
    assert torch.equal(found["h"], found["c"])


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinite_constant_can_be_printed_or_is_refused(value):
    def mine(x, h, W):
        return next_state(h=cw.maximum(h, value) + W @ x)

    try:
        spec = cw.cell(state="h")(mine)
    except cw.CellError as error:
        assert "inf" in str(error)
    else:
        assert "inf" in spec.equations()
        check_latex(spec)


def test_the_cell_as_a_whole():
    spec = cw.cells.get("lstm")
    text = str(spec)
    assert text.splitlines()[0] == f"lstm: {spec.title}"
    assert [line.strip() for line in text.splitlines()[1:]] == spec.equations().splitlines()
    assert re.fullmatch(r"<cell lstm: states h, c; parameters W, U, b>", repr(spec))


def test_tensors_stand_for_the_language_in_these_tests():
    """The functions that the programs use are those that the language has."""
    assert set(vars(TENSORS)) == set(cw.lang.functions.__all__)
    assert isinstance(TENSORS, SimpleNamespace)


def test_a_loop_inside_a_cell_is_written_line_by_line():
    """Values that are used twice and have no name are not written out at every use."""

    @cw.cell(state="h")
    def mine(x, h, W, U):
        for _ in range(12):
            h = h + 0.1 * tanh(U @ h)
        return next_state(h=h + W @ x)

    text = mine.equations()
    assert text.count("tanh(") == 12
    check_latex(mine)
    weights, x, states = draw(mine)
    expected = run_one_step(mine, weights, x, states)
    found = computed_from_text(mine, weights, x, states)
    torch.testing.assert_close(found["h"], expected["h"], rtol=1e-11, atol=1e-12)  # as above
