"""What the tests of the drop-in modules share: pairs of modules, and what is alike."""

import pytest
import torch

import cellwright as cw
from cellwright.errors import InputError

KINDS = {
    "lstm": ("LSTM", {}),
    "lstm-projected": ("LSTM", {"proj_size": 3}),
    "gru": ("GRU", {}),
    "rnn": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
}
CELLS = {
    "lstm-cell": ("LSTMCell", {}),
    "gru-cell": ("GRUCell", {}),
    "rnn-cell": ("RNNCell", {}),
    "rnn-cell-relu": ("RNNCell", {"nonlinearity": "relu"}),
}

# Sums of some hundred terms in another order, relative to the largest number where that is above 1:
# a few units in the last place, which are 1.2e-7 and 2.2e-16.
LIMIT = {torch.float32: 1e-6, torch.float64: 1e-12}


def pair(kind, *arguments, seed=0, **options):
    """torch.nn's module and ours, each initialised from the same seed."""
    name, own = {**KINDS, **CELLS}[kind]
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, name)(*arguments, **own, **options)
    torch.manual_seed(seed)
    ours = getattr(cw.nn, name)(*arguments, **own, **options)
    return theirs, ours


def flat(result):
    """The tensors of a result in order; a PackedSequence counts as its data."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, torch.nn.utils.rnn.PackedSequence):
        return [result.data]
    if isinstance(result, dict):
        return flat(list(result.values()))
    return [] if result is None else [tensor for part in result for tensor in flat(part)]


def form(result):
    """The types, shapes, dtypes and strides of a result, and how a packed one is packed."""
    if isinstance(result, torch.nn.utils.rnn.PackedSequence):
        rest = [None if each is None else each.tolist() for each in result[1:]]
        return ["packed", form(result.data), *rest]
    if isinstance(result, torch.Tensor):
        return tuple(result.shape), result.dtype, result.stride()
    return type(result), [form(part) for part in result]


def gradients(result, wanted, seed=1):
    """Gradients of a weighted sum of all numbers of ``result``; the weights are random."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for each in flat(result):
        weights = torch.randn(each.shape, generator=generator, dtype=torch.float64)
        total = total + (each * weights.to(each.dtype)).sum()
    return torch.autograd.grad(total, wanted)


def assert_close(ours, theirs, limit=None):
    """Compare all tensors of two results."""
    ours, theirs = flat(ours), flat(theirs)
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.shape == two.shape
        assert one.dtype == two.dtype
        if one.numel():
            difference = (one - two).abs().max().item()
            scale = max(1.0, two.abs().max().item())
            allowed = (limit or LIMIT[one.dtype]) * scale
            assert difference <= allowed, f"they differ by {difference:.2e}, over {allowed:.2e}"


def assert_refused_alike(theirs, ours):
    """torch.nn raises, and we raise an error of our own that its kind of handler catches."""
    with pytest.raises(Exception) as expected:
        theirs()
    with pytest.raises(InputError) as found:
        ours()
    for kind in (ValueError, RuntimeError, TypeError):
        if isinstance(expected.value, kind):
            assert isinstance(found.value, kind)
    assert str(found.value)
