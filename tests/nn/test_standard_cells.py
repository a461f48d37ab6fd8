"""LSTMCell, GRUCell and RNNCell against torch.nn: results and every gradient."""

import pytest
import torch
from nn.against_torch import CELLS, assert_close, flat, form, gradients, pair


@pytest.fixture(params=CELLS)
def kind(request):
    return request.param


def compare(theirs, ours, x, hx=None):
    """The same call of both cells: form, values and gradients of all that has one."""
    leaves = [each.requires_grad_() for each in (x, *flat(hx))]
    expected, found = theirs(x, hx), ours(x, hx)
    assert form(found) == form(expected)
    assert_close(found, expected)
    assert_close(
        gradients(found, [*leaves, *ours.parameters()]),
        gradients(expected, [*leaves, *theirs.parameters()]),
    )


def state(kind, *shape, dtype):
    drawn = [torch.randn(*shape, 5, dtype=dtype) for _ in range(2)]
    return tuple(drawn) if kind == "lstm-cell" else drawn[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zero-state", "given-state"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("batch", [(4,), (1,), (0,), ()], ids=["4", "1", "0", "unbatched"])
def test_cells(kind, batch, bias, given, dtype):
    theirs, ours = pair(kind, 3, 5, bias=bias, dtype=dtype)
    hx = state(kind, *batch, dtype=dtype) if given else None
    compare(theirs, ours, torch.randn(*batch, 3, dtype=dtype), hx)


@pytest.mark.parametrize("sizes", [(1, 1), (7, 1), (2, 17)])
def test_odd_sizes(kind, sizes):
    theirs, ours = pair(kind, *sizes, dtype=torch.float64)
    compare(theirs, ours, torch.randn(3, sizes[0], dtype=torch.float64))


def test_no_input(kind):
    """torch.nn's cells take 0 inputs: the state runs on by itself."""
    theirs, ours = pair(kind, 0, 5, dtype=torch.float64)
    x, hx = torch.zeros(4, 0, dtype=torch.float64), state(kind, 4, dtype=torch.float64)
    assert_close(ours(x, hx), theirs(x, hx))


def test_not_contiguous(kind):
    theirs, ours = pair(kind, 3, 5, dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64).T[::2]
    compare(theirs, ours, x, state(kind, 4, dtype=torch.float64))


def test_a_loop_of_cells(kind):
    theirs, ours = pair(kind, 3, 5, dtype=torch.float64)
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    results = []
    for cell in (theirs, ours):
        hx = None
        for x_t in x:
            hx = cell(x_t, hx)
        results.append(hx)
    assert_close(results[1], results[0])
    assert_close(
        gradients(results[1], list(ours.parameters())),
        gradients(results[0], list(theirs.parameters())),
    )


def test_a_list_is_a_pair_of_states():
    theirs, ours = pair("lstm-cell", 3, 5)
    hx = list(state("lstm-cell", 4, dtype=torch.float32))
    x = torch.randn(4, 3)
    assert_close(ours(x, hx), theirs(x, hx))
    assert type(ours(x, hx)) is tuple
