"""``ConvRecurrent``, on each engine: cells, options and forms of calling."""

import pytest
import torch
from nn.recurrent_cases import close

import cellwright as cw
from cellwright import sigmoid, tanh
from cellwright.errors import InputError

SPACES = {1: (7,), 2: (4, 5), 3: (3, 2, 4)}
CELLS = ["peephole_lstm", "gru_v1", "gru", "layer_norm_lstm", "lstm_projection"]


@cw.cell(state="h")
def residual(x, h, W, U, V, b):
    """A user's cell: two convolutions in a row over what was computed."""
    n = tanh(W.n @ x + U.n @ h + V.n * h + b.n)
    return cw.next_state(h=h + sigmoid(U.r @ n + b.r) * (n - h))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(cell="peephole_lstm", input_size=2, hidden_size=3, num_layers=1, **options):
    """A layer whose weights are all far from zero, so that nothing is without effect."""
    if cell == "lstm_projection":
        options["sizes"] = {"projection": 2}
    options.setdefault("dtype", torch.float64)
    layer = cw.nn.ConvRecurrent(cell, input_size, hidden_size, num_layers, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.4)
    return layer.eval()


def image(*lead, spatial=2, channels=2):
    return torch.randn(*lead, channels, *SPACES[spatial], dtype=torch.float64)


def by_steps(layer, x):
    state, outputs = None, []
    for x_t in x:
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs), state


@pytest.mark.parametrize("spatial", SPACES)
@pytest.mark.parametrize("cell", [*CELLS, residual], ids=str)
def test_shapes_and_steps(cell, spatial):
    """Steps give what the sequence gives, to rounding: torch's sums may be in another order."""
    layer = make(cell, spatial=spatial)
    x = image(4, 2, spatial=spatial)
    y, state = layer(x)
    channels = layer.state_sizes[0]
    assert y.shape == (4, 2, channels, *SPACES[spatial])
    assert y.is_contiguous()
    for value, size in zip(state, layer.state_sizes, strict=True):
        assert value.shape == (1, 2, size, *SPACES[spatial])
    close(y[-1], state[0][0])
    stepped, last = by_steps(layer, x)
    close(stepped, y)
    close(tuple(last), tuple(state))


@pytest.mark.parametrize("cell", [*CELLS, residual], ids=str)
def test_finite_differences(cell):
    layer = make(cell, 1, 2, kernel_size=(3, 1))
    state = some_space(layer, 1, (2, 3))
    x = torch.randn(2, 1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *tensors):
        states, weights = tensors[: len(state)], tensors[len(state) :]
        given = type(state)(*states)
        y, after = torch.func.functional_call(
            layer, dict(zip(names, weights, strict=True)), (x, given)
        )
        return y, *after

    starts = [each.detach().requires_grad_() for each in state]
    # Step 1e-6: curvature leaves 1e-10, rounding of numbers of order 1 leaves 1e-8.
    assert torch.autograd.gradcheck(run, (x, *starts, *values), eps=1e-6, atol=1e-7, rtol=1e-6)


def some_space(layer, batch, space):
    found = layer.initial_state(batch, space)
    return type(found)(*(torch.rand_like(each) * 0.5 + 0.1 for each in found))


def test_a_line_is_an_image_one_high():
    line, plane = make(spatial=1), make(kernel_size=(1, 3))
    with torch.no_grad():
        for ours, theirs in zip(plane.parameters(), line.parameters(), strict=True):
            ours.copy_(theirs.reshape(ours.shape))
    x = image(3, 2, spatial=1)
    close(plane(x.unsqueeze(-2))[0].squeeze(-2), line(x)[0])


def test_one_position_is_a_product():
    """With a kernel of 1 a position is a sequence of its own, as for ``Recurrent``."""
    layer = make(kernel_size=1)
    dense = cw.nn.Recurrent("peephole_lstm", 2, 3, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(dense.parameters(), layer.parameters(), strict=True):
            ours.copy_(theirs.reshape(ours.shape))
    x = image(3, 2)
    rows = x.permute(0, 1, 3, 4, 2).reshape(3, -1, 2)
    y = dense(rows)[0].reshape(3, 2, 4, 5, 3).permute(0, 1, 4, 2, 3)
    close(layer(x)[0], y)


def test_layers_directions_and_lengths():
    """A sequence that ends early is what it is alone."""
    layer = make(num_layers=2, bidirectional=True)
    x = image(4, 2)
    y, state = layer(x, lengths=[4, 2])
    alone, ended = layer(x[:2, 1:])
    close(y[:2, 1:], alone)
    assert not y[2:, 1].any()
    close(tuple(each[:, 1:] for each in state), tuple(ended))


def test_reset_is_a_new_beginning():
    layer = make("gru_v1", learn_initial_state=True)
    x = image(5, 1)
    reset = torch.zeros(5, 1, dtype=torch.bool)
    reset[3] = True
    close(layer(x, reset=reset)[0][3:], layer(x[3:])[0])


def test_trace_shows_gates_at_every_position():
    layer = make()
    y, state, trace = layer(image(3, 2), trace=True)
    assert trace["i"].shape == (1, 3, 2, 3, 4, 5)
    close(trace["h"][0], y)
    close(trace["c"][0, -1], state.c[0])


def test_recurrent_dropout_has_one_mask_for_all_positions_and_steps():
    """A convolution that adds up nothing: what is dropped stays dropped everywhere."""
    layer = make("elman", recurrent_dropout=0.5, kernel_size=1).train()
    with torch.no_grad():
        layer.parameter("U").copy_(torch.eye(3).reshape(3, 3, 1, 1))
        layer.parameter("W").zero_()
        layer.parameter("b").zero_()
    state = type(layer.initial_state(2, (4, 5)))(torch.full((1, 2, 3, 4, 5), 0.1).double())
    y, _ = layer(image(1, 2), state)
    values = y[0].flatten(2)
    assert (values == values[..., :1]).all()


def test_positions_have_weights_of_their_own():
    layer = make(peephole="position", space=(4, 5))
    assert layer.parameter("V.i").shape == (3, 4, 5)
    y, _ = layer(image(3, 2))
    y.sum().backward()
    gradients = dict(layer.named_parameters())["V_l0"].grad
    assert gradients.shape == (9, 4, 5)
    assert gradients.abs().min() > 0
    with pytest.raises(InputError, match="space"):
        layer(torch.zeros(3, 2, 2, 5, 4, dtype=torch.float64))


def test_under_compile():
    """One graph, the same numbers and gradients."""
    layer = make()
    x = image(3, 2).requires_grad_()
    expected = layer(x)[0]
    wanted = torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()])
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = run(x)[0]
    close(y, expected)
    found = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    close(found, wanted)


def test_the_output_may_be_changed_in_place():
    layer = make()
    x = image(3, 2)
    y, _ = layer(x)
    wanted = torch.autograd.grad(y.sum(), list(layer.parameters()))
    y, _ = layer(x)
    total = y.sum()
    with torch.no_grad():
        y.zero_()
    close(torch.autograd.grad(total, list(layer.parameters())), wanted)


def test_explain_names_the_engine():
    from cellwright.engines import choice

    layer = make()
    wanted = "reference" if choice.asked_for() else "cpu"
    assert cw.explain(layer, image(3, 2)).engine == wanted
