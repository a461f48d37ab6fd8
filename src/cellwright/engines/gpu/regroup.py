"""The stages of a loop as they are launched, and places for what goes from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cellwright.engines.cpu.arrays import Array, Kind
from cellwright.engines.cpu.program import Program
from cellwright.engines.gpu.frame import ARITHMETIC, WORKING
from cellwright.ir import ONE, TABLE
from cellwright.plan import Stage


def regroup(stages: Sequence[Stage]) -> list[Stage]:
    """The stages as they are launched: sums over units apart from products, and together."""
    parts: list[Stage] = []
    for each in stages:
        if each.products and each.reductions:
            parts.append(Stage((), each.reductions, (), ()))
            parts.append(Stage(each.products, (), each.pointwise, ()))
        else:
            parts.append(each)
    groups: list[list[Stage]] = []
    for each in parts:
        if groups and not each.products and not groups[-1][-1].products:
            groups[-1].append(each)
        else:
            groups.append([each])
    joined: list[Stage] = []
    for group in groups:
        if any(each.reductions for each in group):
            nodes = [n for each in group for n in each.nodes]
            sums = tuple(n for n in nodes if TABLE[n.op].kind == "reduction")
            rest = tuple(n for n in nodes if n not in sums)
            joined.append(Stage((), sums, rest, ()))
        else:
            joined += group
    return [_with_stored(joined, index) for index in range(len(joined))]


def _with_stored(stages: Sequence[Stage], index: int) -> Stage:
    """A stage, knowing what later ones read of it."""
    read = {source for later in stages[index + 1 :] for n in later.nodes for source in n.inputs}
    stored = tuple(each for each in stages[index].nodes if each in read)
    return replace(stages[index], stored=stored)


def with_temporaries(program: Program, dtype: torch.dtype) -> Program:
    """The program regrouped, with a place in memory for every value that a later stage reads.

    A value that lies there rounded has another place, as it was computed, unless all that reads
    it are products, which would round it themselves.
    """
    stores, temporaries = dict(program.stores), dict[str, int]()
    stages = regroup(program.stages)
    narrow = ARITHMETIC[dtype] != dtype
    read = {
        source
        for stage in stages
        for each in stage.nodes
        if TABLE[each.op].kind != "product"
        for source in each.inputs
    }
    for stage in stages:
        for each in stage.stored:
            rounded = narrow and each in read and not each.vector.boolean
            known = stores.get(each, [])
            if any(_is_working(array) or not rounded for array in known):
                continue
            name = f"temporary.{len(temporaries)}"
            kind = Kind.ROW if each.size == ONE else Kind.ROWS
            temporaries[name] = program.sizes[each.size]
            boolean = each.vector.boolean
            array = Array(name, kind, stride=temporaries[name], boolean=boolean)
            stores[each] = [array, *known]
    return replace(program, stages=stages, stores=stores, temporaries=temporaries)


def nearest(arrays: list[Array]) -> Array:
    """Where a value is read from: working memory holds it as it was computed."""
    return next(filter(_is_working, arrays), arrays[0])


def _is_working(array: Array) -> bool:
    return array.slot.startswith(WORKING)
