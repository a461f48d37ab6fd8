"""Layers under ``torch.compile`` and ``torch.export``: one graph, whatever the number of steps."""

import io

import pytest
import torch
from nn.recurrent_cases import close, make, randn, some_state
from torch._dynamo.testing import CompileCounterWithBackend

import cellwright as cw
from cellwright.lang import next_state, tanh

T, B, I, H = 5, 2, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def local_cell():
    @cw.cell(state="h")
    def of_a_function(x, h, W, U):
        return next_state(h=tanh(W @ x + U @ h))

    return of_a_function


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
    layer.eval()
    close(run(x)[0], layer(x)[0])


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


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.*` is deprecated:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",  # torch.nn's modules have them too
)
def test_traced_with_a_state_that_is_learnt():
    layer = make("gru_v1", I, H, 2, learn_initial_state=True)
    with torch.no_grad():
        layer(randn(T, B, I))  # a quick road is ready, which is not to be traced
        traced = torch.jit.trace(layer, randn(T, B, I))
    x = randn(7, 3, I)
    close(traced(x)[0], layer(x)[0])


def test_an_exported_program_is_saved_and_read_again():
    layer = make("lstm", I, H)
    program = exported(layer, randn(T, B, I))
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    again = torch.export.load(content).module()
    x = randn(9, 4, I)
    close(again(x)[0], layer(x)[0])
