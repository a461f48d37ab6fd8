"""Populations of layers under torch.func against their members, one by one, on each engine."""

import pytest
import torch
from nn.recurrent_cases import close, make, randn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

import cellwright as cw
from cellwright.lang import next_state, sigmoid, tanh

N, T, B, I, H = 4, 5, 3, 3, 5


@cw.cell(state=("h", "m"))
def own_cell(x, h, m, W, U, v, b):
    """Two stages, a value of a parameter alone, a state that no matrix reads."""
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    n = tanh(W.n @ x + U.n @ (r * h) + sigmoid(v.decay) * m)
    return next_state(h=r * h + (1 - r) * n, m=0.5 * m + n)


def standard(kind, *sizes, dtype=torch.float64, **options):
    return getattr(cw.nn, kind)(*sizes, dtype=dtype, **options)


KINDS = {
    "LSTM": lambda **o: standard("LSTM", I, H, **o),
    "GRU": lambda **o: standard("GRU", I, H, **o),
    "RNN": lambda **o: standard("RNN", I, H, **o),
    "own cell": lambda **o: make(own_cell, I, H, **o),
    "norm, heads": lambda **o: make("lstm", I, 6, layer_norm=True, heads=2, grad_clip=0.3, **o),
}
OPTIONS = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
own_warning = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's
every_option = pytest.mark.parametrize("option", OPTIONS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def flat(result):
    """All tensors of a layer's result, states and traces included."""
    return torch.utils._pytree.tree_leaves(result)


def ensemble(kind, option="plain", count=N, **more):
    """Members, and their parameters stacked as tensors of their own."""
    members = [KINDS[kind](**OPTIONS[option], **more) for _ in range(count)]
    parameters, _ = stack_module_state(members)
    return members, {name: value.detach() for name, value in parameters.items()}


def call(layer, parameters, x, *state, **options):
    """The layer with other weights."""
    return functional_call(layer, parameters, (x, *state), options)


def total(result):
    """A number in which every result counts, each in its own way."""
    return sum((number + 1) * each.square().sum() for number, each in enumerate(flat(result)))


def same(found, expected):
    """The same bits on the CPU engine; torch's products, many at once, may be other sums."""
    if cw.explain(make("gru", dtype=torch.float32), torch.zeros(1, 1, 3)).engine == "cpu":
        assert torch.equal(found, expected)
    else:
        close(found, expected)


# --- values ------------------------------------------------------------------------------------


@every_kind
@every_option
def test_weights_of_their_own(kind, option):
    members, parameters = ensemble(kind, option)
    x = randn(T, B, I)
    found = flat(vmap(lambda p: call(members[0], p, x))(parameters))
    for number, member in enumerate(members):
        for value, expected in zip(found, flat(member(x)), strict=True):
            same(value[number], expected)


@every_kind
@pytest.mark.parametrize("steps, batch", [(T, B), (1, B), (T, 1)])
def test_weights_inputs_and_states_of_their_own(kind, steps, batch):
    members, parameters = ensemble(kind)
    x = randn(N, steps, batch, I)
    before = [member(x[number])[1] for number, member in enumerate(members)]
    before = torch.utils._pytree.tree_map(lambda *each: torch.stack(each).detach(), *before)
    found = flat(vmap(lambda p, x, s: call(members[0], p, x, s))(parameters, x, before))
    for number, member in enumerate(members):
        state = torch.utils._pytree.tree_map(lambda each, n=number: each[n], before)
        for value, expected in zip(found, flat(member(x[number], state)), strict=True):
            same(value[number], expected)


@pytest.mark.parametrize("kind", ["LSTM", "own cell"])
def test_lengths_resets_and_traces(kind):
    """Of their own too: lengths and resets may differ from member to member."""
    members, parameters = ensemble(kind, "two layers, both directions")
    x, reset = randn(T, B, I), torch.rand(N, T, B) < 0.3
    lengths = torch.randint(0, T + 1, (N, B))

    def outputs(p, lengths, reset):
        return call(members[0], p, x, lengths=lengths, reset=reset, trace=True)

    found = flat(vmap(outputs)(parameters, lengths, reset))
    for number, member in enumerate(members):
        options = {"lengths": lengths[number], "reset": reset[number], "trace": True}
        for value, expected in zip(found, flat(member(x, **options)), strict=True):
            same(value[number], expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_only_the_input_differs(axis):
    layer = KINDS["GRU"]()
    x = randn(N, T, B, I)
    y, state = vmap(layer, in_dims=axis, out_dims=axis)(x.movedim(0, axis))
    for number in range(N):
        expected, after = layer(x[number])
        same(y.select(axis, number), expected)
        same(state.select(axis, number), after)


def test_only_some_of_the_weights_differ():
    layer = KINDS["LSTM"]()
    shared = {name: value.detach() for name, value in layer.named_parameters()}
    biases = randn(N, 4 * H)
    x = randn(T, B, I)

    def loss(bias, others):
        return total(call(layer, {**others, "bias_hh_l0": bias}, x))

    found = vmap(grad(loss, argnums=(0, 1)), (0, None))(biases, shared)
    for number in range(N):
        expected = grad(loss, argnums=(0, 1))(biases[number], shared)
        same(found[0][number], expected[0])
        for name, value in expected[1].items():
            same(found[1][name][number], value)


def test_axes_in_other_places():
    members, parameters = ensemble("LSTM")
    x = randn(T, B, N, I)
    turned = {name: value.movedim(0, -1) for name, value in parameters.items()}
    y = vmap(lambda p, x: call(members[0], p, x)[0], (-1, 2), 1)(turned, x)
    for number, member in enumerate(members):
        same(y[:, number], member(x[:, :, number])[0])


@pytest.mark.parametrize("count", [0, 1])
def test_one_member_or_none(count):
    members, parameters = ensemble("GRU", count=1)
    parameters = {name: value[:count] for name, value in parameters.items()}
    x = randn(T, B, I)
    y = vmap(lambda p: call(members[0], p, x)[0])(parameters)
    assert y.shape == (count, T, B, H)
    for each in y:
        same(each, members[0](x)[0])
    found = vmap(grad(lambda p: call(members[0], p, x)[0].sum()))(parameters)
    assert all(value.shape == parameters[name].shape for name, value in found.items())


def test_in_parts():
    members, parameters = ensemble("LSTM")
    x = randn(T, B, I)

    def outputs(p):
        return call(members[0], p, x)[0]

    same(vmap(outputs, chunk_size=3)(parameters), vmap(outputs)(parameters))


def test_populations_of_populations():
    members, parameters = ensemble("LSTM", count=6)
    x = randn(2, T, B, I)
    nested = {name: value.unflatten(0, (2, 3)) for name, value in parameters.items()}

    def one(p, x):
        return total(call(members[0], p, x))

    outputs = vmap(vmap(lambda p, x: call(members[0], p, x)[0], (0, None)))(nested, x)
    crossed = vmap(vmap(lambda p, x: call(members[0], p, x)[0], (None, 0)), (0, None))(
        parameters, x
    )
    gradients = vmap(vmap(grad(one), (0, None)))(nested, x)
    for number, member in enumerate(members):
        row, column = divmod(number, 3)
        same(outputs[row, column], member(x[row])[0])
        for which in range(2):
            same(crossed[number, which], member(x[which])[0])
        expected = grad(one)({n: v[number] for n, v in parameters.items()}, x[row])
        for name, value in expected.items():
            same(gradients[name][row, column], value)


# --- gradients ---------------------------------------------------------------------------------


@every_kind
@every_option
def test_gradients_of_every_member(kind, option):
    """vmap of grad, grad of vmap, and autograd outside of vmap."""
    members, parameters = ensemble(kind, option)
    x = randn(N, T, B, I)

    def loss(p, x):
        return total(call(members[0], p, x))

    inside = vmap(grad(loss, argnums=(0, 1)))(parameters, x)
    outside = grad(lambda p, x: vmap(loss)(p, x).sum(), argnums=(0, 1))(parameters, x)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    x_leaf = x.clone().requires_grad_()
    vmap(loss)(leaves, x_leaf).sum().backward()
    for number, member in enumerate(members):
        member.zero_grad()
        alone = x[number].clone().requires_grad_()
        total(member(alone)).backward()
        for d_x in (inside[1], outside[1], x_leaf.grad):
            same(d_x[number], alone.grad)
        for name, parameter in member.named_parameters():
            for found in (inside[0][name], outside[0][name], leaves[name].grad):
                same(found[number], parameter.grad)


def test_single_precision():
    members, parameters = ensemble("LSTM", dtype=torch.float32)
    x = randn(N, T, B, I, dtype=torch.float32)

    def loss(p, x):
        return total(call(members[0], p, x))

    found = vmap(grad(loss))(parameters, x)
    for number, member in enumerate(members):
        total(member(x[number])).backward()
        for name, parameter in member.named_parameters():
            # Sums of some fifty single-precision numbers, in another order on one engine.
            torch.testing.assert_close(found[name][number], parameter.grad, rtol=1e-5, atol=1e-5)


def test_gradients_for_each_sample():
    """The same weights for all, a gradient for each: of weights, and of the input alone."""
    layer = KINDS["own cell"]()
    x = randn(T, N, I)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(p, sample):
        return total(call(layer, p, sample.unsqueeze(1)))

    found = vmap(grad(loss, argnums=(0, 1)), (None, 1), (0, 1))(parameters, x)
    of_x = vmap(grad(loss, argnums=1), (None, 1), 1)(parameters, x)
    for number in range(N):
        expected = grad(loss, argnums=(0, 1))(parameters, x[:, number])
        same(found[1][:, number], expected[1])
        same(of_x[:, number], expected[1])
        for name, value in expected[0].items():
            same(found[0][name][number], value)


@pytest.mark.parametrize("kind", ["LSTM", "own cell"])
def test_jacobians_of_every_member(kind):
    members, parameters = ensemble(kind)
    x = randn(2, 1, I)
    found = vmap(lambda p: jacrev(lambda x: call(members[0], p, x)[0])(x))(parameters)
    for number, member in enumerate(members):
        expected = torch.autograd.functional.jacobian(lambda x, m=member: m(x)[0], x)
        close(found[number], expected)


@pytest.mark.parametrize("kind", ["GRU", "own cell"])
def test_second_derivatives_of_every_member(kind):
    """A gradient penalty: derivatives of derivatives, with every transform on the outside once."""
    members, parameters = ensemble(kind)
    x = randn(T, B, I)

    def penalty(p):
        first = grad(lambda x: total(call(members[0], p, x)))(x)
        return first.square().sum()

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    vmap(penalty)(leaves).sum().backward()
    inside = vmap(grad(penalty))(parameters)
    outside = grad(lambda p: vmap(penalty)(p).sum())(parameters)
    for number, member in enumerate(members):
        alone = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(total(member(alone)), [alone], create_graph=True)
        names, own = zip(*member.named_parameters(), strict=True)
        expected = torch.autograd.grad(first.square().sum(), own)
        for name, value in zip(names, expected, strict=True):
            for found in (inside[name], outside[name], leaves[name].grad):
                close(found[number], value, 1e-10)  # thousands, of many products of slopes


def test_a_derivative_with_respect_to_everything_twice():
    """States, weights and input at once, from outputs and traces."""

    @cw.cell(state="h")
    def gated(x, h, W, U):
        a = W @ x + U @ h
        return next_state(h=cw.where(a > 0, tanh(a), 0.1 * a), watch={"a": a})

    layers = [make(gated, I, H) for _ in range(2)]
    parameters, _ = stack_module_state(layers)
    parameters = {name: value.detach() for name, value in parameters.items()}
    x, h = randn(T, B, I), randn(1, B, H)

    def loss(p, x, h):
        y, _, trace = call(layers[0], p, x, (h,), trace=True)
        return y.square().sum() + trace["a"].square().sum()

    def along(p, x, h):
        first = grad(loss, argnums=(0, 1, 2))(p, x, h)
        return sum(each.square().sum() for each in flat(first))

    found = vmap(grad(along, argnums=(0, 1, 2)), (0, None, None))(parameters, x, h)
    for number in range(2):
        own = {name: value[number] for name, value in parameters.items()}
        expected = grad(along, argnums=(0, 1, 2))(own, x, h)
        for value, other in zip(flat(found), flat(expected), strict=True):
            close(value[number], other, 1e-10)


@own_warning
def test_forward_mode_goes_through_torch():
    members, parameters = ensemble("LSTM")
    x, along = randn(T, B, I), randn(T, B, I)

    def slope(p):
        return jvp(lambda x: call(members[0], p, x)[0], (x,), (along,))[1]

    found = vmap(slope)(parameters)
    for number, member in enumerate(members):
        _, expected = torch.autograd.functional.jvp(lambda x, m=member: m(x)[0], x, along)
        close(found[number], expected)


# --- randomness, explanations ------------------------------------------------------------------


def test_masks_follow_the_randomness_of_vmap():
    members, parameters = ensemble("own cell", count=1, recurrent_dropout=0.5)
    layer = members[0].train()
    parameters = {name: value.expand(N, *value.shape[1:]) for name, value in parameters.items()}
    x = randn(T, B, I)

    def outputs(p):
        return call(layer, p, x)[0]

    y = vmap(outputs, randomness="same")(parameters)
    assert torch.equal(y[0], y[1])
    y = vmap(outputs, randomness="different")(parameters)
    assert not torch.equal(y[0], y[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(outputs)(parameters)


class Explained(torch.nn.Module):
    """A layer that tells what will run it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.told = layer, []

    def forward(self, x):
        self.told.append(cw.explain(self.layer, x))
        return self.layer(x)[0]


@own_warning
def test_explain_knows_populations():
    models = [Explained(KINDS["LSTM"]()) for _ in range(N)]
    parameters, _ = stack_module_state(models)
    x = randn(T, B, I)
    told = models[0].told
    vmap(lambda p: functional_call(models[0], p, (x,)))(parameters)
    vmap(models[0])(x.expand(2, T, B, I))
    jvp(models[0], (x,), (x,))
    population, batch, forward_mode = told
    assert {each.engine for each in told[:2]} == {cw.explain(models[0].layer, x).engine}
    assert forward_mode.engine == "reference"
    if population.engine == "cpu":
        assert f"a population: {N} sets of weights" in population.reason
        assert "population" not in batch.reason
        assert "forward-mode" in forward_mode.reason
    else:
        assert "torch.func" in population.reason


@pytest.mark.parametrize("save", ["states", "checkpoints"])
def test_members_may_save_less_than_their_gates(save):
    members = [make("lstm", I, H, dtype=torch.float64, save=save) for _ in range(N)]
    weights, _ = stack_module_state(members)
    x = randn(T, B, I)

    def loss(own):
        return functional_call(members[0], own, (x,))[0].square().sum()

    found = vmap(grad(loss))(weights)
    for number, member in enumerate(members):
        member(x)[0].square().sum().backward()
        for name, weight in member.named_parameters():
            close(found[name][number], weight.grad)


# --- again and again, without gradients ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "own cell"])
@pytest.mark.parametrize("option", ["plain", "batch first"])
@pytest.mark.parametrize("shared", ["nothing", "x", "a weight"])
@torch.no_grad()
def test_calls_that_come_again_read_everything_anew(kind, option, shared):
    (layer, *_), _ = ensemble(kind, option)
    axis = None if shared == "x" else 0
    results = []
    for turn in range(4):
        members, parameters = ensemble(kind, option)
        axes = dict.fromkeys(parameters, 0)
        if shared == "a weight":
            name = next(iter(parameters))
            parameters[name], axes[name] = parameters[name][0].clone(), None
            for member in members:
                member.get_parameter(name).copy_(parameters[name])
        if turn == 3:  # in another order in memory
            parameters = {n: each.mT.contiguous().mT if each.dim() > 2 else each
                          for n, each in parameters.items()}  # fmt: skip
        x = randn(T, B, I) if shared == "x" else randn(N, T, B, I)
        state = layer(x if shared == "x" else x[0])[1]
        for entering in ((), (torch.utils._pytree.tree_map(torch.randn_like, state),)):

            def one(weights, x, entering=entering):
                return call(layer, weights, x, *entering)

            found = flat(vmap(one, (axes, axis))(parameters, x))
            expected = [flat(m(x if axis is None else x[k], *entering))
                        for k, m in enumerate(members)]  # fmt: skip
            results.append((found, expected))
    for found, expected in results:  # at the end: no call writes where another has
        for number, member in enumerate(expected):
            for value, right in zip(found, member, strict=True):
                same(value[number], right)


@torch.no_grad()
def test_what_does_not_fit_is_refused_after_calls_that_did():
    (layer, *_), parameters = ensemble("LSTM")
    x = randn(N, T, B, I)
    for _ in range(3):
        vmap(lambda p, x: call(layer, p, x))(parameters, x)
    name = "weight_hh_l0"
    wrong = parameters | {name: parameters[name][..., :-1].contiguous()}
    for weights, given, words in (
        (wrong, x, name),
        (parameters, x[..., :-1], "input_size"),
        (parameters, x.float(), "float64"),
    ):
        with pytest.raises(cw.CellwrightError, match=words):
            vmap(lambda p, x: call(layer, p, x))(weights, given)
