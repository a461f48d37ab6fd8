"""Calls of the CPU engine, in memory that is poisoned and guarded.

Whatever the engine reads or writes lies between guards: a number read from behind an array's end is
NaN, and a number written there is noticed. Working memory holds NaN before every run.
"""

import ctypes
import mmap
import os
from contextlib import contextmanager
from dataclasses import replace

import torch
from engines.cases import draw_cotangents, gradients_of, results_of

from cellwright.engines import Cotangents
from cellwright.engines.cpu import (
    CpuEngine,
    backward_pass,
    exchange,
    images,
    lending,
    memory,
    pages,
    parameters,
    population,
    runtime,
    scripted,
    sharing,
    slots,
    spatial_kernels,
)
from cellwright.engines.reference import ReferenceEngine

ENGINE = CpuEngine()
GUARD = 4096  # bytes on either side: a whole vector of the widest kind, and far more


class Guards:
    """Tensors with guards on both sides; used by the engine's modules in place of ``torch``."""

    def __init__(self):
        self.wholes = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype=torch.float32, device=None):
        """As ``torch.empty``, with NaN (or True) inside and outside."""
        shape = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        width = torch.empty((), dtype=dtype).element_size()
        edge, count = GUARD // width, shape.numel()
        poison = float("nan") if dtype.is_floating_point else 1
        whole = torch.full((edge + count + edge,), poison, dtype=dtype)
        self.wholes.append((whole, edge, count))
        return whole[edge : edge + count].view(shape)

    def zeros(self, *shape, dtype=torch.float32):
        return self.empty(*shape, dtype=dtype).zero_()

    def empty_like(self, given):
        return self.empty(given.shape, dtype=given.dtype)

    def copy(self, given):
        """The same numbers, contiguous, between guards."""
        return self.empty(given.shape, dtype=given.dtype).copy_(given)

    def check(self):
        """Fail if a guard is not what it was."""
        for whole, edge, count in self.wholes:
            for part in (whole[:edge], whole[edge + count :]):
                intact = part.isnan() if whole.is_floating_point() else part
                assert intact.all(), "a number was written outside of its array"


class Edges(Guards):
    """Tensors that end where the process may not read: reading further ends the process."""

    def empty(self, *shape, dtype=torch.float32, device=None):
        shape = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        count = shape.numel()
        size = count * torch.empty((), dtype=dtype).element_size()
        page = mmap.PAGESIZE
        room = -(-size // page) * page
        held = mmap.mmap(-1, room + page)
        place = ctypes.addressof(ctypes.c_char.from_buffer(held))
        library = ctypes.CDLL(None, use_errno=True)
        failed = library.mprotect(ctypes.c_void_p(place + room), ctypes.c_size_t(page), 0)
        assert not failed, os.strerror(ctypes.get_errno())
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        # The tensor holds on to the memory.
        found = torch.frombuffer(held, dtype=dtype, count=count, offset=room - size)
        return found.fill_(float("nan") if dtype.is_floating_point else 1).view(shape)


def poison():
    """Fill the working memory that is kept from call to call."""
    with torch.inference_mode():  # some of it may have been taken there
        for held in memory.memory._held.values():
            held.fill_(float("nan"))


@contextmanager
def guarded(kind=Guards):
    """Let the engine allocate between guards; checked at the end."""
    guards = kind()
    modules = (
        backward_pass, pages, parameters, population, runtime, scripted, slots, images,
        exchange, spatial_kernels,
    )  # fmt: skip
    for module in modules:
        module.torch = guards
    kept = dict(memory.memory._held)
    memory.memory._held.clear()
    lending.lender.clear()
    try:
        yield guards
        guards.check()
    finally:
        for module in modules:
            module.torch = torch
        lending.lender.clear()
        memory.memory._held.clear()
        memory.memory._held.update(kept)


def cast(call, dtype):
    """The same call in another dtype."""

    def turned(each):
        return each.to(dtype) if each.is_floating_point() else each

    return replace(
        call,
        x=turned(call.x),
        states=[*map(turned, call.states)],
        weights=[*map(turned, call.weights)],
        streams=[*map(turned, call.streams)],
    )


def cast_cotangents(given, dtype):
    """The same gradients in another dtype."""
    return Cotangents(
        given.output.to(dtype),
        [each.to(dtype) for each in given.states],
        [each.to(dtype) for each in given.trace],
    )


def by_engine(engine, call, cotangents=None):
    """Results and gradients by name, and the gradients that arrived."""
    result = engine.forward(call, keep=True)
    cotangents = cotangents or draw_cotangents(result)
    found = engine.backward(call, result.kept, cotangents, need_x=True)
    gradients = gradients_of(found.x, found.states, found.weights, call)
    return results_of(result, call), gradients, cotangents


def by_cpu(call, cotangents=None, *, unkept=True, kind=Guards):
    """As :func:`by_engine`, between guards; the run without keeping yields the very same."""
    with guarded(kind) as guards:
        call = replace(
            call,
            x=guards.copy(call.x),
            states=[*map(guards.copy, call.states)],
            weights=[*map(guards.copy, call.weights)],
            streams=[*map(guards.copy, call.streams)],
        )
        found = by_engine(ENGINE, call, cotangents)
        if unkept:
            poison()
            others = results_of(ENGINE.forward(call, keep=False), call)
            assert_equal(others, found[0], "without keeping")
    return found


def by_reference(call, cotangents):
    """Results and gradients of the reference engine."""
    return by_engine(ReferenceEngine(), call, cotangents)[:2]


def assert_equal(found, expected, what):
    """The same bits, tensor by tensor."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape, f"{what}: shape of {name}"
        assert torch.equal(value, expected[name]), f"{what}: {name} has other bits"


UNITS = {
    "ALONE_BELOW": 0, "SHARE_ALONE_BELOW": 0, "SHARE_FROM": 0, "SHARE_EACH": 1, "LARGE_WEIGHTS": 0,
}  # fmt: skip
"""Limits with which the units of a few rows are shared out, however few they are."""


def share_units(monkeypatch):
    for limit, value in UNITS.items():
        monkeypatch.setattr(sharing, limit, value)
