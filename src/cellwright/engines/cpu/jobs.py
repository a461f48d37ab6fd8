"""The products over all rows and steps that are the gradients of matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cellwright.engines.cpu.arrays import Array
from cellwright.engines.signature import Signature
from cellwright.ir import Matrix
from cellwright.plan import Outer


@dataclass(frozen=True)
class Job:
    """One product over all rows and steps, for a matrix's gradient or for several that adjoin.

    Attributes:
        tensor, row, columns: where the gradient begins, and elements of its rows.
        m, n: its rows and columns.
        delta, operand: where the factors lie.
        turn: how many products come before it in the gradient of the same matrix. Each is a sum
            of its own.
    """

    tensor: int
    row: int
    columns: int
    m: int
    n: int
    delta: Array
    operand: Array
    turn: int


def jobs(signature: Signature, outers: Iterable[tuple[Outer, Array, Array]]) -> list[Job]:
    """The products for the matrices' gradients, neighbours joined.

    Args:
        signature: whose matrices they are.
        outers: outer products with the places of their factors.
    """
    sizes = signature.size
    places = {each.parameter: each for each in signature.slices}
    kinds = {p.name: p.type for p in signature.plan.parameters}
    found = []
    turns: dict[str, int] = {}
    for outer, delta, operand in outers:
        kind, place = kinds[outer.parameter], places[outer.parameter]
        turn = turns.setdefault(outer.parameter, 0)
        turns[outer.parameter] += 1
        assert isinstance(kind, Matrix)
        m, n = sizes[kind.rows] // kind.blocks, sizes[kind.columns] // kind.blocks
        for block in range(kind.blocks):
            found.append(
                Job(place.tensor, place.start + block * m, n, m, n,
                    delta.moved(block * m), operand.moved(block * n), turn)
            )  # fmt: skip
    found.sort(key=lambda job: (job.tensor, job.operand.slot, job.operand.offset, job.row))
    joined: list[Job] = []
    for job in found:
        last = joined[-1] if joined else None
        if last is not None and _adjoin(last, job):
            joined[-1] = replace(last, m=last.m + job.m)
        else:
            joined.append(job)
    return joined


def fill(jobs: Iterable[Job], shapes: Sequence[Sequence[int]]) -> set[tuple[int, int]]:
    """Which gradients consist of products alone: of which turn, and of which tensor.

    Args:
        jobs: of a signature.
        shapes: of the tensors.
    """
    filled: dict[tuple[int, int], int] = {}
    for job in jobs:
        key = job.turn, job.tensor
        filled[key] = filled.get(key, 0) + job.m * job.columns
    return {key for key, count in filled.items() if count == math.prod(shapes[key[1]])}


def _adjoin(first: Job, second: Job) -> bool:
    """Whether the second continues the first: the same operand, and rows that follow."""
    return (
        (first.tensor, first.turn) == (second.tensor, second.turn)
        and first.operand == second.operand
        and first.row + first.m == second.row
        and first.delta.moved(first.m) == second.delta
    )
