"""Parameters of a layer: their names, shapes, and the views by which equations call them."""

import pytest
import torch
from nn.recurrent_cases import make, randn

import cellwright as cw
from cellwright.errors import InputError
from cellwright.lang import next_state, tanh

T, B, I, H = 5, 3, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_names_and_shapes_of_parameters():
    layer = make("lstm", I, H, 2, bidirectional=True)
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes == {
        f"{group}_l{number}{end}": shape
        for number in range(2)
        for end in ("", "_reverse")
        for group, shape in {
            "W": (4 * H, I if number == 0 else 2 * H), "U": (4 * H, H), "b": (4 * H,),
        }.items()
    }  # fmt: skip
    assert list(layer.state_dict()) == list(shapes)


def test_members_of_unlike_shapes_are_tensors_of_their_own():
    @cw.cell(state={"h": "small", "c": "hidden"})
    def mine(x, h, c, W, U):
        c = tanh(W.c @ x + U.c @ h + c)
        return next_state(h=tanh(W.h @ x + U.h @ c), c=c)

    layer = make(mine, I, H, sizes={"small": 2})
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes == {"W_c_l0": (H, I), "W_h_l0": (2, I), "U_c_l0": (H, 2), "U_h_l0": (2, H)}
    assert layer(randn(T, B, I))[0].shape == (T, B, 2)


def test_a_parameter_is_a_view_by_the_name_in_the_equations():
    layer = make("lstm", I, H, 2)
    rows = dict(zip("ifgo", layer.U_l1.chunk(4), strict=True))
    for gate, expected in rows.items():
        assert torch.equal(layer.parameter(f"U.{gate}", layer=1), expected)
    x = randn(T, B, I)
    before, _ = layer(x)
    with torch.no_grad():
        layer.parameter("b.o").add_(1.0)
    assert torch.equal(layer.parameter("b.o"), layer.b_l0.chunk(4)[3])
    assert not torch.equal(layer(x)[0], before)


def test_a_layer_shows_what_it_is():
    layer = make("lstm", I, H, 2, bidirectional=True, zoneout={"c": 0.25}, init="orthogonal")
    assert repr(layer) == (
        "Recurrent(lstm, 3, 4, num_layers=2, bidirectional=True, zoneout={'c': 0.25}, "
        "init='orthogonal')"
    )
    assert repr(make("gru", I, H)) == "Recurrent(gru, 3, 4)"


def test_a_layer_may_be_given_a_cell_or_its_name():
    spec = cw.cells.get("gru")
    assert cw.nn.Recurrent(spec, I, H).cell is cw.nn.Recurrent("gru", I, H).cell


def group_beside_a_member():
    @cw.cell(state={"h": "small", "c": "hidden"})
    def clash(x, h, c, W, U, U_c):
        c = tanh(W @ x + U.c @ h + U_c @ h + c)
        return next_state(h=tanh(U.h @ c) + h, c=c)

    return clash, {"sizes": {"small": 2}}, ("U.c", "U_c")


def group_called_initial():
    @cw.cell(state="h")
    def clash(x, h, W, initial):
        return next_state(h=tanh(W @ x + initial.h * h))

    return clash, {"learn_initial_state": True}, ("initial.h",)


def group_called_gain():
    @cw.cell(state="h")
    def clash(x, h, W, gain_W):  # noqa: N803 - the name that the option uses
        return next_state(h=tanh(W @ x + gain_W * h))

    return clash, {"layer_norm": True}, ("gain_W",)


@pytest.mark.parametrize(
    "case",
    [group_beside_a_member, group_called_initial, group_called_gain],
    ids=lambda c: c.__name__,
)
def test_names_that_fall_together_are_refused_or_kept_apart(case):
    try:
        spec, options, names = case()
        layer = cw.nn.Recurrent(spec, I, H, **options)
    except cw.CellwrightError as error:
        assert all(name.split(".")[0] in str(error) for name in names)
        return
    added = {"learn_initial_state": H, "layer_norm": H}
    wanted = spec.num_parameters(I, H, **options.get("sizes", {}))
    wanted += sum(count for option, count in added.items() if option in options)
    assert sum(parameter.numel() for parameter in layer.parameters()) == wanted
    places = [layer.parameter(name).data_ptr() for name in names]
    assert len(set(places)) == len(places)
    x = randn(T, B, I, dtype=torch.float32)
    before = torch.cat([part.flatten() for part in layer(x)[1]])
    assert before.isfinite().all()
    for parameter in layer.parameters():
        for number in parameter.detach().view(-1).split(1):
            kept = number.clone()
            number += 0.5
            after = torch.cat([part.flatten() for part in layer(x)[1]])
            number.copy_(kept)
            assert not torch.equal(after, before), "every number has an influence"


@pytest.mark.parametrize("make", [cw.nn.LSTM, lambda *sizes: cw.nn.Recurrent("lstm", *sizes)])
@pytest.mark.parametrize("replacement", [torch.zeros(3, 3), torch.zeros(20, 5).double()])
def test_a_weight_that_does_not_fit_is_refused(make, replacement):
    """An engine reads as many numbers as the layer's sizes say, whatever lies there."""
    layer, x = make(4, 5), torch.randn(3, 2, 4)
    name = "weight_hh_l0" if isinstance(layer, cw.nn.LSTM) else "U_l0"
    with torch.no_grad():
        layer(x)
        layer.get_parameter(name).data = replacement  # the same Parameter, seen before
    for road in (torch.enable_grad, torch.no_grad):
        with road(), pytest.raises(InputError, match=rf"{name}: expected .* shape \(20, 5\)"):
            layer(x)
        with road(), pytest.raises(InputError, match=name):
            layer(x[:1])
