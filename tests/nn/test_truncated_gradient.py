"""The truncated gradient is that of a loop over time which detaches by hand."""

import pytest
import torch
from nn.recurrent_cases import CELLS, close, make, randn, some_state
from torch import sigmoid, tanh

import cellwright as cw
from cellwright.errors import InputError
from cellwright.ir import topological
from cellwright.plan import StepOptions, build

T, B, I, H = 6, 3, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def lstm(x, s, W, U, b, V):
    h, c = s["h"].detach(), s["c"]
    i, f, o = (sigmoid(W(k, x) + U(k, h) + b(k)) for k in "ifo")
    c = f * c + i * tanh(W("g", x) + U("g", h) + b("g"))
    return {"h": o * tanh(c), "c": c}


def lstm_1997(x, s, W, U, b, V):
    h, c = s["h"].detach(), s["c"]
    i, o = (sigmoid(W(k, x) + U(k, h) + b(k)) for k in "io")
    c = c + i * (4 * sigmoid(W("g", x) + U("g", h) + b("g")) - 2)
    return {"h": o * (2 * sigmoid(c) - 1), "c": c}


def peephole_lstm(x, s, W, U, b, V):
    h, c = s["h"].detach(), s["c"]
    i, f = (sigmoid(W(k, x) + U(k, h) + V(k) * c.detach() + b(k)) for k in "if")
    c = f * c + i * tanh(W("g", x) + U("g", h) + b("g"))
    o = sigmoid(W("o", x) + U("o", h) + V("o") * c.detach() + b("o"))
    return {"h": o * tanh(c), "c": c}


def peephole_lstm_cell_only(x, s, W, U, b, V):
    c = s["c"]
    i, f, o = (sigmoid(W(k, x) + U(k, c.detach()) + b(k)) for k in "ifo")
    c = f * c + i * tanh(W("g", x) + b("g"))
    return {"h": o * tanh(c), "c": c}


def gru(x, s, W, U, b, V):
    h, before = s["h"], s["h"].detach()
    r, z = (sigmoid(W(k, x) + U(k, before) + b(k)) for k in "rz")
    n = tanh(W("n", x) + b("n") + r * (U("n", before) + b("hn")))
    return {"h": (1 - z) * n + z * h}


def gru_v1(x, s, W, U, b, V):
    h, before = s["h"], s["h"].detach()
    r, z = (sigmoid(W(k, x) + U(k, before) + b(k)) for k in "rz")
    n = tanh(W("n", x) + U("n", r * before) + b("n"))  # r learns, though U.n @ cuts h off
    return {"h": z * h + (1 - z) * n}


def lem(x, s, W, U, b, V):
    y, z, before = s["y"], s["z"], s["y"].detach()
    step_z = sigmoid(W("step_z", x) + U("step_z", before) + b("step_z"))
    step_y = sigmoid(W("step_y", x) + U("step_y", before) + b("step_y"))
    z = (1 - step_z) * z + step_z * tanh(W("z", x) + U("z", before) + b("z"))
    return {"y": (1 - step_y) * y + step_y * tanh(W("y", x) + U("y", z) + b("y")), "z": z}


BY_HAND = {
    each.__name__: each
    for each in (lstm, lstm_1997, peephole_lstm, peephole_lstm_cell_only, gru, gru_v1, lem)
}


def run_by_hand(cell, parameters, x, states):
    """Outputs and final states."""

    def product(group):
        return lambda member, v: v @ parameters[f"{group}.{member}"].T

    def vector(group):
        return lambda member: parameters[f"{group}.{member}"]

    names = [each.name for each in cell.states]
    now, outputs = dict(zip(names, states, strict=True)), []
    for x_t in x:
        now = BY_HAND[cell.name](x_t, now, product("W"), product("U"), vector("b"), vector("V"))
        outputs.append(now[names[0]])
    return torch.stack(outputs), [now[name] for name in names]


def gradients_by_hand(layer, x, state, weigh):
    """Outputs and gradients by torch's autograd: of x, the states and every parameter."""
    parameters = {
        p.name: layer.parameter(p.name).detach().clone().requires_grad_()
        for p in layer.cell.parameters
    }
    x = x.clone().requires_grad_()
    entering = [each[0].clone().requires_grad_() for each in state]
    y, ended = run_by_hand(layer.cell, parameters, x, entering)
    weigh(y, ended).backward()
    found = {"x": x.grad} | {name: p.grad for name, p in parameters.items()}
    for each, v in zip(layer.cell.states, entering, strict=True):
        found[each.name] = torch.zeros_like(v) if v.grad is None else v.grad
    return y.detach(), found


def gradients_of_layer(layer, x, state, weigh):
    x = x.clone().requires_grad_()
    state = [each.clone().requires_grad_() for each in state]
    y, ended = layer(x, tuple(state))
    weigh(y, [each[0] for each in ended]).backward()
    found = {"x": x.grad}
    for spec in layer.cell.parameters:
        stored = next(s for s in layer.stored() if spec.name in [m.name for m in s.members])
        rows = getattr(layer, f"{stored.name}_l0").grad
        index = [member.name for member in stored.members].index(spec.name)
        found[spec.name] = rows.chunk(len(stored.members))[index]
    for name, each in zip([s.name for s in layer.cell.states], state, strict=True):
        found[name] = each.grad[0]
    return y.detach(), found


def a_loss():
    """A loss of all outputs and of the final states, with random weights."""
    of_output, of_states = randn(T, B, H), randn(B, H)
    return lambda y, states: (y * of_output).sum() + sum((s * of_states).sum() for s in states)


@pytest.mark.parametrize("save", ["gates", "states", "checkpoints"])
@pytest.mark.parametrize("cell", BY_HAND)
def test_the_gradient_is_that_of_a_loop_that_detaches(cell, save):
    layer = make(cell, I, H, gradient="truncated", save=save)
    x, state, weigh = randn(T, B, I), some_state(layer, B), a_loss()
    y, expected = gradients_by_hand(layer, x, state, weigh)
    output, found = gradients_of_layer(layer, x, state, weigh)
    close(output, y)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        close(value, expected[name])


@pytest.mark.parametrize("cell", ["cec", "mingru", "minlstm"])
def test_a_carousel_alone_has_the_full_gradient(cell):
    found = []
    for gradient in ("full", "truncated"):
        torch.manual_seed(1)
        layer = make(cell, I, H, gradient=gradient)
        x, state, weigh = randn(T, B, I), some_state(layer, B), a_loss()
        found.append(gradients_of_layer(layer, x, state, weigh))
    for name, value in found[1][1].items():
        assert torch.equal(value, found[0][1][name])


@pytest.mark.parametrize("cell", CELLS)
def test_the_numbers_stay_and_every_parameter_learns(cell):
    torch.manual_seed(1)
    full = make(cell, I, H)
    truncated = make(cell, I, H, gradient="truncated")
    truncated.load_state_dict(full.state_dict())
    x = randn(T, B, I)
    y, _ = truncated(x)
    assert torch.equal(y, full(x)[0])
    y.square().sum().backward()
    for name, parameter in truncated.named_parameters():
        assert parameter.grad.any(), name


def test_errors_stay_within_a_step_where_there_is_no_carousel():
    layer = make("elman", I, H, gradient="truncated")
    x = randn(T, B, I).requires_grad_()
    y, _ = layer(x)
    y[-1].sum().backward()
    assert not x.grad[:-1].any()
    assert x.grad[-1].any()


def test_a_matrix_on_the_way_to_the_output_does_not_cut_the_carousel():
    layer = make("lstm_projection", I, H, gradient="truncated")
    x = randn(T, B, I).requires_grad_()
    y, _ = layer(x)
    y[-1].sum().backward()
    assert all(step.any() for step in x.grad)


def test_nothing_is_multiplied_on_the_way_back():
    for cell in ("lstm", "peephole_lstm", "gru", "elman", "slstm"):
        spec = cw.cells.get(cell)
        full, cut = build(spec), build(spec, StepOptions(gradient="truncated"))
        assert cut.forward.next == full.forward.next
        assert cut.forward.saved.keys() <= full.forward.saved.keys()
        operators = {each.op for each in topological(cut.backward.loop.roots)}
        assert "matvec_transposed" not in operators
        assert "stop_gradient" not in operators


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # its own
def test_second_derivatives_and_transforms_see_it():
    layer = make("peephole_lstm", I, H, gradient="truncated")
    x, state, weigh = randn(T, B, I), some_state(layer, B), a_loss()
    parameters = {p.name: layer.parameter(p.name).detach() for p in layer.cell.parameters}

    def loss(v):
        y, ended = layer(v, tuple(state))
        return weigh(y, [each[0] for each in ended])

    def by_hand(v):
        return weigh(*run_by_hand(layer.cell, parameters, v, [each[0] for each in state]))

    def twice(function):
        v = x.clone().requires_grad_()
        (once,) = torch.autograd.grad(function(v), v, create_graph=True)
        return torch.autograd.grad(once.square().sum(), v)[0]

    _, found = gradients_of_layer(layer, x, state, weigh)
    close(torch.func.grad(loss)(x), found["x"])
    close(twice(loss), twice(by_hand))
    direction = randn(T, B, I)
    _, along = torch.func.jvp(loss, (x,), (direction,))
    close(along, (found["x"] * direction).sum())


def test_explain_tells():
    layer = cw.nn.Recurrent("lstm", I, H, gradient="truncated")
    assert "truncated gradient" in str(cw.explain(layer, torch.zeros(T, B, I)))
    with torch.no_grad():
        assert "truncated gradient" not in str(cw.explain(layer, torch.zeros(T, B, I)))
    assert "gradient='truncated'" in repr(layer)


def test_another_word_is_a_mistake():
    with pytest.raises(InputError, match=r"gradient: expected 'full' or 'truncated', got 'cut'"):
        cw.nn.Recurrent("lstm", I, H, gradient="cut")
