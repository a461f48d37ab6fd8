"""Random cells: short programs that run on symbols, and just as well on plain tensors.

A program is a list of instructions. Run inside ``@cell`` on symbols it makes a cell; run on
tensors, with torch's own functions, it says what that cell should compute. Neither run knows
of the other, so they can be compared.
"""

from types import SimpleNamespace

import torch
from hypothesis import strategies as st

from cellwright import lang


class Weight:
    """A matrix that ``@`` multiplies with each row of a batch."""

    def __init__(self, value):
        self.value = value

    def __matmul__(self, v):
        return v @ self.value.T


def _layer_norm(*vectors, eps=1e-5):
    count = sum(v.shape[-1] for v in vectors)
    center = sum(v.sum(-1, keepdim=True) for v in vectors) / count
    variance = sum(((v - center) ** 2).sum(-1, keepdim=True) for v in vectors) / count
    results = tuple((v - center) / torch.sqrt(variance + eps) for v in vectors)
    return results[0] if len(results) == 1 else results


def _tensor(value):
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)


TENSORS = SimpleNamespace(
    sigmoid=torch.sigmoid,
    tanh=torch.tanh,
    relu=torch.relu,
    exp=torch.exp,
    log=torch.log,
    sin=torch.sin,
    cos=torch.cos,
    log_sigmoid=torch.nn.functional.logsigmoid,
    softplus=torch.nn.functional.softplus,
    sqrt=torch.sqrt,
    abs=torch.abs,
    square=torch.square,
    maximum=lambda a, b: torch.maximum(*torch.broadcast_tensors(_tensor(a), _tensor(b))),
    minimum=lambda a, b: torch.minimum(*torch.broadcast_tensors(_tensor(a), _tensor(b))),
    where=lambda c, a, b: torch.where(c, _tensor(a), _tensor(b)),
    mean=lambda v: v.mean(-1, keepdim=True),
    layer_norm=_layer_norm,
)

# name -> what it does with two earlier values; every result is of order 1.
INSTRUCTIONS = {
    "add": lambda f, a, b: 0.5 * (a + b),
    "sub": lambda f, a, b: 0.7 * a - b / 2,
    "mul": lambda f, a, b: a * f.tanh(b),
    "div": lambda f, a, b: a / (1 + f.square(b)),
    "neg": lambda f, a, b: -a + 0.25,
    "square": lambda f, a, b: f.tanh(a) ** 2,
    "sqrt": lambda f, a, b: f.sqrt(1.5 + f.tanh(a)),
    "abs": lambda f, a, b: f.abs(a - 0.125),
    "maximum": lambda f, a, b: f.maximum(a, b * 0.9 + 0.05),
    "minimum": lambda f, a, b: f.minimum(a, 0.3 - b),
    "sigmoid": lambda f, a, b: f.sigmoid(a),
    "tanh": lambda f, a, b: f.tanh(a + 0.1),
    "relu": lambda f, a, b: f.relu(a + 0.2),
    "exp": lambda f, a, b: f.exp(f.tanh(a)),
    "log": lambda f, a, b: f.log(1.2 + f.tanh(a)),
    "sin": lambda f, a, b: f.sin(2 * a),
    "cos": lambda f, a, b: f.cos(a + b),
    "log_sigmoid": lambda f, a, b: 0.5 * f.log_sigmoid(a),
    "softplus": lambda f, a, b: 0.5 * f.softplus(a),
    "less": lambda f, a, b: f.where(a < b, a, 0.5),
    "less_equal": lambda f, a, b: f.where(a <= b * 0.8, 0.2, b),
    "greater": lambda f, a, b: f.where(a > 0.15, a * b / 2, b),
    "greater_equal": lambda f, a, b: f.where(a >= b, 0.1, 1 - b),
    "mean": lambda f, a, b: a * f.mean(b),
    "center": lambda f, a, b: f.mean(f.abs(a) - f.mean(b)) + a,
    "scale": lambda f, a, b: a / (1 + f.mean(f.square(b))),
    "layer_norm": lambda f, a, b: 0.5 * f.layer_norm(a + 0.3 * b),
    "layer_norm_two": lambda f, a, b: f.tanh(f.layer_norm(a, b)[1]),
}
WEIGHTED = (
    "input",
    "matrix",
    "product_of_mean",
    "peephole",
    "bias",
    "of_parameters",
    "mean_product",
)


def perform(program, f, x, h, c, W, U, V, b):
    """The values that a program computes, in order; the last two are the new states."""
    values = [h, c, W.start @ x + U.start @ h + V.start * c + b.start]
    for number, (op, first, second) in enumerate(program):
        one, two = values[first % len(values)], values[second % len(values)]
        member = f"m{number}"

        def get(group, name=member):
            return getattr(group, name)

        if op == "input":
            value = f.tanh(get(W) @ x + 0.5 * one)
        elif op == "matrix":
            value = get(U) @ one + two * 0.3
        elif op == "product_of_mean":
            value = get(U) @ (one - f.mean(two))
        elif op == "peephole":
            value = get(V) * one - 0.1
        elif op == "bias":
            value = 0.5 * one + get(b)
        elif op == "of_parameters":
            value = one * 0.5 + get(U) @ f.sigmoid(get(b))
        elif op == "mean_product":
            value = one * f.tanh(f.mean(get(U) @ two))
        else:
            value = INSTRUCTIONS[op](f, one, two)
        values.append(value)
    return values


def ends(f, values):
    """The new states: bounded, and of the width of a state."""
    return f.tanh(values[-1] + 0.1 * values[2]), f.tanh(values[-2] - 0.2 * values[2])


def cell_of(program):
    """The cell that computes a program; it watches every value as ``v2``, ``v3``, ..."""

    def random_cell(x, h, c, W, U, V, b):
        values = perform(program, lang, x, h, c, W, U, V, b)
        h, c = ends(lang, values)
        watch = {f"v{index}": value for index, value in enumerate(values) if index > 1}
        return lang.next_state(h=h, c=c, watch=watch)

    return lang.cell(state=("h", "c"))(random_cell)


def groups_of(spec, weights):
    """Weights by name as the groups that equations use: ``W.i`` is a matrix, ``b.i`` a vector."""
    groups = {}
    for parameter in spec.parameters:
        value = weights[parameter.name]
        value = Weight(value) if value.dim() == 2 else value
        if parameter.member is None:
            groups[parameter.group] = value
        else:
            setattr(groups.setdefault(parameter.group, SimpleNamespace()), parameter.member, value)
    return groups


def weights_of(spec, sizes, seed=0):
    """Random float64 weights by name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        p.name: 0.5 * torch.randn(p.shape(sizes), generator=generator, dtype=torch.float64)
        for p in spec.parameters
    }


def programs(longest=9):
    """A hypothesis strategy for programs."""
    instruction = st.tuples(
        st.sampled_from([*INSTRUCTIONS, *WEIGHTED]), st.integers(0, 20), st.integers(0, 20)
    )
    return st.lists(instruction, max_size=longest).map(tuple)
