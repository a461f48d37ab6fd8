"""A program's weights, put in the order in which it reads them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import packing, threads
from cellwright.engines.cpu.helpers import helper
from cellwright.engines.cpu.members import Script, Stride, by_member, pad
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.program import Program

LARGE_PACK = 100_000
"""Weights from which their packing is shared out."""


@dataclass(frozen=True)
class Weight:
    """Where a parameter lies among the weights of a call: rows from ``start`` of one tensor."""

    tensor: int
    start: int
    columns: int


class OrderedWeights:
    """Which weights a program reads, and in which order.

    Attributes:
        copies: what goes where.
        begins: where those of each group of products begin.
        elements: of all of them.
        work: multiplications with them, of a row.
        in_blocks: some matrix is block-diagonal, and made dense at every call.
    """

    def __init__(self, program: Program, weights: Mapping[str, Weight], double: bool):
        self.dtype = torch.float64 if double else torch.float32
        self.width = 8 if double else 4
        groups = [group for members in program.groups for group in members]
        self.copies, self.begins, self.elements = packing.plan_copies(
            groups, program.sizes, 8 if double else 16, program.bf16
        )
        self.work = sum(copy.units * copy.depth for copy in self.copies)
        self.in_blocks = any(copy.matrix.blocks > 1 for copy in self.copies)
        self._places = [weights[copy.parameter] for copy in self.copies]
        self._packer = helper("pack", double, program.bf16) if self.elements else 0
        self._local = threading.local()

    def pack_in(self, script: Script, weights: Sequence[Tensor], memory_name: str) -> int:
        """Let a script put every member's weights in order; else as :meth:`pack`."""
        if not self.elements:
            return 0
        packed = script.take(memory_name, self.elements, self.dtype).data_ptr()
        # Those of a lane are found as that lane has left them.
        local = self._local.__dict__.setdefault(memory_name + script.place, {})
        held = self._find_copies(local, packed, weights)
        moves = self._moves(weights, held, self.apart) if script.members > 1 else {}
        script.add(self._packer, 1, local["copies"], len(local["copies"]), moves, 0)
        script.held += held
        return packed

    @property
    def arguments(self) -> int:
        """How many arguments the packing has."""
        return 1 + len(packing.ARGUMENTS) * len(self.copies)

    @property
    def apart(self) -> Stride:
        """How packed weights move."""
        return Stride(0, pad(self.elements) * self.width)

    def _moves(
        self, weights: Sequence[Tensor], dense: Sequence[Tensor], apart: Stride
    ) -> dict[int, Stride]:
        """How the addresses in the packing's arguments move."""
        made, fields = iter(dense), len(packing.ARGUMENTS)
        moves: dict[int, Stride] = {}
        for number, (copy, weight) in enumerate(zip(self.copies, self._places, strict=True)):
            source = weights[weight.tensor] if copy.matrix.blocks == 1 else next(made)
            moves[1 + fields * number] = by_member(source)
            moves[1 + fields * number + packing.ARGUMENTS.index("target")] = apart
        return moves

    def pack(self, weights: Sequence[Tensor], memory_name: str) -> int:
        """Put a call's weights, which are contiguous, in order.

        Args:
            weights: of the call.
            memory_name: of the working memory to put them in.

        Returns:
            the address of the first; 0 if the program has none.
        """
        if not self.elements:
            return 0
        base = memory.take(memory_name, self.elements, self.dtype).data_ptr()
        local = self._local.__dict__
        held = self._find_copies(local, base, weights)
        threads.launch(self._packer, local["copies_at"], 1, threads.SHARES, self._team)
        del held  # until here it has been read
        return base

    def task(self, weights: Sequence[Tensor], memory_name: str) -> tuple[int, threads.Task | None]:
        """As :meth:`pack`, as a task of a script; None if there is nothing to do.

        No matrix is block-diagonal.
        """
        if not self.elements:
            return 0, None
        base = memory.take(memory_name, self.elements, self.dtype).data_ptr()
        own: dict[str, Any] = {}
        self._place_copies(own, [base, *[each.data_ptr() for each in weights]], weights, [])
        how, team = threads.SHARES, self._team
        return base, threads.Task(own["copies"], "run", self._packer, 1, how, team)

    @property
    def _team(self) -> int:
        return threads.count() if self.elements > LARGE_PACK else 1

    def _find_copies(
        self, local: dict[str, Any], base: int, weights: Sequence[Tensor]
    ) -> list[Tensor]:
        """Say where the weights go, unless it has been said; returns matrices made dense."""
        places = [base, *[each.data_ptr() for each in weights]]
        held: list[Tensor] = []
        if local.get("places") != places or self.in_blocks:
            self._place_copies(local, places, weights, held)
        return held

    def _place_copies(
        self,
        local: dict[str, Any],
        places: list[int],
        weights: Sequence[Tensor],
        held: list[Tensor],
    ) -> None:
        """Say where the weights are and where they go; dense matrices are added to ``held``."""
        base, *bases = places
        fields = len(packing.ARGUMENTS)
        values = local.get("copies")
        if values is None:
            values = local["copies"] = (ctypes.c_int64 * (1 + fields * len(self.copies)))()
            local["copies_at"] = ctypes.addressof(values)
            values[0] = len(self.copies)
            for number, (copy, weight) in enumerate(zip(self.copies, self._places, strict=True)):
                columns = weight.columns * copy.matrix.blocks
                strides = (1, columns) if copy.transposed else (columns, 1)
                values[1 + fields * number : 1 + fields * (number + 1)] = [
                    0, *strides, copy.units, copy.depth, 0, copy.step, copy.block_stride,
                    copy.panel_row, copy.blocks,
                ]  # fmt: skip
        for number, (copy, weight) in enumerate(zip(self.copies, self._places, strict=True)):
            place = 1 + fields * number
            skipped = copy.first * values[place + 1]
            if copy.matrix.blocks == 1:
                skipped += weight.start * weight.columns
                values[place] = bases[weight.tensor] + skipped * self.width
            else:
                held.append(packing.dense(weights[weight.tensor], weight.start, copy))
                values[place] = held[-1].data_ptr() + skipped * self.width
            values[place + 5] = base + copy.begin * self.width
        local["places"] = places

    def bind(
        self, target: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Callable[[Sequence[Tensor]], None], int, int]:
        """Packing into memory of its own, for programs that run again and again.

        Returns:
            a function that says where the weights are from now on, and the addresses of the
            packing's program and of its arguments.
        """
        base = target.data_ptr()
        local: dict[str, Any] = {}
        held: list[Tensor] = []
        read = sorted({each.tensor for each in self._places})
        placed: list[int] = []

        def place(weights: Sequence[Tensor]) -> None:
            places = [weights[tensor].data_ptr() for tensor in read]
            if placed != places:
                placed[:] = places
                self._place_copies(local, [base, *map(Tensor.data_ptr, weights)], weights, held)

        place(weights)
        return place, self._packer, local["copies_at"]
