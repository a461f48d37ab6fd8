"""Bad input gets one error that names the argument, what was expected and what came."""

import pytest
import torch
from nn.recurrent_cases import make, randn
from torch.nn.utils.rnn import pack_padded_sequence

import cellwright as cw
from cellwright import CellwrightError, InputError
from cellwright.lang import next_state

T, B, I, H = 5, 2, 3, 4
NAN = float("nan")


def new(cell="lstm", input_size=I, hidden_size=H, *others, **options):
    return cw.nn.Recurrent(cell, input_size, hidden_size, *others, **options)


CONSTRUCTION = {
    "hidden_size of zero": (lambda: new(hidden_size=0), ["hidden_size", "0"]),
    "hidden_size below zero": (lambda: new(hidden_size=-2), ["hidden_size", "-2"]),
    "hidden_size a fraction": (lambda: new(hidden_size=2.5), ["hidden_size", "2.5"]),
    "hidden_size a truth value": (lambda: new(hidden_size=True), ["hidden_size", "True"]),
    "hidden_size a text": (lambda: new(hidden_size="4"), ["hidden_size", "'4'"]),
    "input_size below zero": (lambda: new(input_size=-1), ["input_size", "-1"]),
    "input_size None": (lambda: new(input_size=None), ["input_size", "None"]),
    "num_layers of zero": (lambda: new(num_layers=0), ["num_layers", "0"]),
    "num_layers a fraction": (lambda: new(num_layers=1.5), ["num_layers", "1.5"]),
    "heads of zero": (lambda: new(heads=0), ["heads", "0"]),
    "heads that do not divide": (lambda: new(heads=3), ["heads", "3", "hidden", "4"]),
    "heads that do not divide another size": (
        lambda: new("lstm_projection", heads=2, sizes={"projection": 3}),
        ["heads", "2", "projection", "3"],
    ),
    "dropout below zero": (lambda: new(dropout=-0.1), ["dropout", "-0.1", "[0, 1"]),
    "dropout above one": (lambda: new(dropout=1.5), ["dropout", "1.5"]),
    "dropout a text": (lambda: new(dropout="half"), ["dropout", "'half'"]),
    "dropout NaN": (lambda: new(dropout=NAN), ["dropout", "nan"]),
    "recurrent_dropout of one": (lambda: new(recurrent_dropout=1.0), ["recurrent_dropout", "1.0"]),
    "recurrent_dropout below zero": (
        lambda: new(recurrent_dropout=-1), ["recurrent_dropout", "-1"],
    ),
    "zoneout of one": (lambda: new(zoneout=1.0), ["zoneout", "1.0"]),
    "zoneout NaN": (lambda: new(zoneout=NAN), ["zoneout", "nan"]),
    "zoneout of no state": (lambda: new(zoneout={"q": 0.1}), ["zoneout", "'q'", "h, c"]),
    "zoneout of a state, too much": (lambda: new(zoneout={"c": 2}), ["zoneout", "2"]),
    "grad_clip of zero": (lambda: new(grad_clip=0), ["grad_clip", "0"]),
    "grad_clip below zero": (lambda: new(grad_clip=-1.0), ["grad_clip", "-1.0"]),
    "grad_clip NaN": (lambda: new(grad_clip=NAN), ["grad_clip", "nan"]),
    "grad_clip a text": (lambda: new(grad_clip="a"), ["grad_clip", "'a'"]),
    "save unknown": (
        lambda: new(save="all"), ["save", "'gates', 'states' or 'checkpoints'", "'all'"],
    ),
    "save None": (lambda: new(save=None), ["save", "None"]),
    "precision unknown": (lambda: new(precision="fp8"), ["precision", "'fp8'", "bf16"]),
    "dtype of whole numbers": (lambda: new(dtype=torch.int64), ["dtype", "torch.int64"]),
    "dtype complex": (lambda: new(dtype=torch.complex64), ["dtype", "torch.complex64"]),
    "sizes missing": (lambda: new("lstm_projection"), ["projection", "sizes="]),
    "sizes idle": (lambda: new(sizes={"projection": 2}), ["lstm", "'projection'"]),
    "sizes of zero": (
        lambda: new("lstm_projection", sizes={"projection": 0}), ["projection", "0"],
    ),
    "sizes no dict": (lambda: new(sizes=5), ["sizes", "5"]),
    "a cell that the catalogue lacks": (lambda: new("lstn"), ["lstn", "lstm"]),
    "a class in place of a cell": (lambda: new(torch.nn.LSTM), ["cell", "type"]),
    "a function in place of a cell": (lambda: new(lambda x, h: h), ["cell", "function", "@"]),
    "None in place of a cell": (lambda: new(None), ["cell", "NoneType"]),
    "init unknown": (lambda: new(init="glorot"), ["init", "'glorot'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_a_layer_that_cannot_be(case):
    make_it, words = CONSTRUCTION[case]
    with pytest.raises(CellwrightError) as caught:
        make_it()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def lstm(**options):
    return make("lstm", I, H, **options)


def state(*shapes, dtype=torch.float64):
    return tuple(randn(*shape, dtype=dtype) for shape in shapes)


def zeros_of(shape):
    return torch.zeros(shape, dtype=torch.float64)


X = zeros_of((T, B, I))
GOOD = (1, B, H)

CALLS = {
    # x.
    "x of the wrong units": (lambda: lstm()(randn(T, B, 7)), ["x", "3", "(5, 2, 7)"]),
    "x with four axes": (lambda: lstm()(randn(1, T, B, I)), ["x", "axes", "(1, 5, 2, 3)"]),
    "x with one axis": (lambda: lstm()(randn(I)), ["x", "axes", "(3,)"]),
    "x without steps": (lambda: lstm()(randn(0, B, I)), ["x", "steps", "(0, 2, 3)"]),
    "x without sequences": (lambda: lstm()(randn(T, 0, I)), ["x", "batch", "(5, 0, 3)"]),
    "x without steps, batch first": (
        lambda: lstm(batch_first=True)(randn(B, 0, I)), ["x", "steps", "(2, 0, 3)"],
    ),
    "x without sequences, batch first": (
        lambda: lstm(batch_first=True)(randn(0, T, I)), ["x", "batch", "(0, 5, 3)"],
    ),
    "one x without steps": (lambda: lstm()(randn(0, I)), ["x", "steps", "(0, 3)"]),
    "x of another dtype": (
        lambda: lstm()(X.float()), ["x", "torch.float64", "torch.float32"],
    ),
    "x of whole numbers": (lambda: lstm()(X.long()), ["x", "torch.float64", "torch.int64"]),
    "x on another device": (lambda: lstm()(X.to("meta")), ["x", "cpu", "meta"]),
    "x that is no tensor": (lambda: lstm()(X.numpy()), ["x", "tensor", "ndarray"]),
    "x None": (lambda: lstm()(None), ["x", "tensor", "NoneType"]),
    "a sparse x": (lambda: lstm()(X.to_sparse()), ["x", "dense", "torch.sparse_coo"]),
    "a nested x": (
        lambda: lstm()(torch.nested.as_nested_tensor([*X], layout=torch.jagged)),
        ["x", "dense", "nested"],
    ),
    "a packed x of the wrong units": (
        lambda: lstm()(pack_padded_sequence(randn(T, B, 7), [5, 2])), ["x", "3", "7"],
    ),
    "a packed x of another dtype": (
        lambda: lstm()(pack_padded_sequence(X.float(), [5, 2])), ["x", "torch.float32"],
    ),
    # state.
    "a state of the wrong batch": (
        lambda: lstm()(X, state((1, 3, H), (1, 3, H))), ["state.h", "(1, 2, 4)", "(1, 3, 4)"],
    ),
    "a second state of the wrong units": (
        lambda: lstm()(X, state(GOOD, (1, B, 5))), ["state.c", "(1, 2, 4)", "(1, 2, 5)"],
    ),
    "a state of too few layers": (
        lambda: lstm(num_layers=2)(X, state(GOOD, GOOD)), ["state.h", "(2, 2, 4)", "(1, 2, 4)"],
    ),
    "a state without a batch": (
        lambda: lstm()(X, state((1, H), (1, H))), ["state.h", "(1, 2, 4)", "(1, 4)"],
    ),
    "a state with a batch for one sequence": (
        lambda: lstm()(X[:, 0], state(GOOD, GOOD)), ["state.h", "(1, 4)", "(1, 2, 4)"],
    ),
    "a state of another dtype": (
        lambda: lstm()(X, state(GOOD, GOOD, dtype=torch.float32)),
        ["state.h", "torch.float64", "torch.float32"],
    ),
    "a state on another device": (
        lambda: lstm()(X, [s.to("meta") for s in state(GOOD, GOOD)]), ["state.h", "cpu", "meta"],
    ),
    "one state of two": (lambda: lstm()(X, state(GOOD)), ["state", "2", "h, c", "1"]),
    "three states of two": (lambda: lstm()(X, state(GOOD, GOOD, GOOD)), ["state", "2", "3"]),
    "a tensor for two states": (lambda: lstm()(X, randn(*GOOD)), ["state", "2", "h, c", "1"]),
    "a state by the wrong names": (
        lambda: lstm()(X, dict(zip("hq", state(GOOD, GOOD), strict=True))), ["state", "h, c", "q"],
    ),
    "a state that is no tensor": (
        lambda: lstm()(X, (randn(*GOOD), None)), ["state.c", "tensor", "NoneType"],
    ),
    "a state that is a number": (lambda: lstm()(X, 0), ["state", "h, c", "int"]),
    # lengths.
    "lengths with NaN": (
        lambda: lstm()(X, lengths=torch.tensor([3.0, NAN])), ["lengths", "whole", "NaN"],
    ),
    "lengths with NaN in a list": (lambda: lstm()(X, lengths=[3.0, NAN]), ["lengths", "whole"]),
    "fractions of lengths": (
        lambda: lstm()(X, lengths=[3.5, 1.0]), ["lengths", "whole", "float"],
    ),
    "a length beyond the steps": (lambda: lstm()(X, lengths=[5, 6]), ["lengths", "5", "6"]),
    "a length below zero": (lambda: lstm()(X, lengths=[-1, 3]), ["lengths", "negative", "-1"]),
    "too few lengths": (lambda: lstm()(X, lengths=[5]), ["lengths", "(2,)", "(1,)"]),
    "too many lengths": (lambda: lstm()(X, lengths=[5, 5, 5]), ["lengths", "(2,)", "(3,)"]),
    "lengths with two axes": (
        lambda: lstm()(X, lengths=torch.tensor([[5], [5]])), ["lengths", "(2,)", "(2, 1)"],
    ),
    "a single length": (lambda: lstm()(X, lengths=5), ["lengths", "(2,)", "()"]),
    "lengths that are truth values": (
        lambda: lstm()(X, lengths=torch.tensor([True, False])), ["lengths", "torch.bool"],
    ),
    "lengths that are texts": (lambda: lstm()(X, lengths=["5", "5"]), ["lengths", "['5', '5']"]),
    "lengths of one sequence": (lambda: lstm()(X[:, 0], lengths=[5]), ["lengths", "unbatched"]),
    "lengths beside packed": (
        lambda: lstm()(pack_padded_sequence(X, [5, 2]), lengths=[5, 2]), ["lengths", "Packed"],
    ),
    # reset.
    "reset of the wrong shape": (
        lambda: lstm()(X, reset=torch.zeros(T, 3, dtype=torch.bool)), ["reset", "(5, 2)", "(5, 3)"],
    ),
    "reset of the other order": (
        lambda: lstm(batch_first=True)(X.transpose(0, 1), reset=torch.zeros(T, B).bool()),
        ["reset", "(2, 5)", "(5, 2)"],
    ),
    "reset without a batch": (
        lambda: lstm()(X, reset=torch.zeros(T).bool()), ["reset", "(5, 2)", "(5,)"],
    ),
    "reset with a batch for one sequence": (
        lambda: lstm()(X[:, 0], reset=torch.zeros(T, 1).bool()), ["reset", "(5,)", "(5, 1)"],
    ),
    "reset of fractions": (
        lambda: lstm()(X, reset=torch.zeros(T, B)), ["reset", "bool", "torch.float32"],
    ),
    "reset that is a list": (
        lambda: lstm()(X, reset=[[0, 1]] * T), ["reset", "tensor", "list"],
    ),
    # Others.
    "an empty batch of initial states": (
        lambda: lstm().initial_state(0), ["batch", "positive", "0"],
    ),
    "a batch below zero": (lambda: lstm().initial_state(-2), ["batch", "-2"]),
    "a batch that is a fraction": (lambda: lstm().initial_state(1.5), ["batch", "1.5"]),
    "a step without sequences": (lambda: lstm().step(randn(0, I)), ["x_t", "batch"]),
    "a step of another dtype": (
        lambda: lstm().step(X[0].float()), ["x", "torch.float64", "torch.float32"],
    ),
    "a step of NumPy": (lambda: lstm().step(X[0].numpy()), ["x_t", "one step", "ndarray"]),
    "a step with a sparse state": (
        lambda: lstm().step(X[0], (zeros_of(GOOD).to_sparse(), zeros_of(GOOD))),
        ["state.h", "dense", "torch.sparse_coo"],
    ),
    "a step with a state of the wrong batch": (
        lambda: lstm().step(X[0], state((1, 3, H), (1, 3, H))), ["state.h", "(1, 2, 4)"],
    ),
    "a parameter that is not there": (
        lambda: lstm().parameter("U.q"), ["lstm", "'U.q'", "U.i"],
    ),
    "a layer that is not there": (lambda: lstm().parameter("U.i", layer=1), ["layer", "1"]),
    "a direction that is not there": (
        lambda: lstm().parameter("U.i", direction=1), ["direction", "1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_a_call_that_cannot_be(case):
    call, words = CALLS[case]
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    # torch.nn raises the one or the other for the same mistakes.
    assert isinstance(caught.value, (ValueError, RuntimeError))


def test_the_calls_that_the_mistakes_are_made_in_are_right_without_them():
    layer = lstm()
    layer(X, state(GOOD, GOOD), lengths=[5, 0], reset=torch.zeros(T, B).bool())
    layer(X[:, 0], state((1, H), (1, H)), reset=torch.zeros(T).bool())
    lstm(batch_first=True)(X.transpose(0, 1), reset=torch.zeros(B, T).bool())
    layer(pack_padded_sequence(X, [5, 2]))
    layer.step(X[0], state(GOOD, GOOD))
    layer.parameter("U.i")


def test_a_failed_call_leaves_the_layer_as_it_was():
    layer = lstm()
    before, _ = layer(X)
    for case in ("lengths with NaN", "a length beyond the steps"):
        with pytest.raises(InputError):
            CALLS[case][0]()
    with pytest.raises(InputError):
        layer(X, lengths=[9, 9])
    assert torch.equal(layer(X)[0], before)


def test_a_cell_without_parameters_is_told():
    with pytest.raises(CellwrightError) as caught:

        @cw.cell(state="h")
        def halved(x, h):
            return next_state(h=0.5 * h)

        new(halved)(X.float())

    assert "halved" in str(caught.value)
    assert "parameter" in str(caught.value)
