"""Cells with exponential gates."""

from cellwright.lang import (
    cell,
    exp,
    log_sigmoid,
    maximum,
    minimum,
    next_state,
    sigmoid,
    tanh,
    where,
)


@cell(state=("h", "c", "n", "m"), forget_gate="f", input_gate="i")
def slstm(x, h, c, n, m, W, U, b):
    """sLSTM. Beck et al. 2024, xLSTM: extended long short-term memory.

    The input gate is exponential, and n counts what was let in, so that h = o * c / n is
    an average. m keeps the exponentials in range: c and n are held multiplied by exp(-m),
    which cancels in h; the watched i and f are the gates after that scaling, at most 1. Of
    the paper's two forget gates this is sigmoid, as in the official code. All states start
    at zero; where n is zero nothing has been let in yet, and m becomes the input gate's
    exponent, as there.
    """
    i_log = W.i @ x + U.i @ h + b.i
    f_log = log_sigmoid(W.f @ x + U.f @ h + b.f) + m
    g = tanh(W.g @ x + U.g @ h + b.g)
    o = sigmoid(W.o @ x + U.o @ h + b.o)
    m = where(n > 0, maximum(f_log, i_log), i_log)
    i = exp(i_log - m)
    f = exp(minimum(f_log - m, 0))
    c = f * c + i * g
    n = f * n + i
    h = o * (c / n)
    return next_state(h=h, c=c, n=n, m=m, watch=dict(i=i, f=f, g=g, o=o))
