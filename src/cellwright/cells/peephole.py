"""LSTM whose gates look at the cell."""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(state=("h", "c"), forget_gate="f", input_gate="i")
def peephole_lstm(x, h, c, W, U, V, b):
    """LSTM with peepholes. Gers & Schmidhuber 2000, Recurrent nets that time and count.

    Each gate sees its own cell through one weight: the input and the forget gate see the
    old cell, the output gate the new one. The output is squashed by tanh, as the cell is
    mostly written since; the papers on peepholes leave it unsquashed. With @ read as a
    convolution these are the equations of the ConvLSTM (Shi et al. 2015).
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    c = f * c + i * g
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = o * tanh(c)
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))


@cell(
    state=("h", "c"),
    source="Gers & Schmidhuber 2000, Recurrent nets that time and count",
    forget_gate="f",
    input_gate="i",
)
def peephole_lstm_cell_only(x, h, c, W, U, b):
    """Peephole LSTM that sees cells only.

    The form in Wikipedia's article "Long short-term memory" under "Peephole LSTM": full
    matrices on c(t-1) in all three gates, the output gate included, and h(t-1) nowhere;
    the cell input sees x alone. The output is squashed by tanh, the article's default for
    its sigma_h; the article also allows the identity there.
    """
    i = sigmoid(W.i @ x + U.i @ c + b.i)
    f = sigmoid(W.f @ x + U.f @ c + b.f)
    g = tanh(W.g @ x + b.g)
    o = sigmoid(W.o @ x + U.o @ c + b.o)
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
def peephole_lstm_unsquashed(x, h, c, W, U, V, b):
    """Peephole LSTM without any squashing.

    The cell of the paper's experiments on timing: cell input and output are linear; only the
    gates are not. The input and the forget gate see the old cell, the output gate the new one.
    """
    i = sigmoid(W.i @ x + U.i @ h + V.i * c + b.i)
    f = sigmoid(W.f @ x + U.f @ h + V.f * c + b.f)
    g = W.g @ x + U.g @ h + b.g
    c = f * c + i * g
    o = sigmoid(W.o @ x + U.o @ h + V.o * c + b.o)
    h = o * c
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))
