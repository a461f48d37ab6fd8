"""``accelerate`` and ``to_torch``: the same parameters, names, hooks and numbers, another class."""

import copy
import io
import warnings

import pytest
import torch
from nn.against_torch import CELLS, KINDS, assert_close, flat, form, gradients, pair
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

import cellwright as cw
from cellwright.errors import InputError, InputTypeError

# torch.nn's own: its fast path has no projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not:UserWarning")

EVERY = [*KINDS, *CELLS]


class Tagger(nn.Module):
    """A model with every kind of module, one of them at two places."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 3)
        self.encoder = nn.Sequential()
        self.encoder.add_module("rnn", nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.1))
        self.projected = nn.LSTM(8, 6, proj_size=3, bias=False)
        self.decoder = nn.ModuleList([nn.GRU(3, 4), nn.RNN(4, 4, nonlinearity="relu")])
        self.again = self.decoder[0]
        self.cells = nn.ModuleDict({
            "lstm": nn.LSTMCell(4, 4), "gru": nn.GRUCell(4, 4), "rnn": nn.RNNCell(4, 4, bias=False)
        })  # fmt: skip
        self.head = nn.Linear(4, 5)

    def forward(self, tokens):
        y, _ = self.encoder(self.embed(tokens))
        y, _ = self.projected(y)
        y, h = self.decoder[0](y)
        y, _ = self.decoder[1](y)
        z, _ = self.again(y[..., :3], h)
        h, _ = self.cells["lstm"]((y + z)[-1])
        return self.head(self.cells["rnn"](self.cells["gru"](h)))


@pytest.fixture
def model():
    torch.manual_seed(5)
    return Tagger().double()


TOKENS = torch.arange(12).reshape(4, 3) % 11


@pytest.mark.parametrize("kind", EVERY)
def test_the_model_itself(kind):
    theirs, _ = pair(kind, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected, text = theirs(x), repr(theirs)
    weights = list(theirs.parameters())
    wanted = gradients(expected, weights)
    ours = cw.accelerate(theirs)
    assert type(ours) is getattr(cw.nn, text.partition("(")[0])
    assert repr(ours) == text
    assert form(ours(x)) == form(expected)
    assert_close(ours(x), expected)
    assert all(one is two for one, two in zip(ours.parameters(), weights, strict=True))
    assert_close(gradients(ours(x), weights), wanted)


@pytest.mark.parametrize("kind", EVERY)
def test_same_attributes_as_one_made_so(kind):
    """What was converted lacks nothing, and keeps nothing of torch.nn's insides."""
    theirs, ours = pair(kind, 3, 5)
    assert set(vars(cw.accelerate(copy.deepcopy(theirs)))) == set(vars(ours))
    ours(torch.randn(4, 3))
    assert set(vars(cw.nn.to_torch(ours))) == set(vars(theirs))


@pytest.mark.parametrize("kind", EVERY)
def test_there_and_back(kind):
    theirs, _ = pair(kind, 3, 5)
    x = torch.randn(4, 3)
    expected, weights, text = theirs(x), list(theirs.parameters()), repr(theirs)
    cw.accelerate(theirs)(x)
    back = cw.nn.to_torch(theirs)
    assert type(back).__module__.startswith("torch.nn") and repr(back) == text
    assert all(one is two for one, two in zip(back.parameters(), weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(flat(back(x)), flat(expected), strict=True))
    assert str(copy.deepcopy(back)) == text
    if kind in KINDS:
        assert back.to(torch.float64)._flat_weights[0] is back.weight_ih_l0


def test_every_module_of_a_model(model):
    model.eval()
    expected = model(TOKENS)
    names = list(model.state_dict())
    parameters = dict(model.named_parameters())
    assert cw.accelerate(model) is model
    assert not any(type(each).__module__ == "torch.nn.modules.rnn" for each in model.modules())
    assert type(model.encoder.rnn) is cw.nn.LSTM and type(model.decoder[1]) is cw.nn.RNN
    assert [type(each) for each in model.cells.values()] == [
        cw.nn.LSTMCell, cw.nn.GRUCell, cw.nn.RNNCell
    ]  # fmt: skip
    assert type(model.head) is nn.Linear
    assert model.again is model.decoder[0]
    assert list(model.state_dict()) == names
    found = dict(model.named_parameters())
    assert list(found) == list(parameters)
    assert all(found[name] is parameters[name] for name in found)
    assert_close(model(TOKENS), expected)
    assert cw.accelerate(model) is model  # there is nothing left to do
    assert_close(cw.nn.to_torch(model)(TOKENS), expected)


def test_an_optimiser_made_before_goes_on(model):
    """Three steps by torch.nn, or one by torch.nn and two by us: the same weights."""
    twin = copy.deepcopy(model)
    for each, convert_after in ((model, None), (twin, 1)):
        each.encoder.rnn.dropout = 0.0
        optimiser = torch.optim.Adam(each.parameters(), lr=0.01)
        for step in range(3):
            if step == convert_after:
                cw.accelerate(each)
            optimiser.zero_grad()
            each(TOKENS).square().sum().backward()
            optimiser.step()
    assert_close(list(twin.parameters()), list(model.parameters()))


def test_flags_and_dtype_stay(model):
    model.encoder.eval()
    model.projected.weight_hr_l0.requires_grad_(False)
    model.decoder.to(torch.bfloat16)
    flags = {name: each.training for name, each in model.named_modules()}
    cw.accelerate(model)
    assert {name: each.training for name, each in model.named_modules()} == flags
    assert not model.projected.weight_hr_l0.requires_grad
    assert model.decoder[0](torch.zeros(2, 3, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    model.to(torch.float32)
    assert model.eval()(TOKENS).dtype == torch.float32


def test_what_was_set_after_construction_counts():
    rnn = nn.GRU(3, 4, 2)
    rnn.dropout, rnn.batch_first, rnn.note = 0.5, True, "mine"
    cw.accelerate(rnn)
    assert rnn.dropout == 0.5 and rnn.note == "mine"
    assert rnn(torch.zeros(7, 2, 3))[1].shape == (2, 7, 4)


def test_warns_of_nothing():
    with pytest.warns(UserWarning, match="num_layers"):
        rnn = nn.LSTM(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cw.nn.to_torch(cw.accelerate(rnn))


# --- hooks -------------------------------------------------------------------------------------


def test_hooks_stay():
    rnn = nn.LSTM(3, 4)
    seen = []
    handles = [
        rnn.register_forward_pre_hook(lambda m, a: seen.append("before")),
        rnn.register_forward_hook(lambda m, a, r: (r[0] * 2, r[1])),
        rnn.register_forward_hook(lambda m, a, k, r: seen.append(len(k)), with_kwargs=True),
        rnn.register_full_backward_hook(lambda m, i, o: seen.append("backward")),
        rnn.register_full_backward_pre_hook(lambda m, o: seen.append("before backward")),
        rnn.register_state_dict_post_hook(lambda m, s, p, l: seen.append("saved")),
        rnn.register_load_state_dict_post_hook(lambda m, k: seen.append("loaded")),
    ]
    x = torch.randn(5, 2, 3, requires_grad=True)
    expected = rnn(x)[0]
    seen.clear()
    cw.accelerate(rnn)
    y = rnn(x, hx=None)[0]
    y.sum().backward()
    rnn.load_state_dict(rnn.state_dict())
    assert seen == ["before", 1, "before backward", "backward", "saved", "loaded"]
    assert_close(y, expected)
    for handle in handles:
        handle.remove()
    seen.clear()
    assert_close(rnn(x)[0] * 2, expected)
    assert not seen


# --- parametrizations --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm", "lstm-projected", "gru", "lstm-cell", "rnn-cell"])
@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrizations_stay(kind, how):
    theirs, _ = pair(kind, 4, 5, dtype=torch.float64)
    names = ["weight_hh", "weight_ih"] if kind in CELLS else ["weight_hh_l0", "weight_ih_l0"]
    for name in names:
        how(theirs, name)
    x = torch.randn(6, 4, dtype=torch.float64)
    expected, keys = theirs(x), list(theirs.state_dict())
    wanted = gradients(expected, list(theirs.parameters()))
    below = type(theirs).__bases__[0]
    ours = cw.accelerate(theirs)
    assert isinstance(ours, getattr(cw.nn, below.__name__))
    assert type(ours).__name__ == f"Parametrized{below.__name__}"
    assert parametrize.is_parametrized(ours, names[0])
    assert list(ours.state_dict()) == keys
    assert_close(ours(x), expected)
    assert_close(gradients(ours(x), list(ours.parameters())), wanted)
    assert_close(copy.deepcopy(ours)(x), expected)
    back = cw.nn.to_torch(copy.deepcopy(ours))
    assert isinstance(back, below) and parametrize.is_parametrized(back)
    assert_close(back(x), expected)
    for name in names:
        parametrize.remove_parametrizations(ours, name)
    assert type(ours) is getattr(cw.nn, below.__name__)
    assert_close(ours(x), expected)


def test_a_parametrized_twin_is_left_as_it_is():
    """Each parametrized module has a class of its own: converting one touches no other."""
    one, two = (parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0") for _ in range(2))
    cw.accelerate(one)
    assert isinstance(one, cw.nn.GRU) and isinstance(two, nn.GRU)


def test_weights_may_be_parametrized_afterwards():
    theirs, ours = pair("lstm", 3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh_l0")
        with torch.no_grad():
            module.parametrizations.weight_hh_l0.original0.mul_(0.5)
    assert_close(ours(x), theirs(x))
    assert_close(copy.deepcopy(ours)(x), theirs(x))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_the_older_weight_norm_and_pruning_stay():
    """They put a plain tensor where the parameter was, in a hook before each call."""
    x = torch.randn(5, 2, 3)
    for how in (
        lambda m: weight_norm(m, "weight_hh_l0"),
        lambda m: prune.random_unstructured(m, "weight_ih_l0", amount=0.5),
    ):
        rnn = nn.LSTM(3, 4)
        how(rnn)
        expected, keys = rnn(x), list(rnn.state_dict())
        cw.accelerate(rnn)
        assert_close(rnn(x), expected)
        assert list(rnn.state_dict()) == keys
        before = rnn(x)[0]
        with torch.no_grad():
            for parameter in rnn.parameters():
                parameter.mul_(1.5)
        assert (rnn(x)[0] - before).abs().max() > 1e-3


# --- what is left alone, and what is refused ---------------------------------------------------


class Scaled(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


def test_subclasses_and_replaced_forwards_are_left_alone():
    replaced = nn.GRU(3, 4)
    replaced.forward = lambda x: "mine"
    parametrized = parametrizations.weight_norm(Scaled(3, 4), "weight_hh_l0")
    model = nn.ModuleList([Scaled(3, 4), replaced, parametrized])
    classes = [type(each) for each in model]
    cw.accelerate(model)
    assert [type(each) for each in model] == classes
    assert model[1](None) == "mine"


def test_a_module_we_do_not_have_is_named_and_nothing_changes():
    model = nn.ModuleDict({"first": nn.LSTM(3, 4), "second": nn.GRU(3, 4, dtype=torch.complex64)})
    with pytest.raises(InputError, match=r"module 'second', a GRU: weight_ih_l0: .*complex64"):
        cw.accelerate(model)
    assert type(model["first"]) is nn.LSTM


@pytest.mark.parametrize("convert", [cw.accelerate, cw.nn.to_torch])
def test_only_modules_can_be_converted(convert):
    with pytest.raises(InputTypeError, match=r"model: expected a torch.nn.Module, got list"):
        convert([nn.LSTM(3, 4)])


# --- afterwards --------------------------------------------------------------------------------


def test_an_accelerated_model_under_torchs_transformations(model):
    torch.compiler.reset()
    model.eval()
    expected = model(TOKENS)
    cw.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(TOKENS), expected)
    assert_close(torch.export.export(model, (TOKENS,)).module()(TOKENS), expected)
    assert_close(copy.deepcopy(model)(TOKENS), expected)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert_close(torch.load(stream, weights_only=False)(TOKENS), expected)


def test_a_model_compiled_before_is_compiled_again():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(3, 3), nn.GRUCell(3, 4)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    expected = compiled(x)
    assert graphs and not any("cellwright" in each for each in graphs)
    cw.accelerate(model)
    assert_close(compiled(x), expected)
    assert "cellwright" in graphs[-1]
