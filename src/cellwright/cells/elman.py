"""The simple recurrent network: one state, no gate."""

from cellwright.lang import cell, next_state, relu, tanh


@cell(state=("h",))
def elman(x, h, W, U, b):
    """Elman network. Elman 1990, Finding structure in time.

    The hidden units see the input and their own last values. As in torch.nn.RNN the
    squashing function is tanh; Elman's units were logistic.
    """
    h = tanh(W @ x + U @ h + b)
    return next_state(h=h)


@cell(
    state=("h",),
    source=(
        "Le, Jaitly & Hinton 2015, A simple way to initialize recurrent networks of "
        "rectified linear units"
    ),
)
def elman_relu(x, h, W, U, b):
    """Elman network of rectified units.

    The Elman network with relu in place of tanh. The paper starts U at the identity and b
    at zero; torch.nn.RNN(nonlinearity="relu") has the same equations.
    """
    h = relu(W @ x + U @ h + b)
    return next_state(h=h)
