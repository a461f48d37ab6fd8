"""The drop-in modules under torch's transformations: compiled, exported, mapped, copied, saved."""

import copy
import io
import pickle

import pytest
import torch
from nn.against_torch import CELLS, KINDS, assert_close, flat, form, gradients, pair

import cellwright as cw
from cellwright.errors import InputError

# torch.nn's own: its fast path has no projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not:UserWarning")

EVERY = [*KINDS, *CELLS]


def module_and_input(kind, dtype=torch.float64, seed=0, **options):
    if kind in CELLS:
        return pair(kind, 3, 5, dtype=dtype, seed=seed)[1], torch.randn(4, 3, dtype=dtype)
    _, ours = pair(kind, 3, 5, 2, bidirectional=True, dtype=dtype, seed=seed, **options)
    return ours, torch.randn(6, 4, 3, dtype=dtype)


# --- torch.compile, torch.export ---------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_compiled_as_one_graph(kind):
    """Compiled before it was ever called; forward, backward, and other numbers of steps."""
    torch.compiler.reset()
    ours, x = module_and_input(kind)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for given in (x, x.repeat_interleave(2, dim=0), x[:3]):
        found, expected = compiled(given), ours(given)
        assert_close(found, expected)
        assert_close(
            gradients(found, list(ours.parameters())), gradients(expected, list(ours.parameters()))
        )
    assert form(found) == form(expected)


def test_compiled_by_inductor():
    torch.compiler.reset()
    ours, x = module_and_input("lstm", torch.float32)
    compiled = torch.compile(ours, fullgraph=True)
    assert_close(compiled(x), ours(x))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compiled_with_state_lengths_reset_and_trace(kind):
    torch.compiler.reset()
    ours, x = module_and_input(kind)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():  # torch's compiler warns of an argument that has a history
        _, hx = ours(x)
    more = {
        "lengths": torch.tensor([6, 2, 0, 5]),
        "reset": torch.arange(24).reshape(6, 4) % 5 == 3,
        "trace": True,
    }
    assert_close(compiled(x, hx), ours(x, hx))
    for name, value in more.items():
        assert_close(compiled(x, hx, **{name: value}), ours(x, hx, **{name: value}))
    assert_close(compiled(x, hx, **more), ours(x, hx, **more))


def test_compiled_drops_only_in_training():
    torch.compiler.reset()
    ours, x = module_and_input("gru", dropout=0.9)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert (compiled(x)[0] - compiled(x)[0]).abs().max() > 0.01
    ours.eval()
    assert_close(compiled(x), ours(x))


@pytest.mark.parametrize("kind", EVERY)
def test_exported_with_sizes_left_open(kind):
    ours, x = module_and_input(kind)
    batch = torch.export.Dim("batch")
    free = {0: batch} if kind in CELLS else {0: torch.export.Dim("steps"), 1: batch}
    program = torch.export.export(ours, (x,), dynamic_shapes=(free,))
    other = torch.randn(*([9] if kind in CELLS else [11, 2]), 3, dtype=torch.float64)
    assert_close(program.module()(other), ours(other))
    assert sum("recurrence" in str(node.target) for node in program.graph.nodes) == (
        1 if kind in CELLS else 4
    )


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.*` is deprecated:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",  # torch.nn's modules have them too
)
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru", "lstm-cell"])
def test_traced_for_all_sizes_and_for_gradients(kind, with_gradients):
    ours, x = module_and_input(kind)
    with torch.set_grad_enabled(with_gradients):
        traced = torch.jit.trace(ours, x)
    other = torch.randn(*([9] if kind in CELLS else [11, 2]), 3, dtype=torch.float64)
    found, expected = flat(traced(other)), flat(ours(other))
    assert_close(found, expected)
    weights = list(ours.parameters())
    for each, like in zip(
        torch.autograd.grad([one.square().sum() for one in found], weights),
        torch.autograd.grad([one.square().sum() for one in expected], weights),
        strict=True,
    ):
        assert_close(each, like)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, and inside it
def test_what_takes_other_programs_is_told():
    ours, x = module_and_input("lstm")
    with pytest.raises(InputError, match=r"torch\.jit\.script: .* torch\.export\.export makes"):
        torch.jit.script(torch.nn.Sequential(ours))
    with pytest.raises(InputError, match=r"torch\.onnx\.export: ONNX has no operator"):
        torch.onnx.export(ours, (x,), io.BytesIO(), dynamo=False)


# --- torch.func --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_ensemble_of_weights(kind):
    ours, x = module_and_input(kind)
    members = [module_and_input(kind, seed=seed)[0] for seed in range(1, 4)]
    weights, buffers = torch.func.stack_module_state(members)
    found = torch.func.vmap(lambda w, b: torch.func.functional_call(ours, (w, b), (x,)))(
        weights, buffers
    )
    for index, member in enumerate(members):
        expected = member(x)
        assert_close([each[index] for each in flat(found)], expected)


@pytest.mark.parametrize("kind", EVERY)
def test_gradients_of_each_sample(kind):
    """vmap of grad over the batch, with biases absent: zeros stand in for them."""
    _, ours = pair(kind, 3, 5, bias=False, dtype=torch.float64)
    weights = dict(ours.named_parameters())
    x = torch.randn(4, 3, dtype=torch.float64)

    def loss(weights, row):
        return flat(torch.func.functional_call(ours, weights, (row.unsqueeze(0),)))[0].sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for name, parameter in ours.named_parameters():
        for index in range(4):
            (expected,) = torch.autograd.grad(loss(weights, x[index]), parameter)
            assert_close(each[name][index], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_over_inputs_and_states(kind):
    ours, _ = module_and_input(kind)
    x = torch.randn(3, 6, 2, 3, dtype=torch.float64)
    _, hx = ours(x[0])
    found = torch.func.vmap(ours, (0, None))(x, hx)
    for index in range(3):
        assert_close([each[index] for each in flat(found)], ours(x[index], hx))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # its own
@pytest.mark.parametrize("kind", EVERY)
def test_forward_mode_derivatives(kind):
    """Against torch.nn's reverse mode: its LSTM has no forward mode."""
    theirs, ours = pair(kind, 3, 5, dtype=torch.float64)
    x, along = torch.randn(2, 4, 3, dtype=torch.float64)
    _, found = torch.func.jvp(lambda x: flat(ours(x))[0], (x,), (along,))
    jacobian = torch.autograd.functional.jacobian(lambda x: flat(theirs(x))[0], x)
    assert_close(found, torch.einsum("abij,ij->ab", jacobian, along))


@pytest.mark.parametrize("kind", EVERY)
def test_second_derivatives(kind):
    """The gradient of a gradient's norm, as a gradient penalty needs it, against torch.nn."""
    dtype = torch.float64
    shape = (4, 3) if kind in CELLS else (6, 4, 3)
    seconds = []
    x = torch.randn(*shape, dtype=dtype, requires_grad=True)
    for module in pair(kind, 3, 5, dtype=dtype):
        result = flat(module(x))
        total = sum(each.square().sum() for each in result)
        wanted = [x, *module.parameters()]
        first = torch.autograd.grad(total, wanted, create_graph=True)
        penalty = sum(each.square().sum() for each in first)
        seconds.append(torch.autograd.grad(penalty, wanted))
    assert_close(seconds[1], seconds[0])


# --- copies and files --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_copies_and_files(kind):
    ours, x = module_and_input(kind)
    expected = ours(x)
    stream = io.BytesIO()
    torch.save(ours, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(stream, weights_only=False),
    ):
        assert type(twin) is type(ours) and repr(twin) == repr(ours)
        assert all(p is not q for p, q in zip(twin.parameters(), ours.parameters(), strict=True))
        assert_close(twin(x), expected)


@pytest.mark.parametrize("kind", EVERY)
def test_weights_file_read_safely(kind):
    ours, x = module_and_input(kind)
    stream = io.BytesIO()
    torch.save(ours.state_dict(), stream)
    stream.seek(0)
    twin, _ = module_and_input(kind)
    twin.load_state_dict(torch.load(stream, weights_only=True))
    assert_close(twin(x), ours(x))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "lstm-cell"])
def test_new_weights_are_used(kind):
    """Assigned, or changed in place: nothing of the old ones is remembered."""
    ours, x = module_and_input(kind)
    names = [name for name, _ in ours.named_parameters()]
    ours(x)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(each.abs().max() == 0 for each in flat(ours(x)))
    setattr(ours, names[0], torch.nn.Parameter(torch.ones_like(getattr(ours, names[0]))))
    setattr(ours, names[2], torch.nn.Parameter(torch.ones_like(getattr(ours, names[2]))))
    assert all(each.abs().max() > 0 for each in flat(ours(x))[-1:])


@pytest.mark.parametrize("kind", ["lstm", "gru-cell"])
def test_explain_knows_them(kind):
    ours, x = module_and_input(kind)
    with cw.engine("reference"):
        explained = cw.explain(ours, x)
    assert explained.engine == "reference"
    assert kind.partition("-")[0] in str(explained)
