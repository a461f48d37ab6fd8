"""Streaming: one step at a time gives the very bits of the whole sequence."""

import pytest
import torch
from nn.recurrent_cases import make, randn, some_state

import cellwright as cw

T = 5
# input, hidden, batch, layers: odd sizes, one of all, sizes at which products change their way.
SIZES = {"odd": (3, 5, 2, 2), "one": (1, 1, 1, 1), "uneven": (17, 33, 1, 1), "wide": (32, 64, 7, 1)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stream(layer, x, state=None):
    """Every step by itself, on memory of its own."""
    outputs = []
    for x_t in x:
        y_t, state = layer.step(x_t.clone(), state)
        outputs.append(y_t)
    return torch.stack(outputs), state


def assert_same_bits(layer, x, state=None):
    y, after = layer(x, state)
    streamed, ended = stream(layer, x, state)
    assert torch.equal(streamed, y)
    assert streamed.dtype == y.dtype
    assert all(map(torch.equal, ended, after))
    assert ended._fields == after._fields


@pytest.mark.parametrize(
    ("size", "dtype"),
    [*[(size, torch.float32) for size in SIZES], ("odd", torch.float64), ("one", torch.float64)],
)
@pytest.mark.parametrize("cell", cw.cells.names())
def test_step_by_step_is_the_whole_sequence(cell, size, dtype):
    inputs, hidden, batch, layers = SIZES[size]
    layer = make(cell, inputs, hidden, layers, dtype=dtype)
    x = randn(T, batch, inputs, dtype=dtype)
    with torch.no_grad():
        assert_same_bits(layer, x, some_state(layer, batch))


@pytest.mark.parametrize(
    "options",
    [
        {"layer_norm": True},
        {"heads": 2},
        {"zoneout": 0.3},
        {"zoneout": {"c": 0.3}, "recurrent_dropout": 0.4, "dropout": 0.5},
        {"learn_initial_state": True},
        {"grad_clip": 0.1},
        {"precision": "bf16"},
        {"batch_first": True},
    ],
    ids=str,
)
def test_with_every_option(options):
    layer = make("lstm", 3, 4, 2, dtype=torch.float32, **options)
    x = randn(T, 3, 3, dtype=torch.float32)
    with torch.no_grad():
        y, after = layer(x.transpose(0, 1) if layer.batch_first else x)
        y = y.transpose(0, 1) if layer.batch_first else y
        streamed, ended = stream(layer, x)
        assert torch.equal(streamed, y)
        assert all(map(torch.equal, ended, after))


@pytest.mark.parametrize("grad", [True, False])
def test_with_and_without_gradients(grad):
    layer = make("lstm", 3, 4, 2, dtype=torch.float32)
    x = randn(T, 2, 3, dtype=torch.float32)
    y, _ = layer(x)
    with torch.set_grad_enabled(grad):
        assert_same_bits(layer, x)
        streamed, _ = stream(layer, x)
    assert torch.equal(streamed, y)
    assert streamed.requires_grad == grad


def test_gradients_through_steps_are_those_of_the_sequence():
    layer = make("gru_v1", 3, 4, 2)
    x = randn(T, 2, 3).requires_grad_()
    y, _ = layer(x)
    streamed, _ = stream(layer, x)
    weight = torch.randn_like(y)
    whole = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
    steps = torch.autograd.grad((streamed * weight).sum(), [x, *layer.parameters()])
    for one, other in zip(steps, whole, strict=True):
        # The same terms, added up in another order.
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru", "lstm_projection"])
def test_one_sequence_without_a_batch_axis(cell):
    layer = make(cell, 3, 4, 2, dtype=torch.float32)
    x = randn(T, 3, dtype=torch.float32)
    y, after = layer(x)
    streamed, ended = stream(layer, x)
    assert torch.equal(streamed, y)
    assert all(map(torch.equal, ended, after))
    assert ended[0].dim() == 2
    batched, _ = stream(layer, x[:, None])
    assert torch.equal(batched[:, 0], y)


def test_beginning_with_the_initial_state_or_with_none():
    layer = make("lstm", 3, 4, learn_initial_state=True)
    x = randn(2, 3)
    y, state = layer.step(x)
    named, after = layer.step(x, layer.initial_state(batch=2))
    assert torch.equal(y, named)
    assert torch.equal(state.c, after.c)
    alone, _ = layer.step(x[0])
    flat, _ = layer.step(x[0], layer.initial_state())
    assert torch.equal(alone, flat)


def test_a_stream_may_begin_in_the_middle():
    layer = make("slstm", 3, 4, 2, dtype=torch.float32)
    x = randn(T, 2, 3, dtype=torch.float32)
    y, after = layer(x)
    _, between = layer(x[:3])
    rest, ended = stream(layer, x[3:], between)
    assert torch.equal(rest, y[3:])
    assert all(map(torch.equal, ended, after))


def test_a_slice_of_a_larger_tensor_has_the_same_bits():
    """x_t may lie anywhere in memory: aligned or not, with gaps or without."""
    layer = make("lstm", 3, 5, dtype=torch.float32)
    wide = randn(T, 2, 11, dtype=torch.float32)
    for start in range(4):
        x = wide[..., start : start + 3]
        y, _ = layer(x)
        streamed, _ = stream(layer, x)
        assert torch.equal(streamed, y)
        assert torch.equal(layer(x.clone())[0], y)


def test_a_bidirectional_layer_has_no_step():
    layer = make("lstm", 3, 4, bidirectional=True)
    with pytest.raises(cw.InputError, match="step: a bidirectional layer needs the whole sequence"):
        layer.step(randn(2, 3))


@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 3), (), (4,)])
def test_a_step_of_the_wrong_shape(shape):
    layer = make("lstm", 3, 4)
    with pytest.raises(cw.InputError) as caught:
        layer.step(randn(*shape))
    for word in ("x_t", "(batch, 3)", str(tuple(shape))):
        assert word in str(caught.value)


@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("kind", ["step", "one step of torch's layer", "sequence"])
def test_what_a_fused_optimiser_does_is_seen(optimiser, kind):
    if kind == "one step of torch's layer":
        layer = cw.nn.LSTM(3, 4)
        twin = cw.nn.LSTM(3, 4)
    else:
        layer = cw.nn.Recurrent("lstm", 3, 4)
        twin = cw.nn.Recurrent("lstm", 3, 4)
    x = torch.randn(1 if "one" in kind else 5, 2, 3)

    def run(layer):
        with torch.no_grad():
            if kind == "step":
                return layer.step(x[0], layer.initial_state(2))[0]
            return layer(x)[0]

    update = optimiser(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        run(layer), run(layer), run(layer)  # from the second time on, what was prepared runs
        layer(x)[0].sum().backward()
        update.step()
        twin.load_state_dict(layer.state_dict())
        with cw.engine("reference"):
            expected = run(twin)
        assert torch.allclose(run(layer), expected, atol=1e-6)
