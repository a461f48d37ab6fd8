"""Initialisation schemes: ranges, shapes, and what they leave alone."""

import math

import pytest
import torch
from nn.recurrent_cases import randn

import cellwright as cw
from cellwright.lang import next_state, sigmoid, tanh

I, H = 5, 64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layer(cell="lstm", init="default", **options):
    return cw.nn.Recurrent(cell, I, H, init=init, **options)


def test_the_default_is_torchs():
    found = layer(num_layers=2, bidirectional=True)
    bound = 1 / math.sqrt(H)
    for parameter in found.parameters():
        assert parameter.abs().max() <= bound
        # Uniform, 256 numbers at the least: five standard deviations of a mean are 0.18 bounds,
        # of a mean magnitude 0.09 bounds.
        assert parameter.mean().abs() < 0.18 * bound
        assert (parameter.abs().mean() - bound / 2).abs() < 0.09 * bound


def test_two_layers_are_not_alike_and_a_seed_repeats_them():
    torch.manual_seed(4)
    first = layer()
    second = layer()
    torch.manual_seed(4)
    again = layer()
    assert torch.equal(first.U_l0, again.U_l0)
    assert not torch.equal(first.U_l0, second.U_l0)


@pytest.mark.parametrize("heads", [1, 4])
def test_orthogonal(heads):
    found = layer("gru", "orthogonal", heads=heads, num_layers=2)
    for number in range(2):
        for gate in "rzn":
            for block in found.parameter(f"U.{gate}", number).detach().chunk(heads):
                # float32: sums of 64 products of numbers below 1.
                torch.testing.assert_close(
                    block @ block.T, torch.eye(H // heads), rtol=0, atol=1e-5
                )
        assert not getattr(found, f"b_l{number}").any()
        entering = found.parameter("W.z", number)
        bound = math.sqrt(6 / sum(entering.shape))
        assert 0.5 * bound < entering.abs().max() <= bound


def test_orthogonal_of_a_matrix_that_is_not_square():
    found = layer("lstm_projection", "orthogonal", sizes={"projection": 16})
    projection = found.parameter("P").detach()
    torch.testing.assert_close(projection @ projection.T, torch.eye(16), rtol=0, atol=1e-5)
    recurrent = found.parameter("U.i").detach()
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "janet", "gru", "peephole_lstm"])
@pytest.mark.parametrize("scheme", ["forget_bias:1.5", "default+forget_bias:1.5"])
def test_forget_bias(cell, scheme):
    found = layer(cell, scheme)
    gate = cw.cells.get(cell).forget_gate
    assert (found.parameter(f"b.{gate}") == 1.5).all()
    bound = 1 / math.sqrt(H)
    for spec in found.cell.parameters:
        if spec.name != f"b.{gate}":
            values = found.parameter(spec.name)
            assert values.isfinite().all(), spec.name
            assert 0 < values.abs().max() <= bound, spec.name


@pytest.mark.parametrize("cell", ["lstm", "gru", "peephole_lstm", "lem", "mut1"])
def test_the_bias_of_any_gate(cell):
    names = [each.name for each in cw.cells.get(cell).parameters if each.group.startswith("b")]
    for name in names:
        found = layer(cell, f"orthogonal+bias.{name.rpartition('.')[2]}:-2.5", num_layers=2)
        for other in names:
            for number in range(2):
                values = found.parameter(other, number)
                assert (values == (-2.5 if other == name else 0)).all(), (name, other)


def test_biases_of_several_gates_after_the_default():
    found = layer("lstm", "bias.i:0+forget_bias:2+bias.o:-2")
    for gate, value in {"i": 0, "f": 2, "o": -2}.items():
        assert (found.parameter(f"b.{gate}") == value).all()
    assert found.parameter("b.g").any()


def test_uniform():
    found = layer("peephole_lstm", "uniform:0.3+bias.o:-2")
    for spec in found.cell.parameters:
        values = found.parameter(spec.name)
        if spec.name != "b.o":
            # 64 numbers at the least: all below 0.27 with a probability of 0.9^64 = 0.001.
            assert 0.27 < values.abs().max() <= 0.3, spec.name
    assert (found.parameter("b.o") == -2).all()


def test_forget_bias_is_one_unless_told():
    assert (layer(init="forget_bias").parameter("b.f") == 1).all()


@pytest.mark.parametrize("scheme", ["chrono:100", "orthogonal+chrono:100"])
def test_chrono(scheme):
    """Tallec & Ollivier: b_f = log(uniform(1, T - 1)), b_i = -b_f."""
    found = layer(init=scheme, num_layers=2)
    for number in range(2):
        forget = found.parameter("b.f", number)
        assert (forget >= 0).all()
        assert (forget <= math.log(99)).all()
        spread = forget.exp()
        # Uniform on (1, 99): 64 draws have a mean of 50 with standard deviation 3.5.
        assert 36 < spread.mean() < 64
        assert torch.equal(found.parameter("b.i", number), -forget)
        others = [found.parameter(name, number) for name in ("W.g", "U.o")]
        assert all(each.isfinite().all() and each.any() for each in others)
    assert not torch.equal(found.parameter("b.f", 0), found.parameter("b.f", 1))


def test_chrono_of_a_cell_without_an_input_gate():
    found = layer("janet", "chrono:50")
    assert (found.parameter("b.f") <= math.log(49)).all()
    assert found.parameter("b.g").isfinite().all()


def test_schemes_are_applied_in_order():
    found = layer(init="forget_bias:3 + orthogonal")
    assert not found.b_l0.any()
    found = layer(init="orthogonal + forget_bias:3")
    assert (found.parameter("b.f") == 3).all()
    assert not found.parameter("b.o").any()


@pytest.mark.parametrize(
    "scheme", ["default", "orthogonal", "uniform:0.5", "forget_bias:2", "chrono:9"]
)
def test_a_constant_initial_value_is_kept(scheme):
    found = layer("layer_norm_lstm", scheme)
    assert (found.gain_l0 == 1).all()
    assert not found.shift_l0.any()
    again = layer(_decayed(), scheme)
    assert (again.parameter("k") == -2.5).all()


def _decayed():
    @cw.cell(state="h", init={"k": -2.5}, forget_gate="f")
    def decayed(x, h, W, U, b, k):
        f = sigmoid(W.f @ x + U.f @ h + b.f)
        return next_state(h=f * sigmoid(k) * h + (1 - f) * tanh(W.n @ x + U.n @ h + b.n))

    return decayed


@pytest.mark.parametrize("scheme", ["default", "orthogonal", "forget_bias:1", "chrono:30"])
@pytest.mark.parametrize("cell", ["lstm", "gru_v1", "janet", "minlstm"])
def test_no_scheme_leaves_a_number_undefined(cell, scheme):
    found = cw.nn.Recurrent(cell, 3, 4, 2, bidirectional=True, init=scheme, layer_norm=True)
    for name, parameter in found.named_parameters():
        assert parameter.isfinite().all(), name
    y, _ = found(randn(2, 1, 3, dtype=torch.float32))
    assert y.isfinite().all()


def test_reset_parameters_draws_again_by_the_same_scheme():
    found = layer(init="orthogonal")
    before = found.U_l0.clone()
    found.reset_parameters()
    assert not torch.equal(found.U_l0, before)
    block = found.parameter("U.f").detach()
    torch.testing.assert_close(block @ block.T, torch.eye(H), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "scheme", "words"),
    [
        ("lstm", "glorot", ["init", "'glorot'", "orthogonal"]),
        ("lstm", "orthogonal:2", ["init", "orthogonal", "number"]),
        ("lstm", "forget_bias:much", ["init", "forget_bias:much", "number"]),
        ("lstm", "chrono", ["init", "chrono", "steps"]),
        ("lstm", "chrono:1", ["init", "chrono:1", "at least 2"]),
        ("lstm", "", ["init"]),
        ("lstm", 3, ["init", "3"]),
        ("lstm", None, ["init", "None"]),
        ("lstm", "uniform", ["init", "uniform:0.1", "bound"]),
        ("lstm", "uniform:0", ["init", "uniform:0", "above 0"]),
        ("lstm", "bias.o", ["init", "bias.o", "number"]),
        ("lstm", "bias.:1", ["init", "'bias.'", "bias.GATE"]),
        ("lstm", "bias.z:1", ["init", "lstm", "'z'", "biases of f, g, i, o"]),
        ("gru", "bias.o:1", ["init", "gru", "'o'", "n, r, z"]),
        ("layer_norm_lstm", "bias.wf:1", ["init", "'wf'", "biases of f, g, i, o"]),
        ("cec", "bias.g:1", ["init", "cec", "'g'", "no biases"]),
        ("elman", "forget_bias:1", ["init", "elman", "forget_gate"]),
        ("elman", "chrono:9", ["init", "elman", "forget_gate"]),
    ],
)
def test_schemes_that_do_not_exist_or_do_not_fit(cell, scheme, words):
    with pytest.raises(cw.InputError) as caught:
        layer(cell, scheme)
    for word in words:
        assert word in str(caught.value)
