"""The catalogue is complete, says where each cell is from, and computes what the papers say."""

from __future__ import annotations

import numpy as np
import pytest
from cells.by_hand import BY_HAND

import cellwright as cw

DESIGN = [
    "elman", "elman_relu", "cec", "lstm_1997", "lstm", "lstm_no_output_activation",
    "lstm_unsquashed", "peephole_lstm", "peephole_lstm_cell_only", "peephole_lstm_unsquashed",
    "odyssey_vanilla", "odyssey_nig",
    "odyssey_nfg", "odyssey_nog", "odyssey_niaf", "odyssey_noaf", "odyssey_cifg", "odyssey_np",
    "odyssey_fgr", "gru", "gru_v1", "gru_update_new", "mgu", "mut1", "mut2", "mut3", "ugrnn",
    "janet", "indrnn", "rhn", "lem", "slstm", "mingru", "minlstm", "sru", "layer_norm_lstm",
    "lstm_projection",
]  # fmt: skip

# A float64 sum of some ten terms over five steps stays far below this.
TOLERANCE = 1e-12


def sizes_of(spec):
    return {name: 3 for name in spec.size_names}


def test_the_catalogue_has_every_cell_of_the_design():
    assert sorted(cw.cells.names()) == sorted(DESIGN)
    assert sorted(BY_HAND) == sorted(DESIGN)


@pytest.mark.parametrize("name", cw.cells.names())
def test_every_cell_says_what_it_is_and_where_it_is_from(name):
    spec = cw.cells.get(name)
    assert spec.name == name
    assert spec.title
    assert 1990 <= spec.year <= 2024
    assert str(spec.year) in spec.source
    assert spec.notes.endswith(".")
    lines = spec.equations().splitlines()
    assert {line.split("[t] = ")[0] for line in lines} >= {state.name for state in spec.states}
    assert spec.latex().startswith("\\begin{aligned}")


@pytest.mark.parametrize("name", cw.cells.names())
def test_gates_that_initialisation_treats_apart_have_a_bias(name):
    spec = cw.cells.get(name)
    parameters = {p.name for p in spec.parameters}
    for gate in (spec.forget_gate, spec.input_gate):
        assert gate is None or f"b.{gate}" in parameters


@pytest.mark.parametrize("name", cw.cells.names())
def test_every_cell_computes_what_the_paper_says(name, make_weights, run_layer):
    spec = cw.cells.get(name)
    sizes = sizes_of(spec)
    weights = make_weights(spec, 3, 4, sizes, seed=len(name))
    rng = np.random.default_rng(7)
    x = rng.normal(size=(5, 2, 3))
    units = {state.name: {"hidden": 4, **sizes}[state.size] for state in spec.states}

    y, final, trace = run_layer(spec, weights, x, sizes)

    for row in range(2):
        state = {each: [0.0] * count for each, count in units.items()}
        for t in range(5):
            state, seen = BY_HAND[name](weights, x[t, row], state)
            assert set(seen) == set(spec.watches)
            for each, expected in (state | seen).items():
                message = f"{each} at step {t} of row {row}"
                np.testing.assert_allclose(
                    trace[each][t, row], expected, rtol=0, atol=TOLERANCE, err_msg=message
                )
            np.testing.assert_allclose(y[t, row], state[spec.states[0].name], atol=TOLERANCE)
        for each, expected in state.items():
            np.testing.assert_allclose(final[each][row], expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", cw.cells.names())
def test_every_cell_starts_from_the_state_it_is_given(name, make_weights, run_layer):
    spec = cw.cells.get(name)
    sizes = sizes_of(spec)
    weights = make_weights(spec, 3, 4, sizes, seed=1)
    rng = np.random.default_rng(8)
    x = rng.normal(size=(1, 1, 3))
    # Positive, because sLSTM's normaliser is.
    start = {
        state.name: rng.uniform(0.1, 1.0, size=(1, {"hidden": 4, **sizes}[state.size]))
        for state in spec.states
    }

    _, final, _ = run_layer(spec, weights, x, sizes, start)

    state, _ = BY_HAND[name](weights, x[0, 0], {each: v[0] for each, v in start.items()})
    for each, expected in state.items():
        np.testing.assert_allclose(final[each][0], expected, rtol=0, atol=TOLERANCE)


I, H, P = 5, 7, 3
DENSE = H * (I + H + 1)  # one gate: W, U and b


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("elman", DENSE),
        ("cec", H * I),
        ("lstm_1997", 3 * DENSE),
        ("lstm", 4 * DENSE),
        ("peephole_lstm", 4 * DENSE + 3 * H),
        ("peephole_lstm_cell_only", 4 * H * I + 3 * H * H + 4 * H),
        # Greff et al. count 4 (N M + N N + N) + 3 N for V.
        ("odyssey_vanilla", 4 * (H * I + H * H + H) + 3 * H),
        ("odyssey_nig", 3 * DENSE + 2 * H),
        ("odyssey_nfg", 3 * DENSE + 2 * H),
        ("odyssey_nog", 3 * DENSE + 2 * H),
        ("odyssey_cifg", 3 * DENSE + 2 * H),
        ("odyssey_np", 4 * DENSE),
        ("odyssey_fgr", 4 * DENSE + 3 * H + 9 * H * H),
        ("gru", 3 * DENSE + H),
        ("gru_v1", 3 * DENSE),
        ("gru_update_new", 3 * DENSE),
        ("mgu", 2 * DENSE),
        ("ugrnn", 2 * DENSE),
        ("janet", 2 * DENSE),
        ("mut1", 3 * DENSE - H * H),
        ("mut2", 3 * DENSE),
        ("mut3", 3 * DENSE),
        ("indrnn", H * I + 2 * H),
        ("rhn", 2 * H * I + 3 * 2 * (H * H + H)),
        ("lem", 4 * DENSE),
        ("slstm", 4 * DENSE),
        ("mingru", 2 * H * (I + 1)),
        ("minlstm", 3 * H * (I + 1)),
        ("sru", 4 * H * I + 4 * H),
        ("layer_norm_lstm", 4 * DENSE + 2 * (4 + 4 + 1) * H),
    ],
)
def test_parameter_counts(name, count):
    assert cw.cells.get(name).num_parameters(I, H) == count


def test_parameter_count_of_the_projection_lstm_is_torchs_less_its_second_bias():
    torch = pytest.importorskip("torch")
    theirs = sum(p.numel() for p in torch.nn.LSTM(I, H, proj_size=P).parameters())
    assert cw.cells.get("lstm_projection").num_parameters(I, H, projection=P) == theirs - 4 * H


@pytest.mark.parametrize(("name", "second_biases"), [("LSTM", 4), ("GRU", 2), ("RNN", 1)])
def test_parameter_counts_are_torchs_less_its_second_biases(name, second_biases):
    torch = pytest.importorskip("torch")
    theirs = sum(p.numel() for p in getattr(torch.nn, name)(I, H).parameters())
    spec = cw.cells.get({"RNN": "elman"}.get(name, name.lower()))
    assert spec.num_parameters(I, H) == theirs - second_biases * H


def test_recurrent_highway_cells_of_other_depths():
    from cellwright.cells.highway import rhn_of_depth

    for depth in (1, 2, 5):
        spec = rhn_of_depth(depth)
        assert spec.num_parameters(I, H) == 2 * H * I + 2 * depth * (H * H + H)
        assert len(spec.watches) == 3 * depth - 1


def test_slstm_survives_gates_that_an_exponential_does_not(make_weights, run_layer):
    """exp(+-2000) is out of range; the stabilised cell computes on."""
    spec = cw.cells.get("slstm")
    weights = make_weights(spec, 2, 3)
    for value in (2000.0, -2000.0):
        weights["b.i"] = np.full(3, value)
        y, final, _ = run_layer(spec, weights, np.ones((4, 1, 2)))
        assert np.isfinite(y).all()
        assert (final["n"] >= 1).all()
