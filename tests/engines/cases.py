"""Calls of engines: cells, options and random tensors, and a plain loop to compare them with."""

from dataclasses import dataclass, replace

import torch
from plan.cases import options_for

import cellwright as cw
from cellwright.engines import Call, Cotangents, Signature, Slice
from cellwright.engines.reference import ReferenceEngine, differentiable
from cellwright.plan import StepOptions, build

DTYPE = torch.float64


@dataclass(frozen=True)
class Shape:
    """Sizes of a call."""

    steps: int = 4
    batch: int = 3
    inputs: int = 3
    hidden: int = 5


# Odd sizes; one step; one sequence; one unit.
SHAPES = {
    "odd": Shape(4, 3, 7, 5),
    "one step": Shape(1, 3, 2, 3),
    "one sequence": Shape(5, 1, 3, 2),
    "one of all": Shape(1, 1, 1, 1),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sizes_of(spec, shape, heads=1):
    """Every size by name; hidden sizes that the heads divide."""
    sizes = {"input": shape.inputs, "hidden": shape.hidden * heads}
    return sizes | {name: max(1, shape.hidden - 2) * heads for name in spec.size_names}


def draw_stream(stream, shape, size, draws):
    """A random mask of the kind that the name says."""
    kind = stream.name.partition(".")[0]
    steps, batch = shape.steps, shape.batch
    if kind == "active":
        lengths = torch.randint(0, steps + 1, (batch,), generator=draws)
        lengths[-1] = 0 if batch > 1 else steps  # one sequence has no steps at all
        lengths[0] = steps
        return (torch.arange(steps)[:, None] < lengths).unsqueeze(-1)
    if kind == "reset":
        return torch.rand(steps, batch, 1, generator=draws) < 0.3
    if kind == "zoneout":
        return torch.rand(steps, batch, size, generator=draws) < 0.4
    assert kind == "dropout", stream.name
    return (torch.rand(batch, size, generator=draws) < 0.6).to(DTYPE) / 0.6


def draw_states(spec, sizes, batch, draws, dtype=DTYPE):
    """Random states; positive where the equations divide by them."""
    states = [
        torch.randn(batch, sizes[state.size], generator=draws, dtype=dtype) * 0.5
        for state in spec.states
    ]
    if spec.name == "slstm":  # n counts what was let in: it is never negative
        states = [each.abs() + 0.2 for each in states]
    return states


def make_call(spec, options=None, shape=None, *, reverse=False, seed=0, dtype=DTYPE, stacked=False):
    """A call with random tensors.

    Each parameter is a tensor of its own, or all parameters of one type are stacked in one
    tensor, the last on top.
    """
    options, shape = options or StepOptions(), shape or Shape()
    plan, draws = build(spec, options), generator(seed)
    sizes = sizes_of(spec, shape, options.heads)
    values = {}
    for parameter in plan.parameters:
        extents = parameter.shape(sizes)
        scale = 1.0 if len(extents) == 1 else 1.5 / max(1, extents[1]) ** 0.5
        values[parameter.name] = torch.randn(extents, generator=draws, dtype=dtype) * scale
    groups = [[parameter] for parameter in plan.parameters]
    if stacked:
        kinds = dict.fromkeys(parameter.type for parameter in plan.parameters)
        groups = [[p for p in reversed(plan.parameters) if p.type == kind] for kind in kinds]
    slices, weights = [], []
    for index, group in enumerate(groups):
        start = 0
        for parameter in group:
            stop = start + len(values[parameter.name])
            slices.append(Slice(parameter.name, index, start, stop))
            start = stop
        weights.append(torch.cat([values[parameter.name] for parameter in group]))
    x = torch.randn(shape.steps, shape.batch, shape.inputs, generator=draws, dtype=dtype)
    streams = [draw_stream(s, shape, sizes.get(s.size, 1), draws) for s in plan.graph.streams]
    streams = [each if each.dtype == torch.bool else each.to(dtype) for each in streams]
    signature = Signature(spec, options, tuple(sorted(sizes.items())), tuple(slices))
    states = draw_states(spec, sizes, shape.batch, draws, dtype)
    return Call(signature, x, states, weights, streams, reverse)


def draw_cotangents(result, seed=9):
    """Gradients that arrive from outside, for everything that a call yields."""
    draws = generator(seed)

    def like(v):
        return torch.randn(v.shape, generator=draws, dtype=v.dtype)

    return Cotangents(like(result.output), [*map(like, result.states)], [*map(like, result.trace)])


def named(output, states, trace, call):
    """Tensors by name, for messages."""
    names = [state.name for state in call.signature.spec.states]
    found = {"output": output} | {f"final {n}": v for n, v in zip(names, states, strict=True)}
    traced = call.signature.plan.forward.trace
    return found | {f"trace {n}": v for n, v in zip(traced, trace, strict=True)}


def results_of(result, call):
    """Everything that the forward pass yields, by name."""
    return named(result.output, result.states, result.trace, call)


def gradients_of(x, states, weights, call):
    """Gradients by name."""
    spec = call.signature.spec
    found = {"d x": x}
    found |= {f"d {state.name}": v for state, v in zip(spec.states, states, strict=True)}
    for each in call.signature.slices:
        found[f"d {each.parameter}"] = weights[each.tensor][each.start : each.stop]
    return found


def by_the_plan(call, cotangents=None):
    """Results and derived gradients by the engine."""
    engine = ReferenceEngine()
    result = engine.forward(call, keep=True)
    cotangents = cotangents or draw_cotangents(result)
    found = engine.backward(call, result.kept, cotangents, need_x=True)
    gradients = gradients_of(found.x, found.states, found.weights, call)
    return results_of(result, call), gradients, cotangents


def by_autograd(call, cotangents, run=differentiable):
    """Results of ``run``, and the gradients that torch finds for them."""

    def leaf(v):
        return v.detach().clone().requires_grad_()

    copy = replace(
        call, x=leaf(call.x), states=[*map(leaf, call.states)], weights=[*map(leaf, call.weights)]
    )
    result = run(copy)
    outputs = [result.output, *result.states, *result.trace]
    arriving = [cotangents.output, *cotangents.states, *cotangents.trace]
    wanted = [copy.x, *copy.states, *copy.weights]
    pairs = [(o, a) for o, a in zip(outputs, arriving, strict=True) if o.requires_grad]
    found = torch.autograd.grad(
        [o for o, _ in pairs], wanted, [a for _, a in pairs], allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    count = len(copy.states)
    gradients = gradients_of(found[0], found[1 : 1 + count], found[1 + count :], call)
    detached = {name: value.detach() for name, value in results_of(result, call).items()}
    return detached, gradients


def assert_same(found, expected, tolerance, what=""):
    """Each tensor agrees relative to the largest number in its twin."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        twin = expected[name]
        assert value.shape == twin.shape, f"{what} {name}: {value.shape} and {twin.shape}"
        assert value.dtype == twin.dtype, f"{what} {name}: {value.dtype} and {twin.dtype}"
        assert value.isfinite().all(), f"{what} {name} is not finite"
        size = max(1.0, twin.abs().max().item() if twin.numel() else 0.0)
        apart = (value - twin).abs().max().item() if twin.numel() else 0.0
        assert apart <= tolerance * size, f"{what} {name}: {apart} apart, numbers up to {size}"


CATALOGUE = {name: cw.cells.get(name) for name in cw.cells.names()}
__all__ = [
    "CATALOGUE", "DTYPE", "SHAPES", "Shape", "assert_same", "by_autograd", "by_the_plan",
    "draw_cotangents", "generator", "make_call", "options_for", "results_of", "sizes_of",
]  # fmt: skip
