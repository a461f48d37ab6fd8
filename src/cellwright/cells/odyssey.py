"""The nine LSTMs of the search space odyssey: one vanilla cell, eight with one change each.

The paper writes z for the cell input (g here), y for the output (h), R for the recurrent
matrices (U) and p for the peepholes (V).
"""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(state=("h", "c"), forget_gate="f", input_gate="i")
def odyssey_vanilla(x, h, c, W, U, V, b):
    """Vanilla LSTM (V). Greff et al. 2017, LSTM: a search space odyssey.

    Three gates, peepholes, tanh at the cell's input and output: the same equations as
    peephole_lstm. The other eight differ from it in one thing each.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = g * i + c * f
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = tanh(c) * o
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(state=("h", "c"), forget_gate="f")
def odyssey_nig(x, h, c, W, U, V, b):
    """No input gate (NIG). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM with i = 1.
    """
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = g + c * f
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = tanh(c) * o
    return next_state(h=h, c=c, watch=dict(f=f, g=g, o=o))


@cell(state=("h", "c"), input_gate="i")
def odyssey_nfg(x, h, c, W, U, V, b):
    """No forget gate (NFG). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM with f = 1.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = g * i + c
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = tanh(c) * o
    return next_state(h=h, c=c, watch=dict(i=i, g=g, o=o))


@cell(state=("h", "c"), forget_gate="f", input_gate="i")
def odyssey_nog(x, h, c, W, U, V, b):
    """No output gate (NOG). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM with o = 1.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = g * i + c * f
    h = tanh(c)
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g))


@cell(state=("h", "c"), forget_gate="f", input_gate="i")
def odyssey_niaf(x, h, c, W, U, V, b):
    """No input activation function (NIAF). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM with a linear cell input.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = W.g @ x + U.g @ h + b.g
    c = g * i + c * f
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = tanh(c) * o
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(state=("h", "c"), forget_gate="f", input_gate="i")
def odyssey_noaf(x, h, c, W, U, V, b):
    """No output activation function (NOAF). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM with the cell's output not squashed.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = g * i + c * f
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = c * o
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(state=("h", "c"), input_gate="i")
def odyssey_cifg(x, h, c, W, U, V, b):
    """Coupled input and forget gate (CIFG). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM with f = 1 - i: as much is forgotten as is let in.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = 1 - i
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = g * i + c * f
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = tanh(c) * o
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(state=("h", "c"), forget_gate="f", input_gate="i")
def odyssey_np(x, h, c, W, U, b):
    """No peepholes (NP). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM without peepholes: the same equations as lstm.
    """
    i = sigmoid(W.i @ x + U.i @ h + b.i)
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = g * i + c * f
    o = sigmoid(W.o @ x + U.o @ h + b.o)
    h = tanh(c) * o
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(state=("h", "c", "i", "f", "o"), forget_gate="f", input_gate="i")
def odyssey_fgr(x, h, c, i, f, o, W, U, V, R, b):
    """Full gate recurrence (FGR). Greff et al. 2017, LSTM: a search space odyssey.

    The vanilla LSTM with nine more matrices, from every gate's last value to every gate,
    as in the LSTM of 1997. The gates are states, zero at the start.
    """
    i_pre = W.i @ x + U.i @ h + V.i * c + R.i_to_i @ i + R.f_to_i @ f + R.o_to_i @ o + b.i
    f_pre = W.f @ x + U.f @ h + V.f * c + R.i_to_f @ i + R.f_to_f @ f + R.o_to_f @ o + b.f
    g = tanh(W.g @ x + U.g @ h + b.g)
    o_pre = W.o @ x + U.o @ h + R.i_to_o @ i + R.f_to_o @ f + R.o_to_o @ o + b.o
    i = sigmoid(i_pre)
    f = sigmoid(f_pre)
    c = g * i + c * f
    o = sigmoid(o_pre + V.o * c)
    h = tanh(c) * o
    return next_state(h=h, c=c, i=i, f=f, o=o, watch=dict(g=g))
