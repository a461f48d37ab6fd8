"""Cells with normalisation inside the recurrence."""

from cellwright.lang import cell, layer_norm, next_state, sigmoid, tanh


@cell(
    state=("h", "c"),
    init={"gain": 1.0, "shift": 0.0},
    forget_gate="f",
    input_gate="i",
)
def layer_norm_lstm(x, h, c, W, U, gain, shift, b):
    """LSTM with layer normalisation. Ba, Kiros & Hinton 2016, Layer normalization.

    Three normalisations a step, each with gains and shifts: one of all four products with
    x together, one of all four products with h together, and one of the new cell on its
    way to the output. The cell that is carried on is not normalised. The paper's alpha
    and beta are gain and shift.
    """
    wi, wf, wg, wo = layer_norm(W.i @ x, W.f @ x, W.g @ x, W.o @ x)
    ui, uf, ug, uo = layer_norm(U.i @ h, U.f @ h, U.g @ h, U.o @ h)
    i_pre = gain.wi * wi + shift.wi + gain.ui * ui + shift.ui + b.i
    f_pre = gain.wf * wf + shift.wf + gain.uf * uf + shift.uf + b.f
    g_pre = gain.wg * wg + shift.wg + gain.ug * ug + shift.ug + b.g
    o_pre = gain.wo * wo + shift.wo + gain.uo * uo + shift.uo + b.o
    i = sigmoid(i_pre)
    f = sigmoid(f_pre)
    g = tanh(g_pre)
    o = sigmoid(o_pre)
    c = f * c + i * g
    h = o * tanh(gain.c * layer_norm(c) + shift.c)
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))
