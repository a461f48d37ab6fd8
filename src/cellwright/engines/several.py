"""What autograd's functions of several recurrences share: what they save and what they return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cellwright.engines.protocol import Call, Result
from cellwright.engines.tensors import split


def save(ctx: Any, calls: Sequence[Call], found: Sequence[Result]) -> tuple[Tensor, ...]:
    """Save what the gradients of calls need; returns the tensors of all results in a row."""
    ctx.set_materialize_grads(False)
    ctx.calls = [(call.signature, call.reverse) for call in calls]
    saved: list[Tensor] = []
    ctx.counts, ctx.like, results = [], [], []
    for call, each in zip(calls, found, strict=True):
        parts = [[call.x], call.states, call.weights, call.streams, each.kept]
        saved += [tensor for part in parts for tensor in part]
        ctx.counts.append([len(part) for part in parts])
        own = [each.output, *each.states, *each.trace]
        ctx.like.append([(tensor.shape, tensor.dtype, tensor.device) for tensor in own])
        results += own
    ctx.save_for_backward(*saved)
    return tuple(results)


def saved_calls(ctx: Any) -> tuple[list[Call], list[list[Tensor]]]:
    """The calls, and what was kept of each."""
    saved = split(ctx.saved_tensors, [sum(counts) for counts in ctx.counts])
    calls, every_kept = [], []
    for (signature, reverse), counts, own in zip(ctx.calls, ctx.counts, saved, strict=True):
        (x,), states, weights, streams, kept = split(own, counts)
        calls.append(Call(signature, x, states, weights, streams, reverse))
        every_kept.append(kept)
    return calls, every_kept


def results(calls: Sequence[Call], tensors: Sequence[Tensor]) -> list[Result]:
    """The results of calls whose tensors stand in a row."""
    counts = [(1, len(c.states), len(c.signature.plan.forward.trace)) for c in calls]
    found = []
    for part, count in zip(split(tensors, [sum(each) for each in counts]), counts, strict=True):
        (output,), after, traced = split(part, count)
        found.append(Result(output, after, traced, []))
    return found
