"""The textbook reader's check: formulas as they stand in the book, worked out in NumPy.

Each test writes down the textbook's equations and compares them with the catalogue's cell,
run by the layer in float64. The textbook's side uses nothing from cellwright.
"""

from __future__ import annotations

import numpy as np
import pytest

import cellwright as cw

# Sums of a few terms in float64, in another order.
CLOSE = {"rtol": 0, "atol": 1e-12}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def sequence(steps=6, inputs=3, seed=5):
    return np.random.default_rng(seed).normal(size=(steps, 1, inputs))


def test_wikipedias_lstm(make_weights, run_layer):
    """Article "Long short-term memory", section "LSTM with a forget gate"."""
    p = make_weights(cw.cells.get("lstm"), 3, 4)
    x = sequence()

    h, c, outputs = np.zeros(4), np.zeros(4), []
    for x_t in x[:, 0]:
        f = sigmoid(p["W.f"] @ x_t + p["U.f"] @ h + p["b.f"])
        i = sigmoid(p["W.i"] @ x_t + p["U.i"] @ h + p["b.i"])
        o = sigmoid(p["W.o"] @ x_t + p["U.o"] @ h + p["b.o"])
        c_tilde = np.tanh(p["W.g"] @ x_t + p["U.g"] @ h + p["b.g"])
        c = f * c + i * c_tilde
        h = o * np.tanh(c)
        outputs.append(h)

    y, final, _ = run_layer(cw.cells.get("lstm"), p, x)
    np.testing.assert_allclose(y[:, 0], outputs, **CLOSE)
    np.testing.assert_allclose(final["c"][0], c, **CLOSE)


def test_wikipedias_peephole_lstm(make_weights, run_layer):
    """Section "Peephole LSTM": every gate sees c(t-1) through a full matrix, h(t-1) is not used."""
    spec = cw.cells.get("peephole_lstm_cell_only")
    p = make_weights(spec, 3, 4)
    x = sequence()

    c, outputs = np.zeros(4), []
    for x_t in x[:, 0]:
        f = sigmoid(p["W.f"] @ x_t + p["U.f"] @ c + p["b.f"])
        i = sigmoid(p["W.i"] @ x_t + p["U.i"] @ c + p["b.i"])
        o = sigmoid(p["W.o"] @ x_t + p["U.o"] @ c + p["b.o"])
        c = f * c + i * np.tanh(p["W.g"] @ x_t + p["b.g"])
        outputs.append(o * np.tanh(c))

    y, final, _ = run_layer(spec, p, x)
    np.testing.assert_allclose(y[:, 0], outputs, **CLOSE)
    np.testing.assert_allclose(final["c"][0], c, **CLOSE)


def test_diagonal_peepholes(make_weights, run_layer):
    """Graves 2013: the input and forget gate see c(t-1), the output gate c(t), by a diagonal."""
    spec = cw.cells.get("peephole_lstm")
    p = make_weights(spec, 3, 4)
    x = sequence()

    h, c, outputs = np.zeros(4), np.zeros(4), []
    for x_t in x[:, 0]:
        i = sigmoid(p["W.i"] @ x_t + p["U.i"] @ h + np.diag(p["V.i"]) @ c + p["b.i"])
        f = sigmoid(p["W.f"] @ x_t + p["U.f"] @ h + np.diag(p["V.f"]) @ c + p["b.f"])
        c = f * c + i * np.tanh(p["W.g"] @ x_t + p["U.g"] @ h + p["b.g"])
        o = sigmoid(p["W.o"] @ x_t + p["U.o"] @ h + np.diag(p["V.o"]) @ c + p["b.o"])
        h = o * np.tanh(c)
        outputs.append(h)

    y, _, _ = run_layer(spec, p, x)
    np.testing.assert_allclose(y[:, 0], outputs, **CLOSE)


def test_chos_gru(make_weights, run_layer):
    """Cho et al. 2014, equations 5 to 8: the reset gate acts first, z keeps the old state."""
    spec = cw.cells.get("gru_v1")
    p = make_weights(spec, 3, 4)
    x = sequence()

    h, outputs = np.zeros(4), []
    for x_t in x[:, 0]:
        r = sigmoid(p["W.r"] @ x_t + p["U.r"] @ h + p["b.r"])
        z = sigmoid(p["W.z"] @ x_t + p["U.z"] @ h + p["b.z"])
        h_tilde = np.tanh(p["W.n"] @ x_t + p["U.n"] @ (r * h) + p["b.n"])
        h = z * h + (1 - z) * h_tilde
        outputs.append(h)

    y, _, _ = run_layer(spec, p, x)
    np.testing.assert_allclose(y[:, 0], outputs, **CLOSE)


def test_wikipedias_fully_gated_unit(make_weights, run_layer):
    """Article "Gated recurrent unit": h(t) = (1 - z) h(t-1) + z h^."""
    spec = cw.cells.get("gru_update_new")
    p = make_weights(spec, 3, 4)
    x = sequence()

    h, outputs = np.zeros(4), []
    for x_t in x[:, 0]:
        z = sigmoid(p["W.z"] @ x_t + p["U.z"] @ h + p["b.z"])
        r = sigmoid(p["W.r"] @ x_t + p["U.r"] @ h + p["b.r"])
        h_hat = np.tanh(p["W.n"] @ x_t + p["U.n"] @ (r * h) + p["b.n"])
        h = (1 - z) * h + z * h_hat
        outputs.append(h)

    y, _, _ = run_layer(spec, p, x)
    np.testing.assert_allclose(y[:, 0], outputs, **CLOSE)


# One step of a GRU on paper, as examinations set it. The numbers are chosen so that the gates
# come out round: r = (1/2, 1/4) and z = (3/4, 3/4).
LN3 = np.log(3.0)
QUIZ = {
    "W.r": [[1.0, -0.5], [0.0, 0.0]],
    "U.r": [[2.0, 1.0], [1.0, 0.5]],
    "b.r": [0.0, -LN3],
    "W.z": [[0.5, -0.25], [1.0, -0.5]],
    "U.z": [[1.0, 0.5], [-2.0, -1.0]],
    "b.z": [LN3, LN3],
    "W.n": [[0.1, 0.1], [-0.2, 0.0]],
    "U.n": [[0.5, -0.5], [1.0, 0.25]],
    "b.n": [0.0, -0.2],
}
QUIZ_X = np.array([[[1.0, 2.0]]])
QUIZ_H = np.array([[0.4, -0.8]])
# tanh(0.5), tanh(-0.25): W.n x + b.n = (0.3, -0.4), U.n (r h) = (0.2, 0.15).
BEFORE = (0.46211715726000975, -0.24491866240370913)
# tanh(0.6), tanh(-0.35): U.n h = (0.6, 0.2), and r of it (0.3, 0.05).
AFTER = (0.5370495669980353, -0.3363755443363322)


@pytest.mark.parametrize(
    ("name", "candidate", "kept"),
    [
        ("gru_update_new", BEFORE, 0.25),  # h_new = (1 - z) h + z h_bar
        ("gru_v1", BEFORE, 0.75),  # h_new = z h + (1 - z) h_bar
        ("gru", AFTER, 0.75),  # the same, reset after the product
    ],
)
def test_one_gru_step_on_paper(name, candidate, kept, run_layer):
    spec = cw.cells.get(name)
    weights = {each: np.array(value) for each, value in QUIZ.items()}
    if name == "gru":
        weights["b.hn"] = np.zeros(2)

    y, _, trace = run_layer(spec, weights, QUIZ_X, start={"h": QUIZ_H})

    np.testing.assert_allclose(trace["r"][0, 0], [0.5, 0.25], **CLOSE)
    np.testing.assert_allclose(trace["z"][0, 0], [0.75, 0.75], **CLOSE)
    np.testing.assert_allclose(trace["n"][0, 0], candidate, **CLOSE)
    expected = kept * QUIZ_H[0] + (1 - kept) * np.array(candidate)
    np.testing.assert_allclose(y[0, 0], expected, **CLOSE)


def test_the_quiz_has_the_answer_of_the_answer_sheet(run_layer):
    """With z taking the new state: (0.1 + 0.34659, -0.2 - 0.18369)."""
    weights = {each: np.array(value) for each, value in QUIZ.items()}
    y, _, _ = run_layer(cw.cells.get("gru_update_new"), weights, QUIZ_X, start={"h": QUIZ_H})
    np.testing.assert_allclose(y[0, 0], [0.44659, -0.38369], rtol=0, atol=5e-6)


def correlate(weight, image):
    """Cross-correlation with zeros around: (O, I, k, k) on (I, H, W) gives (O, H, W)."""
    outs, ins, k, _ = weight.shape
    _, height, width = image.shape
    result = np.zeros((outs, height, width))
    for o in range(outs):
        for row in range(height):
            for column in range(width):
                for i in range(ins):
                    for a in range(k):
                        for b in range(k):
                            r, s = row + a - k // 2, column + b - k // 2
                            if 0 <= r < height and 0 <= s < width:
                                result[o, row, column] += weight[o, i, a, b] * image[i, r, s]
    return result


@pytest.mark.parametrize("peephole", ["channel", "position"])
def test_wikipedias_peephole_convolutional_lstm(peephole):
    """Section "Peephole convolutional LSTM" and Shi et al. 2015: V_o sees the new c(t).

    The convolution is a cross-correlation with zeros around, as in torch. The paper's peephole
    has one weight a channel and position.
    """
    torch = pytest.importorskip("torch")
    space = (4, 5) if peephole == "position" else None
    layer = cw.nn.ConvRecurrent(
        "peephole_lstm", 2, 3, kernel_size=3, peephole=peephole, space=space, dtype=torch.float64
    )
    rng = np.random.default_rng(11)
    p = {}
    with torch.no_grad():
        for each in cw.cells.get("peephole_lstm").parameters:
            view = layer.parameter(each.name, layer=0, direction=0)
            p[each.name] = rng.normal(0.0, 0.5, tuple(view.shape))
            view.copy_(torch.as_tensor(p[each.name]))
    x = rng.normal(size=(3, 1, 2, 4, 5))

    def map_of(name):
        return p[name] if p[name].ndim == 3 else p[name].reshape(3, 1, 1)

    h, c = np.zeros((3, 4, 5)), np.zeros((3, 4, 5))
    outputs = []
    for x_t in x[:, 0]:

        def pre(gate, x_t=x_t, h=h):
            return correlate(p[f"W.{gate}"], x_t) + correlate(p[f"U.{gate}"], h)

        f = sigmoid(pre("f") + map_of("V.f") * c + map_of("b.f"))
        i = sigmoid(pre("i") + map_of("V.i") * c + map_of("b.i"))
        c = f * c + i * np.tanh(pre("g") + map_of("b.g"))
        o = sigmoid(pre("o") + map_of("V.o") * c + map_of("b.o"))
        h = o * np.tanh(c)
        outputs.append(h)

    with torch.no_grad():
        y, state = layer(torch.as_tensor(x))
    np.testing.assert_allclose(y[:, 0].numpy(), outputs, **CLOSE)
    np.testing.assert_allclose(state.c[0, 0].numpy(), c, **CLOSE)


@pytest.mark.parametrize(
    ("name", "gates", "make"),
    [
        ("elman", [None], lambda torch: torch.nn.RNN(3, 4)),
        ("elman_relu", [None], lambda torch: torch.nn.RNN(3, 4, nonlinearity="relu")),
        ("lstm", "ifgo", lambda torch: torch.nn.LSTM(3, 4)),
        ("gru", "rzn", lambda torch: torch.nn.GRU(3, 4)),
        ("lstm_projection", "ifgo", lambda torch: torch.nn.LSTM(3, 4, proj_size=2)),
    ],
)
def test_torchs_own_layers(name, gates, make, run_layer):
    """torch.nn's weights, gate by gate; its two biases are added, but for the GRU's n."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(2)
    theirs = make(torch).double()
    weights = {}
    for kind, group in (("weight_ih", "W"), ("weight_hh", "U"), ("bias_ih", "b"), ("bias_hh", "b")):
        parts = getattr(theirs, f"{kind}_l0").detach().numpy().reshape(len(gates), 4, -1)
        for gate, part in zip(gates, parts, strict=True):
            part = part[:, 0] if group == "b" else part
            key = group if gate is None else f"{group}.{gate}"
            if kind == "bias_hh" and (name, gate) == ("gru", "n"):
                weights["b.hn"] = part
            else:
                weights[key] = weights.get(key, 0) + part
    if name == "lstm_projection":
        weights["P"] = theirs.weight_hr_l0.detach().numpy()
    sizes = {"projection": 2} if name == "lstm_projection" else None
    x = sequence()

    y, _, _ = run_layer(cw.cells.get(name), weights, x, sizes)

    with torch.no_grad():
        expected, _ = theirs(torch.as_tensor(x))
    np.testing.assert_allclose(y, expected.numpy(), **CLOSE)
