"""The three best cells that a search over ten thousand architectures found."""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(
    state=("h",),
    source=(
        "Jozefowicz, Zaremba & Sutskever 2015, An empirical exploration of recurrent network "
        "architectures"
    ),
    input_gate="z",
)
def mut1(x, h, W, U, b):
    """Mutated architecture 1.

    z takes the new state and sees the input alone; the input to the candidate is squashed
    once more. The paper has tanh(x) there, which needs as many inputs as units: the
    matrix W.n lifts that.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    z = sigmoid(W.z @ x + b.z)
    n = tanh(U.n @ (r * h) + tanh(W.n @ x) + b.n)
    h = n * z + h * (1 - z)
    return next_state(h=h, watch=dict(r=r, z=z, n=n))


@cell(
    state=("h",),
    source=(
        "Jozefowicz, Zaremba & Sutskever 2015, An empirical exploration of recurrent network "
        "architectures"
    ),
    input_gate="z",
)
def mut2(x, h, W, U, b):
    """Mutated architecture 2.

    A GRU whose z takes the new state. In the paper the reset gate sees x with no matrix,
    which needs as many inputs as units: the matrix W.r lifts that, and leaves the
    equations of gru_update_new.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    z = sigmoid(W.z @ x + U.z @ h + b.z)
    n = tanh(U.n @ (r * h) + W.n @ x + b.n)
    h = n * z + h * (1 - z)
    return next_state(h=h, watch=dict(r=r, z=z, n=n))


@cell(
    state=("h",),
    source=(
        "Jozefowicz, Zaremba & Sutskever 2015, An empirical exploration of recurrent network "
        "architectures"
    ),
    input_gate="z",
)
def mut3(x, h, W, U, b):
    """Mutated architecture 3.

    A GRU whose z takes the new state and sees tanh(h) in place of h.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    z = sigmoid(W.z @ x + U.z @ tanh(h) + b.z)
    n = tanh(U.n @ (r * h) + W.n @ x + b.n)
    h = n * z + h * (1 - z)
    return next_state(h=h, watch=dict(r=r, z=z, n=n))
