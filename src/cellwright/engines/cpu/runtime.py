"""Compiled programs, their arguments, and memory that is used again from call to call."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, packing, product, threads
from cellwright.engines.cpu.body import ENTRY, Program, weights_slot

SHARE_FROM = 300_000
"""Multiplications in a step from which the units of a small batch are shared out."""

LARGE_WEIGHTS, MANY_ROWS = 300_000, 48
"""Weights that do not fit a processor's own cache are better shared out than read by every
thread, unless each thread has many rows to use them for."""

ALONE_BELOW = 200_000
"""Multiplications in a whole run below which one thread does it."""

KEEP_BELOW = 1 << 28
"""Bytes up to which a piece of working memory is kept for the next call."""


class Memory(threading.local):
    """Working memory of one thread, by name; what a call leaves in it has no meaning."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, elements: int, dtype: torch.dtype) -> Tensor:
        """A flat tensor of at least that many elements, with anything in it."""
        held = self._held.get((name, dtype))
        if held is None or held.numel() < elements:
            held = torch.empty(max(elements, 1), dtype=dtype)
            if held.numel() * held.element_size() <= KEEP_BELOW:
                self._held[name, dtype] = held
        return held


memory = Memory()


class Compiled:
    """A program as machine code."""

    def __init__(self, program: Program, text: str, double: bool):
        self.program = program
        self.dtype = torch.float64 if double else torch.float32
        self.code = jit.compile_ir(text)
        self.address = self.code.address(ENTRY)
        groups = [g for members in program.groups for g in members]
        lanes = 8 if double else 16
        self.copies, begins, self.packed = packing.plan_copies(groups, program.sizes, lanes)
        names = [
            weights_slot(stage, number)
            for stage, members in enumerate(program.groups)
            for number in range(len(members))
        ]
        self.begins = dict(zip(names, begins, strict=True))
        self.work = sum(copy.units * copy.depth for copy in self.copies)

    def run(
        self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int], rows: int
    ) -> None:
        """Run it; ``tensors`` and ``numbers`` are its arguments by slot."""
        team = threads.count()
        packed = self.pack(tensors, team) if self.packed else 0
        arguments = self._arguments(tensors, numbers, rows, packed)
        every = rows * self.work * numbers["steps"]
        if every < ALONE_BELOW:
            how, team = threads.ROWS, 1
        elif rows >= 2 * team and (rows >= MANY_ROWS * team or self.work < LARGE_WEIGHTS):
            how = threads.ROWS
        else:
            how, team = threads.SHARES, team if rows * self.work >= SHARE_FROM else 1
        threads.launch(self.address, ctypes.addressof(arguments), rows, how, team)

    def run_sums(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int], rows: int) -> None:
        """Run a program of sums, whose units are shared out without barriers."""
        arguments = self._arguments(tensors, numbers, rows, 0)
        team = threads.count() if rows * numbers["steps"] > 2_000 else 1
        threads.launch(self.address, ctypes.addressof(arguments), rows, threads.SHARES, team)

    def _arguments(
        self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int], rows: int, packed: int
    ) -> ctypes.Array[ctypes.c_int64]:
        slots = self.program.slots
        # Behind the arguments, the barrier's two numbers on cache lines of their own.
        values = (ctypes.c_int64 * (len(slots) + 32))()
        width = 8 if self.dtype == torch.float64 else 4
        for name, place in slots.items():
            number = numbers.get(name)
            if number is not None:
                values[place] = number
            elif name in self.begins:
                values[place] = packed + self.begins[name] * width
            elif name in self.program.temporaries:
                elements = rows * self.program.temporaries[name]
                values[place] = memory.take(name, elements, self.dtype).data_ptr()
            elif name == "barrier":
                values[place] = ctypes.addressof(values) + 8 * (len(slots) + 8)
            else:
                values[place] = tensors[name].data_ptr()
        return values

    def pack(self, tensors: Mapping[str, Tensor], team: int) -> int:
        """Put the weights in order; returns the address of the first."""
        target = memory.take("weights", self.packed, self.dtype)
        width, base = target.element_size(), target.data_ptr()
        values = [len(self.copies)]
        held = []
        for copy in self.copies:
            weight = packing.dense(tensors[f"parameter.{copy.parameter}"], copy.matrix)
            held.append(weight)
            row, column = weight.stride()
            strides = (column, row) if copy.transposed else (row, column)
            values += [
                weight.data_ptr(), *strides, copy.units, copy.depth, base + copy.begin * width,
                copy.step, copy.block_stride, copy.panel_row, copy.blocks,
            ]  # fmt: skip
        arguments = (ctypes.c_int64 * len(values))(*values)
        team = team if self.packed > 100_000 else 1
        address = helper("pack", self.dtype == torch.float64)
        threads.launch(address, ctypes.addressof(arguments), 1, threads.SHARES, team)
        return base


@lru_cache(maxsize=16)
def _helper(name: str, double: bool, limit: str) -> tuple[jit.Code, int]:
    product.provide(double)
    text = packing.emit_pack(double) if name == "pack" else product.emit_outer(double)
    code = jit.compile_ir(text, limit)
    return code, code.address(ENTRY)


def helper(name: str, double: bool) -> int:
    """Address of a loop that is the same for all cells: "pack" or "outer"."""
    return _helper(name, double, jit.features_limit())[1]


class Product:
    """Jobs for the "outer" loop: gradients of matrices."""

    def __init__(self, double: bool):
        self.double = double
        self.values: list[int] = []
        self.work = 0

    def add(
        self, m: int, n: int, left: Tensor, left_column: int, right: Tensor, right_column: int,
        gradient: Tensor, other: Tensor | None = None, other_rows: tuple[int, int] = (0, 0),
        shift: int = 0,
    ) -> None:  # fmt: skip
        """``gradient`` (m, n) += left[:, column:].T @ right[:, column:]; see ``emit_outer``."""
        width = left.element_size()
        initial = 0 if other is None else other.data_ptr() + right_column * width
        self.values += [
            m, n, left.shape[0], left.data_ptr() + left_column * width, left.stride(0),
            right.data_ptr() + right_column * width, right.stride(0), gradient.data_ptr(),
            gradient.stride(0), initial, *other_rows, shift,
        ]  # fmt: skip
        self.work += m * n * left.shape[0]

    def run(self) -> None:
        """Carry out the jobs."""
        if not self.values:
            return
        jobs = len(self.values) // len(product.OUTER_ARGUMENTS)
        arguments = (ctypes.c_int64 * (len(self.values) + 1))(jobs, *self.values)
        team = threads.count() if self.work > ALONE_BELOW else 1
        address = helper("outer", self.double)
        threads.launch(address, ctypes.addressof(arguments), 1, threads.SHARES, team)
