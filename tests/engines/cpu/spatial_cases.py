"""Calls in which ``@`` is a convolution, made from calls in which it is a product."""

from dataclasses import replace

import torch
from engines.cases import generator, make_call

from cellwright.ir import Matrix


def make_spatial_call(
    spec, options=None, shape=None, *, space=(4, 5), kernel=(3, 3), positional=False, reverse=False,
    seed=0, stacked=True,
):  # fmt: skip
    """A call with random tensors in float64.

    Args:
        space: extents.
        kernel: of every convolution.
        positional: the vectors of the equations have a number for each channel and position.
        stacked: parameters of one type lie in one tensor, the last on top.
    """
    dense = make_call(spec, options, shape, reverse=reverse, seed=seed, stacked=stacked)
    draws = generator(seed + 1)

    def randn(*extents):
        return torch.randn(extents, generator=draws, dtype=torch.float64)

    flat = (1,) * len(space)
    kinds = {each.name: each for each in dense.signature.plan.parameters}
    own = {each.name for each in spec.parameters}
    weights = []
    for index, weight in enumerate(dense.weights):
        inside = [kinds[s.parameter] for s in dense.signature.slices if s.tensor == index]
        if isinstance(inside[0].type, Matrix):
            columns = weight.shape[1] * torch.Size(kernel).numel()
            weights.append(randn(*weight.shape, *kernel) * 1.5 / columns**0.5)
        elif positional and {each.name for each in inside} <= own:
            weights.append(randn(*weight.shape, *space))
        else:
            weights.append(weight)
    states = [randn(*each.shape, *space) * 0.5 for each in dense.states]
    if spec.name == "slstm":  # n counts what was let in: it is never negative
        states = [each.abs() + 0.2 for each in states]
    streams = []
    for stream, mask in zip(dense.signature.plan.graph.streams, dense.streams, strict=True):
        if stream.name.startswith("zoneout"):
            streams.append(torch.rand(*mask.shape, *space, generator=draws) < 0.4)
        else:
            streams.append(mask.reshape(*mask.shape, *flat))
    return replace(
        dense,
        signature=replace(dense.signature, spatial=len(space)),
        x=randn(*dense.x.shape, *space),
        states=states,
        weights=weights,
        streams=streams,
    )
