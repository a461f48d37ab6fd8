"""Layers under torch.func, differentiated twice, copied, saved, and under autocast."""

import copy
import io
import pickle

import pytest
import torch
from nn.recurrent_cases import close, make, randn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state, vmap

import cellwright as cw
from cellwright.lang import next_state, tanh

T, B, I, H = 5, 2, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@cw.cell(state="h")
def of_this_file(x, h, W, U):
    return next_state(h=tanh(W @ x + U @ tanh(U @ h)))


def local_cell():
    @cw.cell(state="h")
    def of_a_function(x, h, W, U):
        return next_state(h=tanh(W @ x + U @ h))

    return of_a_function


# --- torch.func --------------------------------------------------------------------------------


def call(layer, parameters, x, **options):
    """The layer with other weights."""
    return functional_call(layer, parameters, (x,), options)


@pytest.mark.parametrize("cell", ["lstm", "gru_v1", "layer_norm_lstm", "slstm"])
def test_an_ensemble_is_its_members(cell):
    members = [make(cell, I, H, 2, bidirectional=True) for _ in range(3)]
    parameters, _ = stack_module_state(members)
    x = randn(T, B, I)
    y, state = vmap(lambda p, v: call(members[0], p, v), (0, None))(parameters, x)
    assert y.shape == (3, T, B, 2 * H)
    for index, member in enumerate(members):
        expected, after = member(x)
        close(y[index], expected)
        close(state[0][index], after[0])


def test_an_ensemble_with_lengths_resets_and_traces():
    members = [make("lstm", I, H, zoneout=0.2, heads=2, grad_clip=1.0) for _ in range(2)]
    parameters, _ = stack_module_state(members)
    x, lengths, reset = randn(T, B, I), torch.tensor([2, 5]), torch.rand(T, B) < 0.3
    options = {"lengths": lengths, "reset": reset, "trace": True}
    y, _, trace = vmap(lambda p: call(members[0], p, x, **options))(parameters)
    for index, member in enumerate(members):
        expected, _, traced = member(x, **options)
        close(y[index], expected)
        close(trace["f"][index], traced["f"])


def test_an_ensemble_of_inputs():
    layer = make("gru", I, H)
    x = randn(7, T, B, I)
    y, _ = vmap(layer)(x)
    for index in range(7):
        close(y[index], layer(x[index])[0])


def test_gradients_of_an_ensemble():
    members = [make("lstm", I, H) for _ in range(3)]
    parameters, _ = stack_module_state(members)
    x = randn(T, B, I)

    def loss(p):
        return call(members[0], p, x)[0].square().sum()

    found = vmap(torch.func.grad(loss))(parameters)
    for index, member in enumerate(members):
        member(x)[0].square().sum().backward()
        for name, parameter in member.named_parameters():
            close(found[name][index], parameter.grad)


def test_gradients_for_each_sample():
    layer = make("gru_v1", I, H, 2)
    x = randn(T, 4, I)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(p, sample):
        return call(layer, p, sample)[0].square().sum()

    found = vmap(torch.func.grad(loss), (None, 1))(parameters, x)
    for index in range(4):
        layer.zero_grad()
        layer(x[:, index])[0].square().sum().backward()
        for name, parameter in layer.named_parameters():
            close(found[name][index], parameter.grad)


def test_jacobians():
    layer = make("lstm", I, H)
    x = randn(3, 1, I)
    found = torch.func.jacrev(lambda v: layer(v)[0])(x)
    expected = torch.autograd.functional.jacobian(lambda v: layer(v)[0], x)
    close(found, expected)
    for late in range(1, 3):
        assert not found[:late, :, :, late].any(), "no output sees an input that comes later"
    assert found[2, 0, :, 0].abs().min() > 0


def test_torch_func_and_autograd_agree_on_hessians():
    layer = make("elman", I, 2)
    x = randn(2, 1, I)

    def loss(v):
        return layer(v)[0].square().sum()

    found = torch.func.jacrev(torch.func.jacrev(loss))(x)
    close(found, torch.autograd.functional.hessian(loss, x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # its own
@pytest.mark.parametrize("recording", [True, False])
def test_dual_numbers(recording):
    layer, x, along = make("gru", I, H), randn(T, B, I), randn(T, B, I)
    _, expected = torch.func.jvp(lambda x: layer(x)[0], (x,), (along,))
    with torch.set_grad_enabled(recording):
        layer(x)  # seen before: what is ready for such calls has no tangents
        with forward_ad.dual_level():
            y, _ = layer(forward_ad.make_dual(x, along))
            close(forward_ad.unpack_dual(y).tangent, expected)


# --- second derivatives ------------------------------------------------------------------------


def test_a_gradient_penalty_trains():
    layer = make("lstm", I, H, 2, bidirectional=True)
    x = randn(T, B, I).requires_grad_()
    y, state = layer(x, lengths=[5, 3])
    (gradient,) = torch.autograd.grad(y.sum() + state.c.sum(), [x], create_graph=True)
    gradient.square().sum().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()}

    def penalty(parameters):
        def inner(v):
            y, state = functional_call(layer, parameters, (v,), {"lengths": torch.tensor([5, 3])})
            return y.sum() + state.c.sum()

        return torch.func.grad(inner)(x.detach()).square().sum()

    expected = torch.func.grad(penalty)({n: p.detach() for n, p in layer.named_parameters()})
    for name, value in found.items():
        close(value, expected[name], 1e-11)  # a product of slopes more than a first derivative


# --- copies and files --------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "lstm_projection", "rhn", of_this_file])
def test_copies_are_independent(cell):
    layer = make(cell, I, H, 2, bidirectional=True)
    x = randn(T, B, I)
    expected, _ = layer(x)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x)[0], expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(layer(x)[0], expected)
    assert other.cell is layer.cell


def test_a_layer_of_a_local_cell_can_be_copied_but_says_why_it_cannot_be_pickled():
    layer = make(local_cell(), I, H)
    x = randn(T, B, I)
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])
    with pytest.raises(cw.CellError, match="of_a_function"):
        pickle.dumps(layer)


@pytest.mark.parametrize("cell", ["lstm", "lstm_projection", of_this_file])
def test_a_state_dict_goes_through_a_file(cell):
    layer = make(cell, I, H, 2, bidirectional=True, learn_initial_state=True)
    content = io.BytesIO()
    torch.save(layer.state_dict(), content)
    content.seek(0)
    other = make(cell, I, H, 2, bidirectional=True, learn_initial_state=True)
    other.load_state_dict(torch.load(content, weights_only=True))
    x = randn(T, B, I)
    assert torch.equal(other(x)[0], layer(x)[0])


@pytest.mark.parametrize("cell", ["lstm", "lstm_projection", "rhn", of_this_file])
def test_a_whole_layer_goes_through_a_file(cell):
    layer = make(cell, I, H, 2, zoneout=0.1, heads=1, grad_clip=0.5)
    layer(randn(T, B, I), trace=True)
    content = io.BytesIO()
    torch.save(layer, content)
    content.seek(0)
    other = torch.load(content, weights_only=False)
    x = randn(T, B, I)
    y, state = other(x)
    assert torch.equal(y, layer(x)[0])
    assert state._fields == layer(x)[1]._fields
    assert repr(other) == repr(layer)


def test_a_state_goes_through_a_file():
    layer = make("lstm", I, H)
    _, state = layer(randn(T, B, I))
    again = pickle.loads(pickle.dumps(state))
    assert again._fields == ("h", "c")
    assert torch.equal(again.c, state.c)
    other = copy.deepcopy(layer.initial_state(B))
    assert other._fields == ("h", "c")


def test_weights_can_be_parametrised():
    layer = make("gru", I, H)
    torch.nn.utils.parametrizations.weight_norm(layer, "U_l0")
    x = randn(T, B, I)
    y, _ = layer(x)
    y.sum().backward()
    assert layer.parametrizations.U_l0.original0.grad.any()


def test_activations_can_be_recomputed():
    layer = make("lstm", I, H, 2)
    x = randn(T, B, I).requires_grad_()
    expected = torch.autograd.grad(layer(x)[0].square().sum(), [x])
    y, _ = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), [x])
    assert torch.equal(found[0], expected[0])


# --- devices and dtypes ------------------------------------------------------------------------


def test_a_layer_on_the_meta_device_tells_shapes():
    layer = cw.nn.Recurrent("lstm_projection", I, H, 2, sizes={"projection": 2}, device="meta")
    y, state, trace = layer(torch.empty(T, B, I, device="meta"), trace=True)
    assert y.shape == (T, B, 2)
    assert state.c.shape == (2, B, H)
    assert trace["i"].shape == (2, T, B, H)
    assert y.device.type == "meta"


def test_to_another_dtype():
    layer = make("lstm", I, H, dtype=torch.float32).double()
    assert layer(randn(T, B, I))[0].dtype == torch.float64
    assert layer.initial_state(B).h.dtype == torch.float64


@pytest.mark.parametrize("cell", ["elman", "lstm", "lstm_projection", "mgu", "slstm"])
def test_autocast(cell):
    """A layer keeps its own dtype under autocast, and takes what layers before it have rounded."""
    layer = make(cell, I, H, 2, dtype=torch.float32)
    before = torch.nn.Linear(I, I)
    x = randn(T, B, I, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = before(x).detach()
        assert rounded.dtype == torch.bfloat16
        y, state = layer(rounded)
        steps = []
        current = layer.initial_state(B)
        for x_t in rounded:
            y_t, current = layer.step(x_t, current)
            steps.append(y_t)
    assert {y.dtype, *(s.dtype for s in state)} == {torch.float32}
    assert torch.equal(torch.stack(steps), y)
    y.square().sum().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    expected, _ = layer(rounded.float())
    expected.square().sum().backward()
    # The products may be those of bfloat16 numbers: 2**-8 of numbers of order 1, two layers.
    torch.testing.assert_close(y, expected, rtol=0, atol=5e-2)
    for name, parameter in layer.named_parameters():
        assert found[name].dtype == torch.float32
        size = parameter.grad.abs().max().item()
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=0.1 * size)


def test_inference_mode():
    layer = make("lstm", I, H, 2)
    x = randn(T, B, I)
    with torch.inference_mode():
        y, _ = layer(x)
    assert torch.equal(y, layer(x)[0])
