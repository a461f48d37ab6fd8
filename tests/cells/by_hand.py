"""Every cell of the catalogue once more, by hand: plain loops over units, from the papers.

Nothing here comes from cellwright. Each function takes the weights by name, the input of
one row and its states, and returns the new states and the values that are watched.
"""

from __future__ import annotations

from math import exp, log, sqrt, tanh

BY_HAND = {}


def by_hand(function):
    BY_HAND[function.__name__] = function
    return function


def sig(a):
    return 1.0 / (1.0 + exp(-a))


def dot(row, v):
    total = 0.0
    for weight, value in zip(row, v, strict=True):
        total += weight * value
    return total


def net(p, k, x, h):
    """[W_k x + U_k h + b_k] as a list over units."""
    return [
        dot(p[f"W.{k}"][j], x) + dot(p[f"U.{k}"][j], h) + p[f"b.{k}"][j]
        for j in range(len(p[f"W.{k}"]))
    ]


def product(matrix, v):
    return [dot(row, v) for row in matrix]


def apply(f, v):
    return [f(each) for each in v]


@by_hand
def elman(p, x, s):
    h = []
    for j in range(len(s["h"])):
        h.append(tanh(dot(p["W"][j], x) + dot(p["U"][j], s["h"]) + p["b"][j]))
    return {"h": h}, {}


@by_hand
def elman_relu(p, x, s):
    h = []
    for j in range(len(s["h"])):
        h.append(max(0.0, dot(p["W"][j], x) + dot(p["U"][j], s["h"]) + p["b"][j]))
    return {"h": h}, {}


@by_hand
def cec(p, x, s):
    taken = product(p["W.g"], x)
    return {"c": [s["c"][j] + taken[j] for j in range(len(taken))]}, {"g": taken}


@by_hand
def lstm_1997(p, x, s):
    y_in = apply(sig, net(p, "i", x, s["h"]))
    y_out = apply(sig, net(p, "o", x, s["h"]))
    g = [4.0 / (1.0 + exp(-a)) - 2.0 for a in net(p, "g", x, s["h"])]
    c = [s["c"][j] + y_in[j] * g[j] for j in range(len(g))]
    h = [y_out[j] * (2.0 / (1.0 + exp(-c[j])) - 1.0) for j in range(len(g))]
    return {"h": h, "c": c}, {"i": y_in, "g": g, "o": y_out}


def lstm_cell(p, x, s, *, peepholes=True, i=None, f=None, o=None, g=tanh, out=tanh):
    """An LSTM of the odyssey's family: None for a gate that is computed, or its constant value."""
    n = len(s["c"])
    y, c_old = s["h"], s["c"]

    def gate(k, c):
        a = net(p, k, x, y)
        if peepholes:
            a = [a[j] + p[f"V.{k}"][j] * c[j] for j in range(n)]
        return apply(sig, a)

    seen = {}
    z = seen["g"] = apply(g, net(p, "g", x, y))
    if i is None:
        i = seen["i"] = gate("i", c_old)
    else:
        i = [i] * n
    if f is None:
        f = seen["f"] = gate("f", c_old)
    elif f == "1 - i":
        f = seen["f"] = [1.0 - each for each in i]
    else:
        f = [f] * n
    c = [z[j] * i[j] + c_old[j] * f[j] for j in range(n)]
    if o is None:
        o = seen["o"] = gate("o", c)
    else:
        o = [o] * n
    return {"h": [out(c[j]) * o[j] for j in range(n)], "c": c}, seen


def same(a):
    return a


BY_HAND.update(
    lstm=lambda p, x, s: lstm_cell(p, x, s, peepholes=False),
    lstm_no_output_activation=lambda p, x, s: lstm_cell(p, x, s, peepholes=False, out=same),
    lstm_unsquashed=lambda p, x, s: lstm_cell(p, x, s, peepholes=False, g=same, out=same),
    peephole_lstm=lstm_cell,
    peephole_lstm_unsquashed=lambda p, x, s: lstm_cell(p, x, s, g=same, out=same),
    odyssey_vanilla=lstm_cell,
    odyssey_nig=lambda p, x, s: lstm_cell(p, x, s, i=1.0),
    odyssey_nfg=lambda p, x, s: lstm_cell(p, x, s, f=1.0),
    odyssey_nog=lambda p, x, s: lstm_cell(p, x, s, o=1.0),
    odyssey_niaf=lambda p, x, s: lstm_cell(p, x, s, g=same),
    odyssey_noaf=lambda p, x, s: lstm_cell(p, x, s, out=same),
    odyssey_cifg=lambda p, x, s: lstm_cell(p, x, s, f="1 - i"),
    odyssey_np=lambda p, x, s: lstm_cell(p, x, s, peepholes=False),
)


@by_hand
def odyssey_fgr(p, x, s):
    n = len(s["c"])

    def pre(k):
        a = net(p, k, x, s["h"])
        for source in "ifo":
            back = product(p[f"R.{source}_to_{k}"], s[source])
            a = [a[j] + back[j] for j in range(n)]
        return a

    z = apply(tanh, net(p, "g", x, s["h"]))
    i_pre, f_pre, o_pre = pre("i"), pre("f"), pre("o")
    i = [sig(i_pre[j] + p["V.i"][j] * s["c"][j]) for j in range(n)]
    f = [sig(f_pre[j] + p["V.f"][j] * s["c"][j]) for j in range(n)]
    c = [z[j] * i[j] + s["c"][j] * f[j] for j in range(n)]
    o = [sig(o_pre[j] + p["V.o"][j] * c[j]) for j in range(n)]
    return {"h": [tanh(c[j]) * o[j] for j in range(n)], "c": c, "i": i, "f": f, "o": o}, {"g": z}


@by_hand
def peephole_lstm_cell_only(p, x, s):
    c_old, seen = s["c"], {}
    for k in "ifo":
        seen[k] = apply(sig, net(p, k, x, c_old))
    seen["g"] = [tanh(dot(p["W.g"][j], x) + p["b.g"][j]) for j in range(len(c_old))]
    c = [seen["f"][j] * c_old[j] + seen["i"][j] * seen["g"][j] for j in range(len(c_old))]
    return {"h": [seen["o"][j] * tanh(c[j]) for j in range(len(c))], "c": c}, seen


@by_hand
def lstm_projection(p, x, s):
    step, seen = lstm_cell(p, x, s, peepholes=False)
    return {"h": product(p["P"], step["h"]), "c": step["c"]}, seen


@by_hand
def layer_norm_lstm(p, x, s):
    n = len(s["c"])

    def normal(values):
        mu = sum(values) / len(values)
        variance = sum((v - mu) ** 2 for v in values) / len(values)
        return [(v - mu) / sqrt(variance + 1e-5) for v in values]

    def four(prefix, group, v):
        stacked = []
        for k in "figo":
            stacked += product(p[f"{group}.{k}"], v)
        stacked, result = normal(stacked), {}
        for number, k in enumerate("figo"):
            part = stacked[number * n : (number + 1) * n]
            gain, shift = p[f"gain.{prefix}{k}"], p[f"shift.{prefix}{k}"]
            result[k] = [gain[j] * part[j] + shift[j] for j in range(n)]
        return result

    from_h, from_x, a = four("u", "U", s["h"]), four("w", "W", x), {}
    for k in "figo":
        a[k] = [from_h[k][j] + from_x[k][j] + p[f"b.{k}"][j] for j in range(n)]
    f, i, o = (apply(sig, a[k]) for k in "fio")
    g = apply(tanh, a["g"])
    c = [f[j] * s["c"][j] + i[j] * g[j] for j in range(n)]
    normed = normal(c)
    h = [o[j] * tanh(p["gain.c"][j] * normed[j] + p["shift.c"][j]) for j in range(n)]
    return {"h": h, "c": c}, {"i": i, "f": f, "g": g, "o": o}


@by_hand
def gru(p, x, s):
    h = s["h"]
    r, z = apply(sig, net(p, "r", x, h)), apply(sig, net(p, "z", x, h))
    n = []
    for j in range(len(h)):
        from_x = dot(p["W.n"][j], x) + p["b.n"][j]
        from_h = dot(p["U.n"][j], h) + p["b.hn"][j]
        n.append(tanh(from_x + r[j] * from_h))
    new = [(1.0 - z[j]) * n[j] + z[j] * h[j] for j in range(len(h))]
    return {"h": new}, {"r": r, "z": z, "n": n}


def reset_before(p, x, h, r):
    return apply(tanh, net(p, "n", x, [r[j] * h[j] for j in range(len(h))]))


@by_hand
def gru_v1(p, x, s):
    h = s["h"]
    r, z = apply(sig, net(p, "r", x, h)), apply(sig, net(p, "z", x, h))
    n = reset_before(p, x, h, r)
    new = [z[j] * h[j] + (1.0 - z[j]) * n[j] for j in range(len(h))]
    return {"h": new}, {"r": r, "z": z, "n": n}


@by_hand
def gru_update_new(p, x, s):
    h = s["h"]
    r, z = apply(sig, net(p, "r", x, h)), apply(sig, net(p, "z", x, h))
    n = reset_before(p, x, h, r)
    new = [(1.0 - z[j]) * h[j] + z[j] * n[j] for j in range(len(h))]
    return {"h": new}, {"r": r, "z": z, "n": n}


@by_hand
def mgu(p, x, s):
    h = s["h"]
    f = apply(sig, net(p, "f", x, h))
    n = reset_before(p, x, h, f)
    return {"h": [(1.0 - f[j]) * h[j] + f[j] * n[j] for j in range(len(h))]}, {"f": f, "n": n}


@by_hand
def ugrnn(p, x, s):
    h = s["h"]
    g, c = apply(sig, net(p, "z", x, h)), apply(tanh, net(p, "n", x, h))
    return {"h": [g[j] * h[j] + (1.0 - g[j]) * c[j] for j in range(len(h))]}, {"z": g, "n": c}


@by_hand
def mut1(p, x, s):
    h, size = s["h"], len(s["h"])
    z = [sig(dot(p["W.z"][j], x) + p["b.z"][j]) for j in range(size)]
    r = apply(sig, net(p, "r", x, h))
    kept = [r[j] * h[j] for j in range(size)]
    n = [
        tanh(dot(p["U.n"][j], kept) + tanh(dot(p["W.n"][j], x)) + p["b.n"][j]) for j in range(size)
    ]
    return {"h": [n[j] * z[j] + h[j] * (1.0 - z[j]) for j in range(size)]}, {"r": r, "z": z, "n": n}


@by_hand
def mut2(p, x, s):
    h = s["h"]
    z, r = apply(sig, net(p, "z", x, h)), apply(sig, net(p, "r", x, h))
    n = reset_before(p, x, h, r)
    new = [n[j] * z[j] + h[j] * (1.0 - z[j]) for j in range(len(h))]
    return {"h": new}, {"r": r, "z": z, "n": n}


@by_hand
def mut3(p, x, s):
    h = s["h"]
    z, r = apply(sig, net(p, "z", x, apply(tanh, h))), apply(sig, net(p, "r", x, h))
    n = reset_before(p, x, h, r)
    new = [n[j] * z[j] + h[j] * (1.0 - z[j]) for j in range(len(h))]
    return {"h": new}, {"r": r, "z": z, "n": n}


@by_hand
def janet(p, x, s):
    h, beta = s["h"], 1.0
    a = net(p, "f", x, h)
    f = apply(sig, a)
    i = [1.0 - sig(each - beta) for each in a]
    g = apply(tanh, net(p, "g", x, h))
    return {"h": [f[j] * h[j] + i[j] * g[j] for j in range(len(h))]}, {"i": i, "f": f, "g": g}


@by_hand
def indrnn(p, x, s):
    h = []
    for j in range(len(s["h"])):
        h.append(max(0.0, dot(p["W"][j], x) + p["u"][j] * s["h"][j] + p["b"][j]))
    return {"h": h}, {}


@by_hand
def mingru(p, x, s):
    h, z, n = [], [], []
    for j in range(len(s["h"])):
        z.append(sig(dot(p["W.z"][j], x) + p["b.z"][j]))
        n.append(dot(p["W.n"][j], x) + p["b.n"][j])
        h.append((1.0 - z[j]) * s["h"][j] + z[j] * n[j])
    return {"h": h}, {"z": z, "n": n}


@by_hand
def minlstm(p, x, s):
    h, i, f, g = [], [], [], []
    for j in range(len(s["h"])):
        f_t = sig(dot(p["W.f"][j], x) + p["b.f"][j])
        i_t = sig(dot(p["W.i"][j], x) + p["b.i"][j])
        g.append(dot(p["W.g"][j], x) + p["b.g"][j])
        f.append(f_t / (f_t + i_t))
        i.append(i_t / (f_t + i_t))
        h.append(f[j] * s["h"][j] + i[j] * g[j])
    return {"h": h}, {"i": i, "f": f, "g": g}


@by_hand
def sru(p, x, s):
    h, c, f, r, g = [], [], [], [], []
    for j in range(len(s["c"])):
        g.append(dot(p["W.g"][j], x))
        f.append(sig(dot(p["W.f"][j], x) + p["v.f"][j] * s["c"][j] + p["b.f"][j]))
        r.append(sig(dot(p["W.r"][j], x) + p["v.r"][j] * s["c"][j] + p["b.r"][j]))
        c.append(f[j] * s["c"][j] + (1.0 - f[j]) * g[j])
        h.append(r[j] * c[j] + (1.0 - r[j]) * dot(p["W.s"][j], x))
    return {"h": h, "c": c}, {"f": f, "g": g, "r": r}


@by_hand
def rhn(p, x, s):
    state, seen = s["s"], {}
    for level in (1, 2, 3):
        pre = {}
        for k in "gt":
            pre[k] = product(p[f"U.{k}{level}"], state)
            for j in range(len(state)):
                pre[k][j] += p[f"b.{k}{level}"][j]
                if level == 1:
                    pre[k][j] += dot(p[f"W.{k}1"][j], x)
        candidate, t = apply(tanh, pre["g"]), apply(sig, pre["t"])
        state = [(candidate[j] - state[j]) * t[j] + state[j] for j in range(len(state))]
        seen |= {f"g{level}": candidate, f"t{level}": t}
        if level < 3:
            seen[f"s{level}"] = state
    return {"s": state}, seen


@by_hand
def lem(p, x, s):
    y, z = s["y"], s["z"]
    step_z, step_y = apply(sig, net(p, "step_z", x, y)), apply(sig, net(p, "step_y", x, y))
    towards = apply(tanh, net(p, "z", x, y))
    z = [z[j] + step_z[j] * (towards[j] - z[j]) for j in range(len(z))]
    towards = apply(tanh, net(p, "y", x, z))
    y = [y[j] + step_y[j] * (towards[j] - y[j]) for j in range(len(y))]
    return {"y": y, "z": z}, {"step_z": step_z, "step_y": step_y}


@by_hand
def slstm(p, x, s):
    i_raw, f_raw = net(p, "i", x, s["h"]), net(p, "f", x, s["h"])
    z, o = apply(tanh, net(p, "g", x, s["h"])), apply(sig, net(p, "o", x, s["h"]))
    new = {"h": [], "c": [], "n": [], "m": []}
    seen = {"i": [], "f": [], "g": z, "o": o}
    for j in range(len(z)):
        carried = log(sig(f_raw[j])) + s["m"][j]
        m = i_raw[j] if s["n"][j] == 0.0 else max(i_raw[j], carried)
        i, f = exp(i_raw[j] - m), min(1.0, exp(carried - m))
        c, n = f * s["c"][j] + i * z[j], f * s["n"][j] + i
        for name, value in (("h", o[j] * c / n), ("c", c), ("n", n), ("m", m)):
            new[name].append(value)
        seen["i"].append(i)
        seen["f"].append(f)
    return new, seen
