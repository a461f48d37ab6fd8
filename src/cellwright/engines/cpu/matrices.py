"""The gradients of matrices as products over the rows of some steps, from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from cellwright.engines.cpu.arrays import Index
from cellwright.engines.cpu.kernels import Job
from cellwright.engines.cpu.members import Stride
from cellwright.engines.cpu.runtime import Product


def turns(jobs: Iterable[Job]) -> int:
    """How many gradients of the same matrix are summed apart, at most, and then added up."""
    return 1 + max((job.turn for job in jobs), default=0)


def add_products(
    product: Product,
    jobs: Iterable[Job],
    at: Mapping[str, int],
    gradients: Sequence[Sequence[Tensor]],
    rows: int,
    step_rows: int,
    *,
    reverse: bool,
    moves: Callable[[Job], Mapping[str, Stride]] | None = None,
) -> None:
    """Add the jobs over all rows of some steps to a list of products.

    Args:
        product: the list.
        jobs: of a signature.
        at: addresses of the arrays' first steps.
        gradients: of the weight tensors, for each turn.
        rows, step_rows: of all the steps, and of one.
        reverse: the loop ran from the last step to the first.
        moves: how a job's addresses move in a population.
    """
    width = 8 if product.double else 4
    way, last = (1, 0) if reverse else (-1, rows - 1)
    # Of states before each step there is one less inside the steps; then come the initial ones.
    inside = rows - step_rows
    for job in jobs:
        delta, operand = job.delta, job.operand
        gradient = gradients[job.turn][job.tensor].data_ptr()
        gradient += job.row * job.columns * width
        left = at[delta.slot] + (delta.offset + last * delta.stride) * width
        right = at[operand.slot] + operand.offset * width
        left_row, right_row = way * delta.stride, way * operand.stride
        before = operand.index is Index.BEFORE
        if before:
            first = step_rows if reverse else inside - 1
            other = at[operand.initial] + operand.offset * width
            other += 0 if reverse else -(step_rows - 1) * right_row * width
        else:
            first, other = last, 0
        right += first * operand.stride * width
        for skipped, count in _in_pairs(rows, product.bf16):
            own = max(inside - skipped, 0) if before else None
            beyond = max(skipped - inside, 0) if before else 0
            product.add(
                job.m, job.n, count,
                left + skipped * left_row * width, left_row,
                right + skipped * right_row * width, right_row,
                gradient, job.columns, other + beyond * right_row * width, own,
                moves=None if moves is None else moves(job),
            )  # fmt: skip


def _in_pairs(rows: int, bf16: bool) -> list[tuple[int, int]]:
    """First and number of the rows to be multiplied together.

    bfloat16 numbers go two by two, always the same two: all spans but that of the last step have
    even numbers of rows, and there the last row goes alone.
    """
    if bf16 and rows % 2 and rows > 1:
        return [(0, 1), (1, rows - 1)]
    return [(0, rows)]
