"""The gradients of matrices as products over the rows of some steps, from the last to the first."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import outer, sharing, threads
from cellwright.engines.cpu.arrays import Index
from cellwright.engines.cpu.helpers import helper
from cellwright.engines.cpu.jobs import Job
from cellwright.engines.cpu.members import Script, Stride, pad
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.slots import Slots


class Product:
    """Jobs for the "outer" loop: gradients of matrices."""

    def __init__(self, double: bool, bf16: bool = False):
        self.double, self.bf16 = double, bf16
        self.values: list[int] = []
        self.moves: dict[int, Stride] = {}
        self._before: dict[int, int] = {}  # gradient -> places of jobs before it
        self.work = self._places = 0

    def add(
        self, m: int, n: int, k: int, left: int, left_row: int, right: int, right_row: int,
        gradient: int, gradient_row: int, other: int = 0, other_from: int | None = None, *,
        moves: Mapping[str, Stride] | None = None, adds: bool = True,
    ) -> None:  # fmt: skip
        """The m x n numbers at ``gradient`` += left.T @ right; see ``outer.emit_outer``.

        ``left``, ``right``, ``gradient`` and ``other`` are addresses, ``..._row`` elements from
        one row to the next, which may lie before it; ``k`` is the number of rows of ``left`` and
        ``right``. From row ``other_from`` on, ``right`` goes on at ``other``. ``moves`` tells by
        the names of ``outer.OUTER_ARGUMENTS`` how addresses move in a population. What is added
        to the same gradient again is summed behind what was added before; with ``adds=False`` the
        sums begin at zero.
        """
        if m == 0 or n == 0:
            return
        for name, move in (moves or {}).items():
            place = len(outer.HEAD) + len(self.values) + outer.OUTER_ARGUMENTS.index(name)
            self.moves[place] = move
        if gradient not in self._before:
            self._before[gradient] = self._places
            self._places += outer.places(m, n)
        self.values += [
            m, n, k, left, left_row, right, right_row, gradient, gradient_row, other,
            k if other_from is None else other_from, self._before[gradient],
            adds,
        ]  # fmt: skip
        self.work += m * n * k

    def run(self) -> None:
        """Carry out the jobs."""
        if not self.values:
            return
        task = self.task()
        place = ctypes.addressof(task.arguments)
        threads.launch(task.address, place, task.rows, task.how, task.team)

    def task(self) -> threads.Task:
        """The same as a task of a script."""
        team = threads.count() if self.work > sharing.ALONE_BELOW else 1
        elements = outer.left_elements(team, self.bf16)
        packed = memory.take("outer", elements, torch.float32).data_ptr() if elements else 0
        given = self._given(packed)
        arguments = (ctypes.c_int64 * len(given))(*given)
        address = helper("outer", self.double, self.bf16)
        return threads.Task(arguments, "run", address, 1, threads.SHARES, team, team == 1)

    def _given(self, packed: int) -> list[int]:
        """The arguments of the loop."""
        jobs = len(self.values) // len(outer.OUTER_ARGUMENTS)
        return [jobs, self._places, packed, *self.values]

    def add_to(self, script: Script) -> None:
        """Let a script carry them out for every member."""
        if not self.values:
            return
        elements, address = outer.left_elements(1, self.bf16), 0
        if elements:
            packed = script.take("outer of each thread", elements, torch.float32)
            address = packed.data_ptr()
            apart = pad(elements) * packed.element_size()
            self.moves[outer.HEAD.index("packed")] = Stride(0, apart)
        given = self._given(address)
        arguments = (ctypes.c_int64 * len(given))(*given)
        address = helper("outer", self.double, self.bf16)
        script.add(address, 1, arguments, len(given), self.moves, self.work)


def turns(jobs: Iterable[Job]) -> int:
    """How many gradients of the same matrix are summed apart, at most, and then added up."""
    return 1 + max((job.turn for job in jobs), default=0)


def add_products(
    product: Product,
    jobs: Iterable[Job],
    slots: Slots,
    gradients: Sequence[Sequence[Tensor]],
    rows: int,
    beginning: Collection[tuple[int, int]] = (),
) -> None:
    """Add the jobs over all rows of the steps that were entered last to a list of products.

    Args:
        product: the list.
        jobs: of a signature.
        slots: of the call.
        gradients: of the weight tensors, for each turn.
        rows: of all the steps.
        beginning: turn and tensor of gradients in which anything may lie.
    """
    at, step_rows, reverse = slots.at, slots.rows, slots.reverse
    width = 8 if product.double else 4
    way, last = (1, 0) if reverse else (-1, rows - 1)
    # Of states before each step there is one less inside the steps; then come the initial ones.
    inside = rows - step_rows
    for job in jobs:
        delta, operand = job.delta, job.operand
        total = gradients[job.turn][job.tensor]
        gradient = total.data_ptr() + job.row * job.columns * width
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
                moves=slots.moves(job, total),
                adds=skipped > 0 or (job.turn, job.tensor) not in beginning,
            )  # fmt: skip


def _in_pairs(rows: int, bf16: bool) -> list[tuple[int, int]]:
    """First and number of the rows to be multiplied together.

    bfloat16 numbers go two by two, always the same two: all spans but that of the last step have
    even numbers of rows, and there the last row goes alone.
    """
    if bf16 and rows % 2 and rows > 1:
        return [(0, 1), (1, rows - 1)]
    return [(0, rows)]
