"""Long short-term memory, from the bare carousel to the form that torch.nn.LSTM computes."""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(state=("c",))
def cec(x, c, W):
    """Constant error carousel. Hochreiter & Schmidhuber 1997, Long short-term memory.

    A linear unit with one connection to itself, of weight 1: an error flows back through
    it unchanged, however long ago its cause. No gate, no squashing, no bias (a bias would
    grow with the number of steps).
    """
    g = W.g @ x
    c = c + g
    return next_state(c=c, watch=dict(g=g))


@cell(state=("h", "c"), input_gate="i")
def lstm_1997(x, h, c, W, U, b):
    """LSTM without a forget gate. Hochreiter & Schmidhuber 1997, Long short-term memory.

    Input and output gate around a carousel that never decays. The cell input is squashed
    to [-2, 2] by 4 sigmoid(x) - 2, the cell's output to [-1, 1] by 2 sigmoid(x) - 1. Each
    cell has gates of its own (memory blocks of size 1), and gates see the cells' outputs
    only; for recurrent connections from gate to gate see odyssey_fgr. The paper cuts the
    gradient at the gates, as the layers' option gradient="truncated" does.
    """
    i = sigmoid(W.i @ x + U.i @ h + b.i)
    g = 4 * sigmoid(W.g @ x + U.g @ h + b.g) - 2
    o = sigmoid(W.o @ x + U.o @ h + b.o)
    c = c + i * g
    h = o * (2 * sigmoid(c) - 1)
    return next_state(h=h, c=c, watch=dict(i=i, g=g, o=o))


@cell(
    state=("h", "c"),
    source="Gers, Schmidhuber & Cummins 2000, Learning to forget: continual prediction with LSTM",
    forget_gate="f",
    input_gate="i",
)
def lstm(x, h, c, W, U, b):
    """LSTM with a forget gate.

    The form that torch.nn.LSTM computes: tanh at the cell's input and output, no
    peepholes, gates in the order i, f, g, o. One bias vector a gate, where torch keeps
    two and adds them.
    """
    i = sigmoid(W.i @ x + U.i @ h + b.i)
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    o = sigmoid(W.o @ x + U.o @ h + b.o)
    c = f * c + i * g
    h = o * tanh(c)
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(
    state=("h", "c"),
    source=(
        "Gers, Schraudolph & Schmidhuber 2002, Learning precise timing with LSTM recurrent networks"
    ),
    forget_gate="f",
    input_gate="i",
)
def lstm_no_output_activation(x, h, c, W, U, b):
    """LSTM without output squashing.

    The cell's content leaves through the output gate unsquashed, h = o * c, so that h is
    not bounded. No peepholes here; odyssey_noaf has both.
    """
    i = sigmoid(W.i @ x + U.i @ h + b.i)
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    o = sigmoid(W.o @ x + U.o @ h + b.o)
    c = f * c + i * g
    h = o * c
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(
    state=("h", "c"),
    source=(
        "Gers, Schraudolph & Schmidhuber 2002, Learning precise timing with LSTM recurrent networks"
    ),
    forget_gate="f",
    input_gate="i",
)
def lstm_unsquashed(x, h, c, W, U, b):
    """LSTM without any squashing.

    Cell input and output are linear; only the gates are not. It is peephole_lstm_unsquashed
    without its peepholes, to which the paper compares that cell.
    """
    i = sigmoid(W.i @ x + U.i @ h + b.i)
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    g = W.g @ x + U.g @ h + b.g
    o = sigmoid(W.o @ x + U.o @ h + b.o)
    c = f * c + i * g
    h = o * c
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))
