"""A cell of one's own: equations in a file, trained from the command line.

    cellwright cells examples/my_cell.py:calm_gru
    cellwright train japanese-vowels --cell examples/my_cell.py:calm_gru

It has what ready-made layers cannot be configured into: a matrix on a computed vector
(``U.n @ (r * h)``) and reductions over the units (``layer_norm`` and ``mean``).
"""

import cellwright as cw
from cellwright import layer_norm, mean, sigmoid, square, tanh


@cw.cell(state=("h",))
def calm_gru(x, h, W, U, b, a):
    """GRU with a normalised candidate that restless states hold back.

    The reset gate acts before the product, as in Cho et al. 2014, and z keeps the old state.
    The more energy the state has, the less of the candidate is let in.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    z = sigmoid(W.z @ x + U.z @ h + b.z)
    n = tanh(layer_norm(W.n @ x + U.n @ (r * h)) + b.n)
    energy = mean(square(h))
    let_in = (1 - z) * sigmoid(a - energy)
    h = h + let_in * (n - h)
    return cw.next_state(h=h, watch=dict(r=r, z=z, n=n, let_in=let_in))
