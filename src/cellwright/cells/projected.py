"""Cells whose output is smaller than their memory."""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(
    state={"h": "projection", "c": "hidden"},
    source=(
        "Sak, Senior & Beaufays 2014, Long short-term memory recurrent neural network "
        "architectures for large scale acoustic modeling"
    ),
    forget_gate="f",
    input_gate="i",
)
def lstm_projection(x, h, c, W, U, P, b):
    """Projection LSTM.

    The output is a projection of the cells' outputs to a smaller vector, and that vector
    is what the gates see at the next step. As in torch.nn.LSTM(proj_size=...): no
    peepholes, no bias and no activation in the projection. The paper's cells have
    peepholes, and a second projection that is not recurrent.
    """
    i = sigmoid(W.i @ x + U.i @ h + b.i)
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    g = tanh(W.g @ x + U.g @ h + b.g)
    o = sigmoid(W.o @ x + U.o @ h + b.o)
    c = f * c + i * g
    h = P @ (o * tanh(c))
    return next_state(h=h, c=c, watch=dict(i=i, f=f, g=g, o=o))
