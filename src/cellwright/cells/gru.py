"""Gated recurrent units: which way z points and where the reset acts set them apart."""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(
    state=("h",),
    source=(
        "Cho et al. 2014, Learning phrase representations using RNN encoder-decoder for "
        "statistical machine translation, first preprint"
    ),
    forget_gate="z",
)
def gru(x, h, W, U, b):
    """GRU, reset after the product.

    The form that torch.nn.GRU and cuDNN compute. The reset gate acts on U.n @ h + b.hn,
    after the matrix product, so the candidate n has a second bias. z keeps the old state.
    Gates in torch's order r, z, n: b.r and b.z are the sums of torch's two biases, b.n is
    its b_in, b.hn its b_hn.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    z = sigmoid(W.z @ x + U.z @ h + b.z)
    n = tanh(W.n @ x + b.n + r * (U.n @ h + b.hn))
    h = (1 - z) * n + z * h
    return next_state(h=h, watch=dict(r=r, z=z, n=n))


@cell(
    state=("h",),
    source=(
        "Cho et al. 2014, Learning phrase representations using RNN encoder-decoder for "
        "statistical machine translation"
    ),
    forget_gate="z",
)
def gru_v1(x, h, W, U, b):
    """GRU, reset before the product.

    The unit as the paper was printed: the reset gate acts on h before the matrix product,
    and z keeps the old state. The paper leaves the biases out of its equations only to
    keep them uncluttered. Its first preprint had the reset after the product, as in gru;
    some libraries call that form v1, so mind the names when weights change hands.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    z = sigmoid(W.z @ x + U.z @ h + b.z)
    n = tanh(W.n @ x + U.n @ (r * h) + b.n)
    h = z * h + (1 - z) * n
    return next_state(h=h, watch=dict(r=r, z=z, n=n))


@cell(
    state=("h",),
    source=(
        "Chung et al. 2014, Empirical evaluation of gated recurrent neural networks on "
        "sequence modeling"
    ),
    input_gate="z",
)
def gru_update_new(x, h, W, U, b):
    """GRU whose z takes the new state.

    The form of textbooks and of Wikipedia's "fully gated unit": reset before the product,
    and z = 1 replaces the state by the candidate. It is gru_v1 with z and 1 - z exchanged.
    """
    r = sigmoid(W.r @ x + U.r @ h + b.r)
    z = sigmoid(W.z @ x + U.z @ h + b.z)
    n = tanh(W.n @ x + U.n @ (r * h) + b.n)
    h = (1 - z) * h + z * n
    return next_state(h=h, watch=dict(r=r, z=z, n=n))


@cell(state=("h",), input_gate="f")
def mgu(x, h, W, U, b):
    """Minimal gated unit. Zhou et al. 2016, Minimal gated unit for recurrent neural networks.

    One gate both resets and updates. The paper calls it the forget gate; f = 1 takes the
    new state, the opposite of an LSTM's forget gate.
    """
    f = sigmoid(W.f @ x + U.f @ h + b.f)
    n = tanh(W.n @ x + U.n @ (f * h) + b.n)
    h = (1 - f) * h + f * n
    return next_state(h=h, watch=dict(f=f, n=n))


@cell(
    state=("h",),
    source=(
        "Collins, Sohl-Dickstein & Sussillo 2017, Capacity and trainability in recurrent "
        "neural networks"
    ),
    forget_gate="z",
)
def ugrnn(x, h, W, U, b):
    """Update gate RNN.

    A simple recurrent network with one gate that keeps the old state. The paper writes g
    for the gate (z here) and c for the candidate (n).
    """
    z = sigmoid(W.z @ x + U.z @ h + b.z)
    n = tanh(W.n @ x + U.n @ h + b.n)
    h = z * h + (1 - z) * n
    return next_state(h=h, watch=dict(z=z, n=n))
