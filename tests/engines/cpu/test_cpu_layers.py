"""Layers on the CPU engine: options, directions, odd memory, gradients of gradients."""

import random

import pytest
import torch
from engines.cases import CATALOGUE, assert_same, make_call
from engines.cases import Shape as CallShape
from engines.cpu.cpu_cases import assert_equal
from engines.plain import plain_loop
from engines.test_finite_differences import second_derivatives

import cellwright as cw
from cellwright.engines import run
from cellwright.lang import next_state, sigmoid, tanh
from cellwright.plan import StepOptions

T, B, I, H = 5, 3, 4, 6
FLOAT64 = 1e-11  # as in test_cpu_cells.py, two layers deep


def make(cell="lstm", num_layers=1, input_size=I, hidden_size=H, dtype=torch.float64, **options):
    """A layer whose weights are all far from zero, so that nothing is without effect."""
    torch.manual_seed(1)
    spec = cw.cells.get(cell) if isinstance(cell, str) else cell
    sizes = {"sizes": {name: 4 for name in spec.size_names}} if spec.size_names else {}
    layer = cw.nn.Recurrent(
        spec, input_size, hidden_size, num_layers, dtype=dtype, **sizes, **options
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.6)
    return layer


def randn(*shape, dtype=torch.float64, seed=2):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some_state(layer, batch=B):
    """A state that is nowhere zero."""
    found = layer.initial_state(batch)
    return type(found)(*(0.3 * randn(*each.shape, dtype=each.dtype) + 0.1 for each in found))


def weighted(tensors):
    """A sum in which each number has a weight of its own."""
    return sum(
        (each * randn(*each.shape, dtype=each.dtype, seed=number)).sum()
        for number, each in enumerate(tensors)
    )


def train(layer, x, state=None, *, engine="cpu", loss=weighted, **arguments):
    """Outputs, states, traces and all gradients of a call, by name."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    if state is not None:
        state = type(state)(*(each.detach().requires_grad_() for each in state))
    torch.manual_seed(4)  # the masks of dropout and zoneout
    with cw.engine(engine):
        y, after, *trace = layer(x, state, **arguments)
        traced = trace[0] if trace else {}
        loss([y, *after, *traced.values()]).backward()
    found = {"y": y} | {f"state {name}": v for name, v in after._asdict().items()}
    found |= {f"trace {name}": value for name, value in traced.items()}
    found |= {f"d {name}": p.grad.clone() for name, p in layer.named_parameters()}
    found["d x"] = x.grad
    if state is not None:
        found |= {f"d state {name}": v.grad for name, v in state._asdict().items()}
    return {name: value.detach() for name, value in found.items()}


def compare(layer, x, state=None, **arguments):
    """Both engines."""
    found = train(layer, x, state, **arguments)
    expected = train(layer, x, state, engine="reference", **arguments)
    assert_same(found, expected, FLOAT64)
    return found


LAYERS = {
    "two layers": {"num_layers": 2, "dropout": 0.3},
    "both directions": {"num_layers": 2, "bidirectional": True, "cell": "gru_v1"},
    "batch first": {"batch_first": True, "bidirectional": True},
    "recurrent dropout": {"recurrent_dropout": 0.3, "num_layers": 2, "cell": "gru"},
    "zoneout": {"zoneout": {"h": 0.2, "c": 0.4}, "bidirectional": True},
    "learnt state": {"learn_initial_state": True, "layer_norm": True},
    "heads": {"heads": 2, "grad_clip": 0.2, "cell": "lstm_projection", "num_layers": 2},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer = make(**LAYERS[name])
    x = randn(B, T, I) if layer.batch_first else randn(T, B, I)
    compare(layer, x)


@pytest.mark.parametrize("name", ["zoneout", "learnt state", "heads"])
def test_layers_with_lengths_and_resets(name):
    layer = make(**LAYERS[name])
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = reset[0, 2] = reset[1, 2] = True
    lengths = torch.tensor([T, 0, 3])
    state = None if layer.learn_initial_state else some_state(layer)
    found = compare(layer, randn(T, B, I), state, lengths=lengths, reset=reset, trace=True)
    assert not found["y"][:, 1].any(), "a sequence of no steps has no output"
    assert not found["d x"][3:, 2].any(), "nothing comes back from beyond a sequence's end"


def test_zoneout_differs_between_training_and_evaluation():
    layer = make("lstm", zoneout=0.5)
    training = compare(layer, randn(T, B, I))
    evaluation = compare(layer.eval(), randn(T, B, I))
    assert not torch.equal(training["y"], evaluation["y"])


# --- memory of any kind ------------------------------------------------------------------------


def orders():
    """The same numbers, lying in memory in other ways."""
    x = randn(T, B, I)
    wide = torch.full((T, B, 2 * I), float("nan"), dtype=x.dtype)
    wide[..., 1::2] = x
    return {
        "turned": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "batch first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other": wide[..., 1::2],
        "part of more": torch.cat([torch.full_like(x, torch.nan), x])[T:],
    }


@pytest.mark.parametrize("order", orders())
def test_x_in_any_memory_order(order):
    x = orders()[order]
    layer = make("lstm")
    expected = train(layer, randn(T, B, I))
    assert_equal(train(layer, x), expected, order)


def test_x_whose_rows_are_one():
    layer = make("lstm")
    x = randn(T, 1, I).expand(T, B, I)
    assert_equal(train(layer, x), train(layer, x.clone()), "expanded x")


def test_states_and_gradients_in_any_memory_order():
    layer = make("lstm")
    state = some_state(layer)
    turned = type(state)(*(v.transpose(1, 2).contiguous().transpose(1, 2) for v in state))
    assert not turned.h.is_contiguous()

    def plain(results):
        return sum((each * each).sum() for each in results)

    def odd(results):
        # The same sum; what arrives is turned, and not contiguous.
        return sum((v.transpose(0, -1) * v.transpose(0, -1)).sum() for v in results)

    expected = train(layer, randn(T, B, I), state, loss=plain)
    found = train(layer, randn(T, B, I), turned, loss=odd)
    assert_equal(found, expected, "turned")
    ones = train(layer, randn(T, B, I), state, loss=lambda results: sum(v.sum() for v in results))
    weights = [torch.ones_like(v, memory_format=torch.contiguous_format) for v in (found["y"],)]
    contiguous = train(
        layer, randn(T, B, I), state,
        loss=lambda results: (results[0] * weights[0]).sum() + sum(v.sum() for v in results[1:]),
    )  # fmt: skip
    assert_equal(contiguous, ones, "a gradient with strides of 0")


def test_weights_that_are_not_contiguous():
    layer = make("gru")
    x = randn(T, B, I)
    expected = train(layer, x)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    turned = {
        name: (v.t().contiguous().t() if v.dim() == 2 else torch.stack([v, v], 1)[:, 0])
        for name, v in weights.items()
    }
    turned = {name: value.requires_grad_() for name, value in turned.items()}
    assert not any(value.is_contiguous() for value in turned.values())
    with cw.engine("cpu"):
        y, state = torch.func.functional_call(layer, turned, (x,))
        weighted([y, *state]).backward()
    assert torch.equal(y, expected["y"])
    for name, value in turned.items():
        assert torch.equal(value.grad, expected[f"d {name}"]), name


# --- what needs a gradient ---------------------------------------------------------------------


def test_x_need_not_ask_for_a_gradient():
    layer = make("lstm", num_layers=2)
    expected = train(layer, randn(T, B, I))
    layer.zero_grad()
    x = randn(T, B, I)
    with cw.engine("cpu"):
        y, state = layer(x)
        weighted([y, *state]).backward()
    assert x.grad is None
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter.grad, expected[f"d {name}"]), name


def test_weights_need_not_ask_for_a_gradient():
    layer = make("lstm")
    expected = train(layer, randn(T, B, I))
    layer.zero_grad()
    layer.requires_grad_(False)
    x = randn(T, B, I).requires_grad_()
    with cw.engine("cpu"):
        y, state = layer(x)
        weighted([y, *state]).backward()
    assert torch.equal(x.grad, expected["d x"])
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("part", ["y", "h", "c"])
def test_part_of_the_results_is_used(part):
    def loss(results):
        return weighted(results[["y", "h", "c"].index(part) :][:1])

    compare(make("lstm"), randn(T, B, I), loss=loss)


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_bits_are_the_same(how):
    layer = make("lstm", num_layers=2, bidirectional=True)
    for steps in (1, 4, 7):
        x = randn(steps, B, I)
        with cw.engine("cpu"):
            expected, state = layer(x)
            with how():
                y, after = layer(x)
        assert not y.requires_grad
        assert torch.equal(y, expected)
        assert all(torch.equal(a, b) for a, b in zip(after, state, strict=True))


def test_gradients_may_be_asked_for_again():
    layer = make("gru")
    x = randn(T, B, I).requires_grad_()
    with cw.engine("cpu"):
        y, _ = layer(x)
        wanted = [x, *layer.parameters()]
        first = torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)
        with torch.no_grad():
            layer(randn(T, B, I, seed=8))  # other numbers in the working memory
        second = torch.autograd.grad(y.square().sum(), wanted)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_a_user_may_write_into_the_output():
    """What the backward pass reads is none of what the user holds."""

    def loss(results):
        y, *states = results
        return weighted([2 * y.mul_(0.5), *states])

    layer = make("lstm")
    expected = train(layer, randn(T, B, I))
    found = train(layer, randn(T, B, I), loss=loss)
    assert not torch.equal(found["y"], expected["y"])
    for name in (name for name in expected if name.startswith("d ")):
        assert torch.equal(found[name], expected[name]), name  # halves and doubles are exact


# --- gradients of gradients --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "gru_v1", "layer_norm_lstm"])
def test_second_derivatives(name):
    call = make_call(CATALOGUE[name], StepOptions(trace=True), CallShape(3, 2, 3, 3), seed=11)
    with cw.engine("cpu"):
        first, second = second_derivatives(call, run)
    expected_first, expected_second = second_derivatives(call, plain_loop)
    assert_same(first, expected_first, FLOAT64)
    assert_same(second, expected_second, FLOAT64)
    assert any(value.any() for value in second.values())


def test_a_penalty_on_gradients_is_trained():
    """Double backward through the layer, to its weights."""
    layer = make("lstm", num_layers=2)
    found = {}
    for engine in ("cpu", "reference"):
        x = randn(T, B, I).requires_grad_()
        with cw.engine(engine):
            y, state = layer(x)
            (slope,) = torch.autograd.grad(weighted([y, *state]), [x], create_graph=True)
            gradients = torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()])
        found[engine] = {str(number): each for number, each in enumerate(gradients)}
    assert_same(found["cpu"], found["reference"], FLOAT64)


# --- a cell never seen before ------------------------------------------------------------------


def test_a_cell_never_seen_before():
    number = random.SystemRandom().random()  # no cache has its code

    @cw.cell(state={"h": "hidden", "m": "memory"})
    def never_seen(x, h, m, W, U, A, V, b):
        """Two states of unlike size, a gate from both, a product of a product."""
        gate = sigmoid(W.g @ x + U.g @ h + A.g @ m + b.g)
        new = tanh(W.n @ x + U.n @ (gate * h) + b.n)
        m = number * m + tanh(A.m @ new)
        return next_state(h=h + gate * (new - h) * V.h, m=m, watch={"gate": gate})

    for dtype in (torch.float64, torch.float32):
        layer = cw.nn.Recurrent(never_seen, I, 21, sizes={"memory": 5}, dtype=dtype)
        x = randn(T, B, I, dtype=dtype)
        found = train(layer, x, some_state(layer), trace=True)
        expected = train(layer, x, some_state(layer), engine="reference", trace=True)
        # float32: 6e-8 for each of some 100 roundings in a row.
        assert_same(found, expected, FLOAT64 if dtype == torch.float64 else 1e-5)


def test_the_cpu_engine_is_chosen_for_it():
    layer = make("lstm")
    assert cw.explain(layer, randn(T, B, I)).engine == "cpu"
    assert cw.explain(make("lstm", dtype=torch.bfloat16), randn(T, B, I).bfloat16()).engine != "cpu"


def test_an_input_of_no_units():
    layer = make("elman", input_size=0)
    compare(layer, randn(T, B, 0))
