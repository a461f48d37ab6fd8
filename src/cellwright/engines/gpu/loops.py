"""Loops ready to be launched: emitted, loaded, and run on the arrays of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.engines.cpu import programs as planned
from cellwright.engines.cpu.program import Program
from cellwright.engines.gpu import load, programs, resident, steps
from cellwright.engines.gpu.form import RESIDENT
from cellwright.engines.gpu.frame import LEAST, Frame, slot_dtype
from cellwright.engines.gpu.regroup import with_temporaries
from cellwright.engines.protocol import Call
from cellwright.engines.signature import Signature, parse

RESIDENT_WARPS = 8
"""Warps of a program that holds weights: with 4, registers do not suffice for float32."""

_interpreting = threading.RLock()
"""The interpreter changes Triton's own functions while it runs: one kernel at a time."""


def precision(dtype: torch.dtype) -> str:
    """How float32 products are computed: as torch is told to."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact or dtype != torch.float32 else "tf32"


class Loop:
    """A program that is emitted, in one of the forms.

    Args:
        signature: whose program it is.
        program: the loop.
        dtype: of the tensors.
        interpreted: by Triton's interpreter rather than compiled for a GPU.
    """

    text: str

    def __init__(
        self, signature: Signature, program: Program, dtype: torch.dtype, *, interpreted: bool
    ):
        self.program, self.dtype, self.interpreted = program, dtype, interpreted
        self.heads = programs.heads_of(signature, program)

    @cached_property
    def module(self) -> Any:
        """The loaded kernels."""
        return load.load(self.text)

    def run(self, call: Call, arrays: Mapping[str, Tensor]) -> int:
        """Run all steps of a call on arrays by the names of the slots.

        Returns:
            Which of the two buffers of each state holds the last one.
        """
        count, rows = call.x.shape[:2]
        first, stride = (count - 1, -1) if call.reverse != self.program.backward else (0, 1)
        with self._surroundings(call.x):
            return self._run(arrays, rows, count, first, stride)

    def _run(
        self, arrays: Mapping[str, Tensor], rows: int, count: int, first: int, stride: int
    ) -> int:
        raise AssertionError("a form says how it is launched")

    def _surroundings(self, like: Tensor) -> AbstractContextManager[Any]:
        if self.interpreted:
            return _Interpreting()
        return torch.cuda.device(like.device) if like.is_cuda else nullcontext()


class Resident(Loop):
    """One launch for all steps."""

    def __init__(
        self, signature: Signature, program: Program, dtype: torch.dtype, *, interpreted: bool
    ):
        super().__init__(signature, program, dtype, interpreted=interpreted)
        self.frame = Frame(program, dtype, self.heads)
        self.text = resident.emit(self.frame, interpreted=interpreted)

    def _run(
        self, arrays: Mapping[str, Tensor], rows: int, count: int, first: int, stride: int
    ) -> int:
        self.module.walk[-(-rows // LEAST), self.heads](
            *(_plain(arrays[slot]) for slot in self.frame.slots), rows, count, first, stride,
            BLOCK=LEAST, PRECISION=precision(self.dtype), num_warps=RESIDENT_WARPS,
        )  # fmt: skip
        return 1


class Steps(Loop):
    """A launch for each step and part of a stage."""

    def __init__(
        self, signature: Signature, program: Program, dtype: torch.dtype, *, interpreted: bool
    ):
        program = with_temporaries(program, dtype)
        super().__init__(signature, program, dtype, interpreted=interpreted)
        self.text, self.launches = steps.emit(program, dtype, self.heads, interpreted=interpreted)

    def _run(
        self, arrays: Mapping[str, Tensor], rows: int, count: int, first: int, stride: int
    ) -> int:
        like = next(iter(arrays.values()))
        working = {
            array.slot: like.new_empty((rows, array.stride), dtype=slot_dtype(array, self.dtype))
            for array in self.program.arrays()
            if array.slot in self.program.temporaries
        }
        given = [
            [_plain(working[s] if s in working else arrays[s]) for s in each.slots]
            for each in self.launches
        ]
        launched = []
        for each, tensors in zip(self.launches, given, strict=True):
            block = each.rows(rows)
            grid = (-(-rows // block), each.blocks, each.heads)
            launched.append((getattr(self.module, each.name)[grid], tensors, block))
        how = precision(self.dtype)
        for i in range(count):
            numbers = (rows, first + i * stride, stride, i & 1, int(i == count - 1))
            for run, tensors, block in launched:
                run(*tensors, *numbers, BLOCK=block, PRECISION=how)
        return count & 1


class _Interpreting:
    """One kernel at a time, and no warnings of numpy's: what overflows here does so on a GPU."""

    def __enter__(self) -> None:
        _interpreting.acquire()
        self._quiet = np.errstate(all="ignore")
        self._quiet.__enter__()

    def __exit__(self, *reason: Any) -> None:
        self._quiet.__exit__(*reason)
        _interpreting.release()


def _plain(tensor: Tensor) -> Tensor:
    """Truth values as bytes."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


class Loops:
    """The loops of a signature, made when first needed and kept."""

    def __init__(self, signature: Signature, dtype: torch.dtype, form: str, *, interpreted: bool):
        self.signature, self.dtype, self.form = signature, dtype, form
        self.interpreted = interpreted
        self._made: dict[tuple[str, bool], Any] = {}
        self._lock = threading.RLock()

    def _loop(self, program: Program) -> Loop:
        kind = Resident if self.form == RESIDENT else Steps
        return kind(self.signature, program, self.dtype, interpreted=self.interpreted)

    def _keep(self, key: tuple[str, bool], make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def inputs(self, *, keep: bool) -> Program | None:
        """What is hoisted, for all steps at once."""
        found: Program | None = self._keep(
            ("inputs", keep), lambda: planned.forward(self.signature, keep=keep).inputs
        )
        return found

    def forward(self, *, keep: bool) -> Loop:
        """The forward loop; ``keep`` what the backward pass reads."""
        found: Loop = self._keep(
            ("forward", keep), lambda: self._loop(programs.forward(self.signature, keep=keep))
        )
        return found

    def backward(self, *, need_x: bool) -> tuple[planned.Backward, Loop]:
        """The backward programs, and their loop."""

        def make() -> tuple[planned.Backward, Loop]:
            made = planned.backward(self.signature, need_x=need_x)
            return made, self._loop(made.loop)

        found: tuple[planned.Backward, Loop] = self._keep(("backward", need_x), make)
        return found


@lru_cache(maxsize=256)
def loops(text: str, dtype: torch.dtype, form: str, interpreted: bool) -> Loops:
    """The loops of a signature in one form."""
    return Loops(parse(text), dtype, form, interpreted=interpreted)
