"""A loop over time that knows nothing of plans: equations, one step after another.

It evaluates the graph of a step, options included, with formulas of its own. What it yields
is compared with what engines yield by hoisting, staging, saving and derived gradients.
"""

import torch

from cellwright.engines import Result
from cellwright.ir import Matrix, topological
from cellwright.plan import specialise


class _Rounded(torch.autograd.Function):
    """A number as bfloat16 holds it; gradients pass."""

    @staticmethod
    def forward(ctx, v):
        return v.bfloat16().to(v.dtype)

    @staticmethod
    def backward(ctx, g):
        return g


class _Limited(torch.autograd.Function):
    """The value as it is; its gradient between -limit and limit."""

    @staticmethod
    def forward(ctx, v, limit):
        ctx.limit = limit
        return v * 1

    @staticmethod
    def backward(ctx, g):
        return torch.minimum(torch.maximum(g, -torch.full_like(g, ctx.limit)),
                             torch.full_like(g, ctx.limit)), None  # fmt: skip


def _product(weight, v, kind):
    """A block-diagonal product is many small ones."""
    rows = weight.chunk(kind.blocks, dim=0)
    parts = v.chunk(kind.blocks, dim=-1)
    return torch.cat([p @ r.T for p, r in zip(parts, rows, strict=True)], dim=-1)


RULES = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "square": lambda a: a * a,
    "sqrt": lambda a: a**0.5,
    "rsqrt": lambda a: a**-0.5,
    "abs": lambda a: torch.where(a > 0, a, torch.where(a < 0, -a, a * 0)),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "sigmoid": lambda a: 0.5 + 0.5 * torch.tanh(0.5 * a),
    "tanh": torch.tanh,
    "relu": lambda a: torch.where(a > 0, a, a * 0),
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": lambda a: 1 - 2 * torch.sin(0.5 * a) ** 2,
    "log_sigmoid": lambda a: -torch.nn.functional.softplus(-a, beta=1, threshold=1000),
    "softplus": lambda a: torch.nn.functional.softplus(a, beta=1, threshold=1000),
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "where": lambda c, a, b: torch.where(c, a, b),
}


def _evaluate(each, values, sizes, like):
    """One node: (B, units), all units written out."""
    units = sizes[each.size]
    if each.op == "constant":
        return like.new_full((like.shape[0], units), each.attribute("value"))
    if each.op == "reciprocal_size":
        return like.new_full((like.shape[0], 1), 1.0 / sizes[each.attribute("size")])
    operands = [values[source] for source in each.inputs]
    attributes = dict(each.attributes)
    if each.op == "matvec":
        if attributes.get("precision") == "bf16":
            operands = [_Rounded.apply(v) for v in operands]
        return _product(*operands, each.inputs[0].matrix)
    if each.op == "mean":
        return operands[0].sum(-1, keepdim=True) / operands[0].shape[-1]
    if each.op == "clip_gradient":
        return _Limited.apply(operands[0], attributes["limit"])
    if each.op == "stop_gradient":
        return operands[0].detach()
    return RULES[each.op](*operands).expand(like.shape[0], units)


def plain_loop(call):
    """The results of a call, step by step."""
    signature = call.signature
    graph, sizes = specialise(signature.spec, signature.options), signature.size
    batch = call.x.shape[1]
    weights = {
        each.parameter: call.weights[each.tensor][each.start : each.stop]
        for each in signature.slices
    }
    states = dict(zip([s.name for s in graph.states], call.states, strict=True))
    outputs, traces = {}, {name: {} for name in graph.trace}
    order = topological(graph.roots)
    steps = range(call.x.shape[0])
    for t in reversed(steps) if call.reverse else steps:
        streams = {
            spec.name: mask[t] if spec.per_step else mask
            for spec, mask in zip(graph.streams, call.streams, strict=True)
        }
        values = {}
        for each in order:
            name = dict(each.attributes).get("name")
            if each.op == "input":
                values[each] = call.x[t]
            elif each.op == "state":
                values[each] = states[name]
            elif each.op == "stream":
                values[each] = streams[name]
            elif each.op == "parameter":
                whole = isinstance(each.type, Matrix)
                values[each] = weights[name] if whole else weights[name].expand(batch, -1)
            else:
                values[each] = _evaluate(each, values, sizes, call.x[t])
        states = {name: values[node] for name, node in graph.next.items()}
        outputs[t] = values[graph.output]
        for name, node in graph.trace.items():
            traces[name][t] = values[node]

    def stack(by_step):
        return torch.stack([by_step[t] for t in steps])

    return Result(stack(outputs), [*states.values()], [stack(v) for v in traces.values()], [])
