"""Elementary functions in Triton's language, in float32 and float64; no fast approximations.

Each is within a few units in the last place over the whole range, right at zeros, infinities, NaN
and for denormal numbers (sin and cos: NaN beyond the largest angle): the formulas and polynomials
of the CPU engine's, those of S. L. Moshier's Cephes library. Nothing here is called: emitted
kernels contain the text of what they use.
"""

# mypy: disable-error-code="no-untyped-def"

import triton.language as tl


def _whole_and_rest(x):
    """x = n log 2 + rest; n a whole number, as an integer."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    if x.dtype == tl.float64:
        rest = x - n * 6.93145751953125e-1
        rest = rest - n * 1.42860682030941723212e-6
        whole = n.to(tl.int64)
    else:
        rest = x - n * 0.693359375
        rest = rest + n * 2.12194440e-4
        whole = n.to(tl.int32)
    return whole, rest


def _exp_less_one(r):
    """exp(r) - 1 for |r| up to log(2) / 2."""
    if r.dtype == tl.float64:
        p = r * 1.6059043836821613e-10 + 2.08767569878681e-9
        p = p * r + 2.505210838544172e-8
        p = p * r + 2.755731922398589e-7
        p = p * r + 2.7557319223985893e-6
        p = p * r + 2.48015873015873e-5
        p = p * r + 1.984126984126984e-4
        p = p * r + 1.388888888888889e-3
        p = p * r + 8.333333333333333e-3
        p = p * r + 4.1666666666666664e-2
        p = p * r + 1.6666666666666666e-1
    else:
        p = r * 1.9875691500e-4 + 1.3981999507e-3
        p = p * r + 8.3334519073e-3
        p = p * r + 4.1665795894e-2
        p = p * r + 1.6666665459e-1
    p = p * r + 0.5
    return r * r * p + r


def _power_of_two(n):
    """2^n for exponents of normal numbers."""
    if n.dtype == tl.int64:
        power = ((n + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        power = ((n + 127) << 23).to(tl.float32, bitcast=True)
    return power


def exp(x):
    """e to the x: 2^n in two steps, for it may be too small or too large for the format."""
    if x.dtype == tl.float64:
        x = tl.where(x < -746.0, -746.0, x)
        x = tl.where(x > 710.0, 710.0, x)
    else:
        x = tl.where(x < -104.0, -104.0, x)
        x = tl.where(x > 89.0, 89.0, x)
    n, rest = _whole_and_rest(x)
    half = n >> 1
    return (_exp_less_one(rest) + 1.0) * _power_of_two(half) * _power_of_two(n - half)


def sigmoid(x):
    """exp(-|x|) / (1 + exp(-|x|)) below zero, 1 / (1 + exp(-|x|)) above."""
    tail = exp(-tl.abs(x))
    return tl.where(x < 0.0, tail, 1.0) / (tail + 1.0)


def tanh(x):
    """(exp(2|x|) - 1) / (exp(2|x|) + 1) without the loss near zero; the sign is put back."""
    a = tl.abs(x)
    a = tl.where(a > 22.0, 22.0, a)
    n, rest = _whole_and_rest(a + a)
    power = _power_of_two(n)
    growth = power * _exp_less_one(rest) + (power - 1.0)
    size = growth / (growth + 2.0)
    return tl.where(x > 0.0, size, tl.where(x < 0.0, -size, x))


def _exponent_and_fraction(x):
    """x = 2^n * (1 + m), 1 + m between sqrt(1/2) and sqrt(2); for positive x."""
    if x.dtype == tl.float64:
        small = x < 2.2250738585072014e-308
        bits = tl.where(small, x * 18014398509481984.0, x).to(tl.int64, bitcast=True)
        n = (bits >> 52) - tl.where(small, 1076, 1022)
        fraction = ((bits & 0xFFFFFFFFFFFFF) | (1022 << 52)).to(tl.float64, bitcast=True)
    else:
        small = x < 1.1754943508222875e-38
        bits = tl.where(small, x * 33554432.0, x).to(tl.int32, bitcast=True)
        n = (bits >> 23) - tl.where(small, 151, 126)
        fraction = ((bits & 0x7FFFFF) | (126 << 23)).to(tl.float32, bitcast=True)
    low = fraction < 0.70710678118654752440
    n = n - tl.where(low, 1, 0)
    return n.to(x.dtype), tl.where(low, fraction + fraction, fraction) - 1.0


def log(x):
    """Exponent * log 2 + a polynomial of the fraction."""
    n, m = _exponent_and_fraction(x)
    z = m * m
    if x.dtype == tl.float64:
        p = m * 1.01875663804580931796e-4 + 4.97494994976747001425e-1
        p = p * m + 4.70579119878881725854
        p = p * m + 1.44989225341610930846e1
        p = p * m + 1.79368678507819816313e1
        p = p * m + 7.70838733755885391666
        q = m + 1.12873587189167450590e1
        q = q * m + 4.52279145837532221105e1
        q = q * m + 8.29875266912776603211e1
        q = q * m + 7.11544750618563894466e1
        q = q * m + 2.31251620126765340583e1
        y = m * (z * p / q)
        y = y - n * 2.121944400546905827679e-4
    else:
        p = m * 7.0376836292e-2 - 1.1514610310e-1
        p = p * m + 1.1676998740e-1
        p = p * m - 1.2420140846e-1
        p = p * m + 1.4249322787e-1
        p = p * m - 1.6668057665e-1
        p = p * m + 2.0000714765e-1
        p = p * m - 2.4999993993e-1
        p = p * m + 3.3333331174e-1
        y = m * z * p
        y = y - n * 2.12194440e-4
    y = y - z * 0.5
    value = n * 0.693359375 + (m + y)
    value = tl.where(x == float("inf"), x, value)
    value = tl.where(x == 0.0, -float("inf"), value)
    return tl.where((x < 0.0) | (x != x), float("nan"), value)


def _quarter_and_rest(a):
    """a = n pi / 2 + rest for a >= 0: n as an integer, and the rest; products with n are exact."""
    n = tl.floor(a * 0.63661977236758134308 + 0.5)
    if a.dtype == tl.float64:
        rest = a - n * 1.5707963267341256
        rest = rest - n * 6.07710049817245e-11
        rest = rest - n * 8.333742917250222e-20
        rest = rest - n * 1.2706558760139879e-29
        whole = tl.where(a <= 1e6, n, 0.0).to(tl.int64)
    else:
        rest = a - n * 1.5703125
        rest = rest - n * 4.8351287841796875e-4
        rest = rest - n * 3.1385570764541626e-7
        rest = rest - n * 6.07710062827671e-11
        whole = tl.where(a <= 8192.0, n, 0.0).to(tl.int32)
    return whole, rest


def _sine_and_cosine(r):
    """Of |r| up to pi / 4."""
    z = r * r
    if r.dtype == tl.float64:
        p = z * 1.58962301576546568060e-10 - 2.50507477628578072866e-8
        p = p * z + 2.75573136213857245213e-6
        p = p * z - 1.98412698295895385996e-4
        p = p * z + 8.33333333332211858878e-3
        p = p * z - 1.66666666666666307295e-1
        q = z * -1.13585365213876817300e-11 + 2.08757008419747316778e-9
        q = q * z - 2.75573141792967388112e-7
        q = q * z + 2.48015872888517045348e-5
        q = q * z - 1.38888888888730564116e-3
        q = q * z + 4.16666666666665929218e-2
    else:
        p = z * -1.9515295891e-4 + 8.3321608736e-3
        p = p * z - 1.6666654611e-1
        q = z * 2.443315711809948e-5 - 1.388731625493765e-3
        q = q * z + 4.166664568298827e-2
    return r * z * p + r, z * z * q + (1.0 - z * 0.5)


def _quarters_on(a, quarters):
    """sin(a + quarters * pi / 2) for a >= 0."""
    n, rest = _quarter_and_rest(a)
    sine, cosine = _sine_and_cosine(rest)
    turned = n + quarters
    value = tl.where((turned & 1) == 1, cosine, sine)
    value = tl.where((turned & 2) == 2, -value, value)
    largest = 1e6 if a.dtype == tl.float64 else 8192.0
    return tl.where(a <= largest, value, float("nan"))


def sin(x):
    """Sine of |x|; the sign is put back."""
    size = _quarters_on(tl.abs(x), 0)
    return tl.where(x == 0.0, x, tl.where(x < 0.0, -size, size))


def cos(x):
    """Sine of |x| and a quarter of a turn."""
    return _quarters_on(tl.abs(x), 1)


def _log1p(x):
    """log(1 + x) for x in [0, 1], with what rounding 1 + x lost put back."""
    total = x + 1.0
    return log(total) + (x - (total - 1.0)) / total


def softplus(x):
    """max(x, 0) + log1p(exp(-|x|))."""
    return tl.where(x < 0.0, 0.0, x) + _log1p(exp(-tl.abs(x)))


def log_sigmoid(x):
    """min(x, 0) - log1p(exp(-|x|))."""
    return tl.where(x > 0.0, 0.0, x) - _log1p(exp(-tl.abs(x)))


def maximum(a, b):
    """The greater, NaN if either is."""
    return tl.where((a > b) | (a != a), a, b)


def minimum(a, b):
    """The lesser, NaN if either is."""
    return tl.where((a < b) | (a != a), a, b)


def relu(x):
    """max(x, 0)."""
    return tl.where(x < 0.0, 0.0, x)
