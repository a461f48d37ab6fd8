"""Calls of the GPU engine beside the reference engine, on a CPU or on a GPU.

Fresh memory holds NaN while testing: what is read before it is written does not go unnoticed.
"""

from dataclasses import replace

import torch
from engines.cases import assert_same, draw_cotangents, gradients_of, results_of

from cellwright.engines import Cotangents
from cellwright.engines.gpu import GpuEngine
from cellwright.engines.reference import ReferenceEngine

FORMS = ("resident", "steps")

# Relative to the largest number of each tensor, over at most nine steps of some tens of products.
TOLERANCE = {
    # Sums in another order, functions off by 3 units in the last place.
    torch.float64: 1e-11,
    torch.float32: 2e-5,  # the same with 6e-8 for 1e-16
    # Numbers in memory, and the operands of products, are rounded: by 2^-11 and by 2^-8.
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}


def moved(call, dtype=None, device=None):
    """The same call in another dtype or place; masks of truth values stay what they are."""

    def turned(each):
        return each.to(device=device, dtype=dtype if each.is_floating_point() else None)

    return replace(
        call,
        x=turned(call.x),
        states=[*map(turned, call.states)],
        weights=[*map(turned, call.weights)],
        streams=[*map(turned, call.streams)],
    )


def moved_cotangents(given, dtype=None, device=None):
    """The same gradients in another dtype or place."""
    return Cotangents(
        given.output.to(device, dtype),
        [each.to(device, dtype) for each in given.states],
        [each.to(device, dtype) for each in given.trace],
    )


def by_engine(engine, call, cotangents=None):
    """Results and gradients by name, and the gradients that arrived."""
    result = engine.forward(call, keep=True)
    if cotangents is None:
        cotangents = moved_cotangents(draw_cotangents(on_cpu(result)), call.x.dtype, call.x.device)
    found = engine.backward(call, result.kept, cotangents, need_x=True)
    gradients = gradients_of(found.x, found.states, found.weights, call)
    return results_of(result, call), gradients, cotangents


def on_cpu(result):
    """A result whose random gradients are to be drawn."""
    return replace(
        result,
        output=result.output.cpu(),
        states=[each.cpu() for each in result.states],
        trace=[each.cpu() for each in result.trace],
    )


def compare(call, form, *, unkept=True, tolerance=None):
    """Results and all gradients of a form and of the reference engine, which runs in float64."""
    engine, dtype = GpuEngine(form), call.x.dtype
    results, gradients, cotangents = by_engine(engine, call)
    if unkept:
        others = results_of(engine.forward(call, keep=False), call)
        for name, value in results.items():
            assert torch.equal(others[name], value), f"{name} has other bits without keeping"
    tolerance = tolerance or TOLERANCE[dtype]
    assert {v.dtype for v in (*results.values(), *gradients.values())} == {dtype}
    exact = moved(call, torch.float64)
    expected, of_reference, _ = by_engine(
        ReferenceEngine(), exact, moved_cotangents(cotangents, torch.float64)
    )
    for found, twins, what in (
        (results, expected, "result"), (gradients, of_reference, "gradient")
    ):  # fmt: skip
        assert_same({n: v.double() for n, v in found.items()}, twins, tolerance, what)


def of_members(engine, call, cotangents=None):
    """What a population yields: results, gradients of whole tensors; the gradients that arrived."""
    result = engine.forward(call, keep=True)
    if cotangents is None:
        cotangents = moved_cotangents(draw_cotangents(on_cpu(result)), call.x.dtype, call.x.device)
    found = engine.backward(call, result.kept, cotangents, need_x=True)
    gradients = dict(enumerate([found.x, *found.states, *found.weights]))
    return results_of(result, call), gradients, cotangents


def compare_members(call, form, cotangents=None):
    """A population in a form, and its members one by one on the reference engine in float64."""
    *found, arrived = of_members(GpuEngine(form), call, cotangents)
    assert {v.dtype for part in found for v in part.values()} == {call.x.dtype}
    exact, arriving = moved(call, torch.float64), moved_cotangents(arrived, torch.float64)
    tolerance = TOLERANCE[call.x.dtype]
    for number, member in enumerate(exact.members()):
        expected = of_members(ReferenceEngine(), member, arriving.of_member(number))
        for own, twins, what in zip(found, expected[:2], ("result", "gradient"), strict=True):
            values = {name: value[number].double() for name, value in own.items()}
            assert_same(values, twins, tolerance, f"member {number}, {what}")
