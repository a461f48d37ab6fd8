"""What torch.nn refuses, our modules refuse, with an error that the same handlers catch."""

import math
import re

import numpy as np
import pytest
import torch
from nn.against_torch import assert_refused_alike, pair
from torch.nn.utils.rnn import pack_sequence

import cellwright as cw
from cellwright.errors import InputError, InputTypeError

# torch.nn's own: its fast path has no projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not:UserWarning")

LAYERS = ["LSTM", "GRU", "RNN"]
MODULES = [*LAYERS, "LSTMCell", "GRUCell", "RNNCell"]
BOTH = [torch.nn, cw.nn]


def zeros(*shape, **options):
    return torch.zeros(*shape, **options)


# Label -> (positional, keyword) arguments that torch.nn refuses.
BAD_ARGUMENTS = {
    "input-size-zero": ((0, 4), {}),
    "input-size-negative": ((-1, 4), {}),
    "input-size-float": ((3.0, 4), {}),
    "input-size-text": (("3", 4), {}),
    "input-size-numpy": ((np.int64(3), 4), {}),
    "hidden-size-zero": ((3, 0), {}),
    "hidden-size-negative": ((3, -4), {}),
    "hidden-size-float": ((3, 4.0), {}),
    "num-layers-zero": ((3, 4, 0), {}),
    "num-layers-negative": ((3, 4, -1), {}),
    "num-layers-float": ((3, 4, 1.5), {}),
    "num-layers-text": ((3, 4, "2"), {}),
    "bias-number": ((3, 4), {"bias": 1}),
    "bias-none": ((3, 4), {"bias": None}),
    "bias-numpy": ((3, 4), {"bias": np.bool_(True)}),
    "batch-first-number": ((3, 4), {"batch_first": 1}),
    "dropout-negative": ((3, 4), {"dropout": -0.1}),
    "dropout-above-one": ((3, 4), {"dropout": 1.1}),
    "dropout-bool": ((3, 4), {"dropout": True}),
    "dropout-text": ((3, 4), {"dropout": "0.5"}),
    "dropout-word": ((3, 4), {"dropout": "half"}),
    "dropout-none": ((3, 4), {"dropout": None}),
    "dropout-nan": ((3, 4), {"dropout": math.nan}),
    "dropout-tensor": ((3, 4), {"dropout": torch.tensor(0.5)}),
    "proj-size-negative": ((3, 4), {"proj_size": -1}),
    "proj-size-as-hidden": ((3, 4), {"proj_size": 4}),
    "proj-size-above-hidden": ((3, 4), {"proj_size": 5}),
    "proj-size-float": ((3, 4), {"proj_size": 2.0}),
    "proj-size-bool": ((3, 4), {"proj_size": True}),
    "proj-size-text": ((3, 4), {"proj_size": "2"}),
    "dtype-integer": ((3, 4), {"dtype": torch.int64}),
    "dtype-text": ((3, 4), {"dtype": "float32"}),
    "device-unknown": ((3, 4), {"device": "nonsense"}),
    "device-number": ((3, 4), {"device": 3.4}),
}
BAD_CELL_ARGUMENTS = [
    "input-size-negative", "input-size-float", "input-size-text", "hidden-size-negative",
    "hidden-size-float", "dtype-integer", "dtype-text", "device-unknown", "device-number",
]  # fmt: skip


@pytest.mark.parametrize("label", BAD_ARGUMENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_refuse(name, label):
    arguments, options = BAD_ARGUMENTS[label]
    assert_refused_alike(*(lambda n=n: getattr(n, name)(*arguments, **options) for n in BOTH))


@pytest.mark.parametrize("label", BAD_CELL_ARGUMENTS)
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_refuse(name, label):
    arguments, options = BAD_ARGUMENTS[label]
    assert_refused_alike(*(lambda n=n: getattr(n, name)(*arguments, **options) for n in BOTH))


@pytest.mark.parametrize("given", ["sigmoid", None, True, 3])
def test_rnn_refuses_another_nonlinearity(given):
    assert_refused_alike(*(lambda n=n: n.RNN(3, 4, nonlinearity=given) for n in BOTH))
    assert_refused_alike(*(lambda n=n: n.RNN(3, 4, 1, given) for n in BOTH))
    # torch.nn's cell refuses when it is called; ours refuses at once.
    assert_refused_alike(
        lambda: torch.nn.RNNCell(3, 4, nonlinearity=given)(zeros(2, 3)),
        lambda: cw.nn.RNNCell(3, 4, nonlinearity=given),
    )


@pytest.mark.parametrize("name", MODULES)
def test_unknown_and_missing_arguments(name):
    for namespace in BOTH:
        with pytest.raises(TypeError, match="unexpected keyword"):
            getattr(namespace, name)(3, 4, colour="red")
        with pytest.raises(TypeError, match="missing"):
            getattr(namespace, name)(3)


def h(*lead, size=4, **options):
    return zeros(*lead, size, **options)


def two(*lead, **options):
    return h(*lead, **options), h(*lead, **options)


# Label -> (input, hx of an LSTM, hx of the others); layers of 3 inputs and 4 units.
BAD_CALLS = {
    "no-steps": (zeros(0, 2, 3), None, None),
    "no-steps-no-batch": (zeros(0, 0, 3), None, None),
    "no-steps-unbatched": (zeros(0, 3), None, None),
    "one-axis": (zeros(3), None, None),
    "four-axes": (zeros(5, 2, 3, 3), None, None),
    "units": (zeros(5, 2, 4), None, None),
    "double": (zeros(5, 2, 3, dtype=torch.float64), None, None),
    "integers": (zeros(5, 2, 3, dtype=torch.int64), None, None),
    "list": ([1.0, 2.0], None, None),
    "none": (None, None, None),
    "meta": (zeros(5, 2, 3, device="meta"), None, None),
    "hx-batch": (zeros(5, 2, 3), two(1, 3), h(1, 3)),
    "hx-layers": (zeros(5, 2, 3), two(2, 2), h(2, 2)),
    "hx-units": (zeros(5, 2, 3), two(1, 2, size=5), h(1, 2, size=5)),
    "hx-c-units": (zeros(5, 2, 3), (h(1, 2), h(1, 2, size=5)), h(1, 2, size=5)),
    "hx-unbatched": (zeros(5, 2, 3), two(1), h(1)),
    "hx-batched": (zeros(5, 3), two(1, 1), h(1, 1)),
    "hx-double": (zeros(5, 2, 3), two(1, 2, dtype=torch.float64), h(1, 2, dtype=torch.float64)),
    "hx-meta": (zeros(5, 2, 3), two(1, 2, device="meta"), h(1, 2, device="meta")),
    "hx-other-form": (zeros(5, 2, 3), h(1, 2), two(1, 2)),
    "hx-stacked": (zeros(5, 2, 3), zeros(2, 1, 2, 4), [h(1, 2)]),
    "hx-one": (zeros(5, 2, 3), (h(1, 2),), (h(1, 2),)),
    "hx-three": (zeros(5, 2, 3), (*two(1, 2), h(1, 2)), (*two(1, 2), h(1, 2))),
    "hx-empty": (zeros(5, 2, 3), (), ()),
    "hx-of-none": (zeros(5, 2, 3), (None, None), (None,)),
    "hx-text": (zeros(5, 2, 3), "hc", "h"),
    "hx-number": (zeros(5, 2, 3), 3, 3),
    "packed-units": (pack_sequence([zeros(5, 4), zeros(3, 4)]), None, None),
    "packed-axes": (pack_sequence([zeros(5, 3, 3), zeros(3, 3, 3)]), None, None),
    "packed-numbers": (pack_sequence([zeros(5), zeros(3)]), None, None),
    "packed-double": (pack_sequence([zeros(5, 3), zeros(3, 3)]).double(), None, None),
    "packed-hx-batch": (pack_sequence([zeros(5, 3), zeros(3, 3)]), two(1, 3), h(1, 3)),
    "packed-hx-unbatched": (pack_sequence([zeros(5, 3), zeros(3, 3)]), two(1), h(1)),
}


@pytest.mark.parametrize("label", BAD_CALLS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_calls_of_layers_refused(kind, label):
    x, pair_of_states, state = BAD_CALLS[label]
    hx = pair_of_states if kind == "lstm" else state
    theirs, ours = pair(kind, 3, 4)
    assert_refused_alike(lambda: theirs(x, hx), lambda: ours(x, hx))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_wrong_batch_first_input_is_refused(kind):
    theirs, ours = pair(kind, 3, 4, batch_first=True)
    x, hx = zeros(2, 5, 3), two(1, 5) if kind == "lstm" else h(1, 5)
    assert_refused_alike(lambda: theirs(x, hx), lambda: ours(x, hx))
    empty = zeros(2, 0, 3)
    assert_refused_alike(lambda: theirs(empty), lambda: ours(empty))


BAD_CELL_CALLS = {
    "no-axis": (torch.tensor(1.0), None, None),
    "three-axes": (zeros(2, 2, 3), None, None),
    "units": (zeros(2, 5), None, None),
    "double": (zeros(2, 3, dtype=torch.float64), None, None),
    "integers": (zeros(2, 3, dtype=torch.int64), None, None),
    "list": ([1.0], None, None),
    "none": (None, None, None),
    "meta": (zeros(2, 3, device="meta"), None, None),
    "hx-batch": (zeros(2, 3), two(3), h(3)),
    "hx-batch-of-one": (zeros(2, 3), two(1), h(1)),
    "hx-units": (zeros(2, 3), two(2, size=5), h(2, size=5)),
    "hx-unbatched": (zeros(2, 3), two(), h()),
    "hx-batched": (zeros(3), two(1), h(1)),
    "hx-three-axes": (zeros(2, 3), two(1, 2), h(1, 2)),
    "hx-double": (zeros(2, 3), two(2, dtype=torch.float64), h(2, dtype=torch.float64)),
    "hx-one": (zeros(2, 3), (h(2),), (h(2),)),
    "hx-three": (zeros(2, 3), (*two(2), h(2)), (*two(2), h(2))),
    "hx-other-form": (zeros(2, 3), h(2), two(2)),
    "hx-text": (zeros(2, 3), "hc", "h"),
}


@pytest.mark.parametrize("label", BAD_CELL_CALLS)
@pytest.mark.parametrize("kind", ["lstm-cell", "gru-cell", "rnn-cell"])
def test_calls_of_cells_refused(kind, label):
    x, pair_of_states, state = BAD_CELL_CALLS[label]
    hx = pair_of_states if kind == "lstm-cell" else state
    theirs, ours = pair(kind, 3, 4)
    assert_refused_alike(lambda: theirs(x, hx), lambda: ours(x, hx))


def test_messages_name_the_argument():
    _, lstm = pair("lstm", 3, 4)
    with pytest.raises(InputError, match=r"input: expected 3 units .* got shape \(5, 2, 4\)"):
        lstm(zeros(5, 2, 4))
    with pytest.raises(InputError, match=r"hx\[1\] \(c\): expected shape \(1, 2, 4\) = .*, 5\)"):
        lstm(zeros(5, 2, 3), (h(1, 2), h(1, 2, size=5)))
    with pytest.raises(InputTypeError, match=r"hx: expected a tuple \(h, c\), got Tensor"):
        lstm(zeros(5, 2, 3), h(1, 2))
    with pytest.raises(InputError, match="proj_size: has to be smaller than hidden_size, 4; got 4"):
        cw.nn.LSTM(3, 4, proj_size=4)


def test_mistakes_with_what_torch_does_not_have():
    _, gru = pair("gru", 3, 4)
    packed = pack_sequence([zeros(5, 3), zeros(3, 3)])
    for call, message in [
        (lambda: gru(packed, lengths=torch.tensor([5, 3])), "lengths: a PackedSequence has"),
        (lambda: gru(zeros(5, 3), lengths=torch.tensor([5])), "lengths: one sequence alone"),
        (lambda: gru(zeros(5, 2, 3), lengths=torch.tensor([6, 5])), "lengths: x has 5 steps"),
        (lambda: gru(zeros(5, 2, 3), lengths=torch.tensor([-1, 5])), "lengths: .* negative"),
        (lambda: gru(zeros(5, 2, 3), reset=zeros(2, 5).bool()), "reset: expected shape"),
        (lambda: gru(zeros(5, 3), reset=zeros(5, 1).bool()), "reset: expected shape"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("shape", [(1,), (12,), (2, 8)])
@pytest.mark.parametrize("name", ["bias_ih", "bias_hh"])
def test_a_bias_that_would_be_broadcast_is_refused(name, shape, gradients):
    _, lstm = pair("lstm", 3, 4)
    _, cell = pair("lstm-cell", 3, 4)
    setattr(lstm, f"{name}_l0", torch.nn.Parameter(zeros(shape)))
    setattr(cell, name, torch.nn.Parameter(zeros(shape)))
    message = rf"{name}\w*: expected shape \(16,\), got {re.escape(str(shape))}"
    with torch.set_grad_enabled(gradients):
        for call in (
            lambda: lstm(zeros(5, 2, 3)),
            lambda: lstm(zeros(1, 2, 3), (h(1, 2), h(1, 2))),
            lambda: cell(zeros(2, 3)),
        ):
            with pytest.raises(InputError, match=message):
                call()
