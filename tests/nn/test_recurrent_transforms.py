"""Layers under torch's transforms: func, second derivatives, compile, export, copies, autocast."""

import copy
import io
import pickle

import pytest
import torch
from nn.recurrent_cases import close, make, randn, some_state
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, stack_module_state, vmap

import cellwright as cw
from cellwright.lang import next_state, tanh

T, B, I, H = 5, 2, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


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


# --- torch.compile -----------------------------------------------------------------------------


def compiled(layer):
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(layer, fullgraph=True, backend=counter, dynamic=True), counter


def graphs(counter):
    """The compiled graphs in which anything is computed."""
    return [g for g in counter.graphs if any(n.op == "call_function" for n in g.graph.nodes)]


def train_step(layer, run, x, **options):
    """Outputs and gradients of one call."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y, state, *rest = run(x, **options)
    (y.square().sum() + state[0].sum()).backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    return [y.detach(), *(s.detach() for s in state)], gradients | {"x": x.grad}, rest


@pytest.mark.parametrize(
    "options",
    [{"num_layers": 2, "bidirectional": True}, {"batch_first": True, "learn_initial_state": True}],
    ids=str,
)
def test_one_compiled_graph_serves_every_number_of_steps(options):
    layer = make("lstm", I, H, **options)
    run, counter = compiled(layer)
    for steps, batch in ((5, 2), (9, 2), (3, 2), (17, 2), (6, 3)):
        shape = (batch, steps, I) if layer.batch_first else (steps, batch, I)
        x = randn(*shape)
        found, gradients, _ = train_step(layer, run, x)
        expected, of_eager, _ = train_step(layer, layer, x)
        for mine, theirs in zip(found, expected, strict=True):
            close(mine, theirs)
        for name, value in gradients.items():
            close(value, of_eager[name])
        if batch == 2:
            assert len(graphs(counter)) == 1, f"compiled again for {steps} steps"
    for graph in graphs(counter):
        calls = [n for n in graph.graph.nodes if "recurrence" in str(n.target)]
        assert len(calls) == layer.num_layers * layer.num_directions


def test_compiled_with_lengths_resets_and_a_trace():
    layer = make("gru_v1", I, H, zoneout=0.2, layer_norm=True)
    run, counter = compiled(layer)
    for steps in (5, 8):
        x, lengths = randn(steps, B, I), torch.tensor([steps, 2])
        options = {"lengths": lengths, "reset": torch.rand(steps, B) < 0.3, "trace": True}
        found, gradients, (trace,) = train_step(layer, run, x, **options)
        expected, of_eager, (traced,) = train_step(layer, layer, x, **options)
        close(found[0], expected[0])
        close(trace["z"], traced["z"])
        for name, value in gradients.items():
            close(value, of_eager[name])
    assert len(graphs(counter)) == 1


def test_compiled_with_a_given_state_of_any_memory_order():
    layer = make("lstm", I, H)
    run, _ = compiled(layer)
    x, state = randn(T, B, I), some_state(layer, B)
    loose = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in state]
    close(run(x, loose)[0], layer(x, loose)[0])
    close(run(x, loose)[1].c, layer(x, state)[1].c)


def test_compiled_in_training_with_masks_drawn_inside():
    layer = make(
        "lstm", I, 50, 2, dropout=0.2, recurrent_dropout=0.2, zoneout=0.2
    ).train()  # fmt: skip
    run, counter = compiled(layer)
    x = randn(T, B, I)
    first, second = run(x)[0], run(x)[0]
    assert len(graphs(counter)) == 1
    assert first.isfinite().all()
    assert not torch.equal(first, second), "new masks at every call"


def test_a_cell_made_in_a_function_can_be_compiled():
    layer = make(local_cell(), I, H)
    run, _ = compiled(layer)
    x = randn(T, B, I)
    close(run(x)[0], layer(x)[0])


def test_compiled_inside_a_model():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = cw.nn.Recurrent("gru", I, H, 2, bidirectional=True)
            self.head = torch.nn.Linear(2 * H, 2)

        def forward(self, x):
            y, state = self.encoder(x.tanh())
            return self.head(y.relu()), state.h.sum()

    model = Model()
    run, counter = compiled(model)
    x = randn(T, B, I, dtype=torch.float32)
    found, expected = run(x), model(x)
    # float32: the compiled graph may put operations in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(graphs(counter)) == 1


def test_a_step_can_be_compiled():
    layer = make("lstm", I, H, 2)
    run = torch.compile(layer.step, fullgraph=True, backend="aot_eager")
    state, expected_state = layer.initial_state(B), layer.initial_state(B)
    with torch.no_grad():
        for x_t in randn(T, B, I):
            y, state = run(x_t, state)
            expected, expected_state = layer.step(x_t, expected_state)
            close(y, expected)
            close(state.c, expected_state.c)


# --- torch.export ------------------------------------------------------------------------------


def exported(layer, x, **inputs):
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    shapes = {"x": {0: steps, 1: batch}}
    for name, value in inputs.items():
        shapes[name] = [{1: batch} for _ in value] if name == "state" else {0: batch}
    return torch.export.export(layer, (x,), inputs, dynamic_shapes=shapes)


def test_an_exported_program_takes_any_number_of_steps_and_sequences():
    layer = make("lstm", I, H, 2, bidirectional=True)
    program = exported(layer, randn(T, B, I)).module()
    for steps, batch in ((5, 2), (1, 1), (12, 3), (2, 7)):
        x = randn(steps, batch, I)
        y, state = program(x)
        expected, after = layer(x)
        close(y, expected)
        close(state[1], after.c)


def test_an_exported_program_takes_a_state_and_lengths():
    layer = make("gru_v1", I, H)
    state, lengths = [some_state(layer, B).h], torch.tensor([5, 2])
    program = exported(layer, randn(T, B, I), state=state, lengths=lengths).module()
    x, other = randn(7, 3, I), [randn(1, 3, H)]
    found, _ = program(x, state=other, lengths=torch.tensor([7, 0, 4]))
    close(found, layer(x, other, lengths=[7, 0, 4])[0])


def test_an_exported_program_is_saved_and_read_again():
    layer = make("lstm", I, H)
    program = exported(layer, randn(T, B, I))
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    again = torch.export.load(content).module()
    x = randn(9, 4, I)
    close(again(x)[0], layer(x)[0])


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
