"""Constructors, names, initial values, warnings and dtypes against torch.nn's own."""

import inspect

import numpy as np
import pytest
import torch
from nn.against_torch import CELLS, KINDS, assert_refused_alike, flat, form, pair

import cellwright as cw

# torch.nn's own: its fast path has no projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not:UserWarning")

LAYERS = ["LSTM", "GRU", "RNN"]
MODULES = [*LAYERS, "LSTMCell", "GRUCell", "RNNCell"]
BOTH = [torch.nn, cw.nn]

OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "all": {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.25},
    "unusual": {"num_layers": np.int64(2), "bidirectional": 1, "dropout": np.float32(0.5)},
}
CELL_OPTIONS = {"plain": {}, "no-bias": {"bias": False}, "falsy-bias": {"bias": 0}}
CASES = [(kind, options) for kind in KINDS for options in OPTIONS.values()]
CASES += [(kind, options) for kind in CELLS for options in CELL_OPTIONS.values()]


# --- making ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_parameters_names_and_initial_values(kind, options):
    theirs, ours = pair(kind, 3, 5, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, expected in theirs.named_parameters():
        found = ours.get_parameter(name)
        assert torch.equal(found, expected) and found.requires_grad
    assert repr(ours) == repr(theirs)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    ours.reset_parameters()
    assert not torch.equal(ours.state_dict()[name], theirs.state_dict()[name])
    torch.manual_seed(0)
    ours.reset_parameters()
    assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name])


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_checkpoints_go_back_and_forth(kind, options):
    theirs, _ = pair(kind, 3, 5, **options, seed=1)
    _, ours = pair(kind, 3, 5, **options, seed=2)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_of_layers(kind):
    theirs, ours = pair(kind, 3, 5, 2, bidirectional=True, batch_first=True, dropout=0.5)
    names = ["mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
             "bidirectional", "proj_size", "training"]  # fmt: skip
    names += ["nonlinearity"] if "rnn" in kind else []
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name)
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    assert ours.flatten_parameters() is None
    shapes = [[each.shape for each in layer] for layer in theirs.all_weights]
    assert [[each.shape for each in layer] for layer in ours.all_weights] == shapes
    assert ours.all_weights[3][1] is ours.weight_hh_l1_reverse


@pytest.mark.parametrize("kind", CELLS)
def test_attributes_of_cells(kind):
    theirs, ours = pair(kind, 3, 5, bias=False)
    for name in ["input_size", "hidden_size", "bias", "bias_ih", "bias_hh"]:
        assert getattr(ours, name) == getattr(theirs, name)
    assert getattr(ours, "nonlinearity", None) == getattr(theirs, "nonlinearity", None)


@pytest.mark.parametrize("name", MODULES)
def test_arguments_by_position(name):
    """In the order that torch.nn documents; nonlinearity is the fourth of an RNN."""
    expected = ["input_size", "hidden_size"]
    if not name.endswith("Cell"):
        expected.append("num_layers")
    expected += ["nonlinearity"] if name == "RNN" else []
    expected += ["bias"]
    expected += ["nonlinearity"] if name == "RNNCell" else []
    if not name.endswith("Cell"):
        expected += ["batch_first", "dropout", "bidirectional"]
    expected += ["proj_size"] if name == "LSTM" else []
    expected += ["device", "dtype"]
    parameters = inspect.signature(getattr(cw.nn, name)).parameters.values()
    assert [each.name for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD] == expected
    values = {"num_layers": 2, "nonlinearity": "relu", "bias": False, "batch_first": True,
              "dropout": 0.5, "bidirectional": True, "proj_size": 2}  # fmt: skip
    given = [3, 5, *(values[each] for each in expected[2:-2])]
    theirs, ours = (getattr(namespace, name)(*given) for namespace in BOTH)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_device_and_dtype(kind):
    _, ours = pair(kind, 3, 5, device="meta", dtype=torch.float64)
    assert {each.device.type for each in ours.parameters()} == {"meta"}
    assert {each.dtype for each in ours.parameters()} == {torch.float64}
    x = torch.zeros(4, 3, device="meta", dtype=torch.float64)
    theirs, _ = pair(kind, 3, 5, device="meta", dtype=torch.float64)
    assert form(ours(x)) == form(theirs(x))
    moved = ours.to_empty(device="cpu").float()
    moved.reset_parameters()
    assert form(moved(torch.zeros(4, 3))) == form(pair(kind, 3, 5)[0](torch.zeros(4, 3)))


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_without_a_layer_to_act_on_warns(name):
    for namespace in BOTH:
        with pytest.warns(UserWarning, match="num_layers") as caught:
            getattr(namespace, name)(3, 5, dropout=0.5)
        assert len(caught) == 1
    assert caught[0].filename == __file__


# --- torch.autocast ----------------------------------------------------------------------------

LOW = torch.bfloat16


# The LSTM of torch.nn without oneDNN, as with a projection, forgets what autocast is for.
RULED = [kind for kind in [*KINDS, *CELLS] if kind != "lstm-projected"]


@pytest.mark.parametrize("kind", RULED)
@pytest.mark.parametrize(
    ("x_dtype", "hx_dtype"),
    [(LOW, None), (LOW, LOW), (LOW, torch.float32), (torch.float32, None), (torch.float32,) * 2],
)
def test_dtypes_inside_autocast(kind, x_dtype, hx_dtype):
    theirs, ours = pair(kind, 3, 4)
    batch = (4,) if "cell" in kind else (1, 4)
    x = torch.randn(4, 3) if "cell" in kind else torch.randn(6, 4, 3)
    hx = None
    if hx_dtype is not None:
        hx = torch.randn(*batch, 4).to(hx_dtype)
        hx = (hx, hx) if kind.startswith("lstm") else hx
    with torch.autocast("cpu", LOW):
        expected, found = theirs(x.to(x_dtype), hx), ours(x.to(x_dtype), hx)
    assert form(found) == form(expected)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_numbers_inside_autocast_are_those_outside(kind):
    _, ours = pair(kind, 3, 4)
    x = (torch.randn(4, 3) if "cell" in kind else torch.randn(6, 4, 3)).to(LOW)
    with torch.autocast("cpu", LOW):
        inside = ours(x)
    outside = ours(x.float())
    for one, two in zip(flat(inside), flat(outside), strict=True):
        assert one.dtype == LOW
        assert torch.equal(one, two.to(LOW))


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_autocast_leaves_float64_alone(kind):
    theirs, ours = pair(kind, 3, 4)
    wide = torch.zeros(4, 3, dtype=torch.float64)
    with torch.autocast("cpu", LOW):
        assert_refused_alike(lambda: theirs(wide), lambda: ours(wide))
        assert form(ours.double()(wide)) == form(theirs.double()(wide))
