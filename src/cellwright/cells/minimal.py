"""Cells pared down: fewer gates, or a recurrence without a matrix."""

from cellwright.lang import cell, next_state, relu, sigmoid, tanh


@cell(
    state=("h",),
    source="van der Westhuizen & Lasenby 2018, The unreasonable effectiveness of the forget gate",
    forget_gate="f",
)
def janet(x, h, W, U, b):
    """LSTM with a forget gate only (JANET).

    Cell and output are one. What is let in is 1 - sigmoid(s - 1), with beta = 1 as in the
    paper, so that keeping and taking add up to a little more than one.
    """
    s = W.f @ x + U.f @ h + b.f
    f = sigmoid(s)
    i = 1 - sigmoid(s - 1)
    g = tanh(W.g @ x + U.g @ h + b.g)
    h = f * h + i * g
    return next_state(h=h, watch=dict(i=i, f=f, g=g))


@cell(
    state=("h",),
    source=(
        "Li et al. 2018, Independently recurrent neural network (IndRNN): building a longer "
        "and deeper RNN"
    ),
)
def indrnn(x, h, W, u, b):
    """Independently recurrent network.

    Each unit sees of the last state its own value only, through one weight. Rectified, so
    that layers can be stacked deep.
    """
    h = relu(W @ x + u * h + b)
    return next_state(h=h)


@cell(state=("h",), input_gate="z")
def mingru(x, h, W, b):
    """minGRU. Feng et al. 2024, Were RNNs all we needed?

    A GRU whose gate and candidate see the input alone: no reset gate, no squashing of the
    candidate, and a recurrence without a matrix. z takes the new state. This is the form
    that runs in order, not the one in logarithms.
    """
    z = sigmoid(W.z @ x + b.z)
    n = W.n @ x + b.n
    h = (1 - z) * h + z * n
    return next_state(h=h, watch=dict(z=z, n=n))


@cell(state=("h",), forget_gate="f", input_gate="i")
def minlstm(x, h, W, b):
    """minLSTM. Feng et al. 2024, Were RNNs all we needed?

    An LSTM whose gates see the input alone, without output gate and cell: h is what was a
    cell. Forget and input gate are divided by their sum, so that the size of h does not
    depend on time; the watched f and i are the divided ones. This is the form that runs
    in order, not the one in logarithms.
    """
    i_raw = sigmoid(W.i @ x + b.i)
    f_raw = sigmoid(W.f @ x + b.f)
    g = W.g @ x + b.g
    i = i_raw / (f_raw + i_raw)
    f = f_raw / (f_raw + i_raw)
    h = f * h + i * g
    return next_state(h=h, watch=dict(i=i, f=f, g=g))


@cell(
    state=("h", "c"),
    source="Lei et al. 2018, Simple recurrent units for highly parallelizable recurrence",
    forget_gate="f",
)
def sru(x, h, c, W, v, b):
    """Simple recurrent unit.

    The gates see the old cell through one weight each; no matrix is in the recurrence. The
    output is a highway: r lets the cell through, 1 - r the input. The input goes through
    the matrix W.s, the paper's case of unlike sizes; its factor alpha on the input, meant
    for the case without that matrix, is left out.
    """
    g = W.g @ x
    f = sigmoid(W.f @ x + v.f * c + b.f)
    r = sigmoid(W.r @ x + v.r * c + b.r)
    c = f * c + (1 - f) * g
    h = r * c + (1 - r) * (W.s @ x)
    return next_state(h=h, c=c, watch=dict(f=f, g=g, r=r))
