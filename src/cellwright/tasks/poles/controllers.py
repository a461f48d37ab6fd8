"""A controller that is not in the catalogue of cells."""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(state=("h", "c"))
def constant_gates(x, h, c, W, U, i, f, o):
    """LSTM whose gates are constants.

    What balances a pole that leans to the left balances one that leans to the right with all
    signs turned. This cell has that symmetry for any weights: it is an odd function of its input
    and states, for there is no bias outside of the gates, and the gates do not look at them.
    """
    g = tanh(W @ x + U @ h)
    c = sigmoid(f) * c + sigmoid(i) * g
    h = sigmoid(o) * tanh(c)
    return next_state(h=h, c=c)
