"""LSTM, GRU and RNN against torch.nn: outputs, states and every gradient, under all options."""

import pytest
import torch
from nn.against_torch import KINDS, assert_close, flat, form, gradients, pair
from torch.nn.utils.rnn import pack_padded_sequence

# torch.nn's own: its fast path has no projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not:UserWarning")

INPUT, HIDDEN = 3, 5

OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "two-layers": {"num_layers": 2},
    "all": {"num_layers": 3, "bidirectional": True, "bias": False, "batch_first": True},
    "batch-first": {"batch_first": True, "num_layers": 2, "bidirectional": True},
}
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def random(*shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def states(module, *lead, dtype):
    """A random hx for a module: (layers x directions, *lead, size) each."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    h = random(count, *lead, module.proj_size or module.hidden_size, dtype=dtype, seed=3)
    if module.mode != "LSTM":
        return h
    return h, random(count, *lead, module.hidden_size, dtype=dtype, seed=4)


def compare(theirs, ours, x, hx=None):
    """The same call of both modules: form, values and gradients of all that has one."""
    leaves = [each.requires_grad_() for each in (*flat(x), *flat(hx))]
    expected, found = theirs(x, hx), ours(x, hx)
    assert form(found) == form(expected)
    assert_close(found, expected)
    assert_close(
        gradients(found, [*leaves, *ours.parameters()]),
        gradients(expected, [*leaves, *theirs.parameters()]),
    )


def test_sequences(kind, options, dtype):
    theirs, ours = pair(kind, INPUT, HIDDEN, **options, dtype=dtype)
    compare(theirs, ours, random(7, 4, INPUT, dtype=dtype))


def test_given_state(kind, options, dtype):
    theirs, ours = pair(kind, INPUT, HIDDEN, **options, dtype=dtype)
    batch = 7 if options.get("batch_first") else 4
    hx = states(theirs, batch, dtype=dtype)
    compare(theirs, ours, random(7, 4, INPUT, dtype=dtype), hx)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 4), (1, 5, 7, 9), (9, 1, 2, 4), (33, 3, 1, 17)])
def test_odd_sizes(kind, sizes):
    steps, batch, inputs, hidden = sizes
    theirs, ours = pair(kind, inputs, hidden, 2, bidirectional=True, dtype=torch.float64)
    compare(theirs, ours, random(steps, batch, inputs, dtype=torch.float64))


@pytest.mark.parametrize("given", [False, True], ids=["zero-state", "given-state"])
def test_one_sequence_without_batch(kind, options, given):
    theirs, ours = pair(kind, INPUT, HIDDEN, **options, dtype=torch.float64)
    hx = states(theirs, dtype=torch.float64) if given else None
    compare(theirs, ours, random(7, INPUT, dtype=torch.float64), hx)


@pytest.mark.parametrize("given", [False, True], ids=["zero-state", "given-state"])
@pytest.mark.parametrize("lengths", [(6, 4, 4, 1), (2, 6, 1, 3)], ids=["sorted", "unsorted"])
def test_packed_sequences(kind, options, lengths, given):
    theirs, ours = pair(kind, INPUT, HIDDEN, **options, dtype=torch.float64)
    x = random(6, 4, INPUT, dtype=torch.float64)
    ordered = lengths == tuple(sorted(lengths, reverse=True))
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=ordered)
    assert (packed.sorted_indices is None) == ordered
    hx = states(theirs, 4, dtype=torch.float64) if given else None
    compare(theirs, ours, packed, hx)


def test_packed_sequences_in_float32(kind):
    theirs, ours = pair(kind, INPUT, HIDDEN, 2, bidirectional=True)
    x = random(6, 4, INPUT, dtype=torch.float32)
    packed = pack_padded_sequence(x, torch.tensor([3, 6, 1, 5]), enforce_sorted=False)
    compare(theirs, ours, packed, states(theirs, 4, dtype=torch.float32))


def test_input_and_state_that_are_not_contiguous(kind):
    theirs, ours = pair(kind, INPUT, HIDDEN, 2, batch_first=True, dtype=torch.float64)
    x = random(INPUT, 7, 8, dtype=torch.float64).permute(2, 1, 0)[::2]
    hx = states(theirs, 4, dtype=torch.float64)
    strided = [each.transpose(0, 2).contiguous().transpose(0, 2) for each in flat(hx)]
    assert not x.is_contiguous() and not strided[0].is_contiguous()
    compare(theirs, ours, x, tuple(strided) if isinstance(hx, tuple) else strided[0])


def test_empty_batch(kind):
    theirs, ours = pair(kind, INPUT, HIDDEN, 2, bidirectional=True)
    compare(theirs, ours, torch.zeros(7, 0, INPUT))


def test_weights_without_gradient(kind):
    theirs, ours = pair(kind, INPUT, HIDDEN, dtype=torch.float64)
    x = random(7, 4, INPUT, dtype=torch.float64).requires_grad_()
    for module in (theirs, ours):
        module.requires_grad_(False)
    assert_close(gradients(ours(x), x), gradients(theirs(x), x))
    with torch.no_grad():
        assert not ours(x)[0].requires_grad


@pytest.mark.parametrize("kind", ["gru", "rnn"])
def test_output_may_be_changed_in_place(kind):
    """As in ``y, _ = gru(x); y += x``; torch.nn.LSTM refuses when it comes to the gradient."""
    theirs, ours = pair(kind, 3, 3, dtype=torch.float64)
    x = random(7, 4, 3, dtype=torch.float64)
    results = []
    for module in (theirs, ours):
        y, _ = module(x)
        y += x
        results.append(gradients(y.relu_(), list(module.parameters())))
    assert_close(results[1], results[0])


def test_state_of_one_number_for_all():
    """A state that is one learnt vector, expanded over layers and batch."""
    theirs, ours = pair("gru", INPUT, HIDDEN, 2, dtype=torch.float64)
    learnt = torch.zeros(HIDDEN, dtype=torch.float64, requires_grad=True)
    x = random(7, 4, INPUT, dtype=torch.float64)
    found, expected = (
        gradients(module(x, learnt.expand(2, 4, HIDDEN)), learnt) for module in (ours, theirs)
    )
    assert_close(found, expected)


def test_inference_mode(kind):
    theirs, ours = pair(kind, INPUT, HIDDEN, dtype=torch.float64)
    with torch.inference_mode():
        x = random(7, 4, INPUT, dtype=torch.float64)
        assert_close(ours(x), theirs(x))


def test_dropout_draws_what_torch_draws(kind):
    """torch.nn drops (T, B, units) at once, from the generator of the device: so do we."""
    options = {"dropout": 0.4, "bidirectional": True, "dtype": torch.float64}
    theirs, ours = pair(kind, INPUT, HIDDEN, 3, **options)
    x = random(7, 4, INPUT, dtype=torch.float64)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(11)
        results.append(module(x))
    assert_close(results[1], results[0])
    theirs.eval(), ours.eval()
    compare(theirs, ours, x)
    assert (results[1][0] - ours(x)[0]).abs().max() > 0.01


def test_dropout_on_packed_sequences_has_the_same_distribution():
    """Outputs of a network that is linear in its dropout masks, so that means can be compared."""
    theirs, ours = pair("rnn-relu", INPUT, 1, 2, dropout=0.5)
    for module in (theirs, ours):
        for name, parameter in module.named_parameters():
            torch.nn.init.constant_(parameter, 0.0 if "hh" in name else 1.0)
    packed = pack_padded_sequence(torch.ones(40, 50, INPUT), torch.full((50,), 40))
    drawn = [module(packed)[0].data.double() - 1 for module in (theirs, ours)]
    for each in drawn:  # 2000 draws of 0 or 2 x 4: five standard errors are 5 * 4 / sqrt(2000)
        assert set(each.unique().tolist()) == {0.0, 8.0}
        assert abs(each.mean().item() - 4.0) < 0.45


def test_dropout_of_everything(kind):
    theirs, ours = pair(kind, INPUT, HIDDEN, 2, dropout=1.0, dtype=torch.float64)
    x = random(7, 4, INPUT, dtype=torch.float64)
    compare(theirs, ours, x)
    compare(theirs, ours, pack_padded_sequence(x.detach(), torch.tensor([7, 5, 5, 2])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(kind, dtype):
    """Rounded after every operation, in another order: a few of bfloat16's steps of 2**-8."""
    theirs, ours = pair(kind, INPUT, HIDDEN, dtype=dtype)
    x = random(5, 4, INPUT, dtype=dtype)
    assert_close(ours(x), theirs(x), limit=4 * torch.finfo(dtype).eps)


# What our layers accept beyond torch.nn's -----------------------------------------------------


def test_lengths_are_those_of_a_packed_sequence(kind):
    _, ours = pair(kind, INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    x, lengths = random(6, 4, INPUT, dtype=torch.float64), torch.tensor([2, 6, 1, 3])
    y, hx = ours(x, lengths=lengths)
    packed, expected = ours(pack_padded_sequence(x, lengths, enforce_sorted=False))
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(packed)
    assert_close([y, hx], [padded, expected])


def test_reset_begins_a_new_sequence(kind):
    _, ours = pair(kind, INPUT, HIDDEN, batch_first=True, dtype=torch.float64)
    x = random(2, 6, INPUT, dtype=torch.float64)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[1, 4] = True
    y, _ = ours(x, reset=reset)
    assert_close(y[0], ours(x[0])[0])
    assert_close(y[1], torch.cat([ours(x[1, :4])[0], ours(x[1, 4:])[0]]))
    assert_close(ours(x[1], reset=reset[1])[0], y[1])


def test_trace_shows_gates_and_states():
    _, ours = pair("lstm", INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
    x = torch.randn(4, 7, INPUT)
    y, (h, c), trace = ours(x, trace=True)
    assert set(trace) == {"h", "c", "i", "f", "g", "o"}
    assert trace["f"].shape == (4, 4, 7, HIDDEN)
    assert torch.equal(y, torch.cat([trace["h"][2], trace["h"][3]], dim=-1))
    for name, last in (("h", h), ("c", c)):
        assert torch.equal(trace[name][0][:, -1], last[0])
        assert torch.equal(trace[name][1][:, 0], last[1])
    assert_close(trace["h"], trace["o"] * trace["c"].tanh())
    alone = ours(x[0], trace=True)[2]["f"]
    assert alone.shape == (4, 7, HIDDEN)
    assert_close(alone, trace["f"][:, 0])
