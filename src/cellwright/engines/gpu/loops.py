"""Loops ready to be launched: emitted, loaded, and run on the arrays of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Way:
    """How a program becomes kernels.

    Attributes:
        dtype: of the tensors.
        interpreted: by Triton's interpreter rather than compiled for a GPU.
        population: for the members of a population at once.
    """

    dtype: torch.dtype
    interpreted: bool
    population: bool = False


@dataclass(frozen=True)
class Extent:
    """What a loop runs through.

    Attributes:
        members, rows, steps: how many.
        first, stride: the first step that is taken, and 1 or -1 from one to the next.
    """

    members: int
    rows: int
    steps: int
    first: int
    stride: int


class Loop:
    """A program that is emitted, in one of the forms.

    Args:
        program: the loop.
        heads: parts of its vectors that never meet.
        way: how it becomes kernels.
    """

    text: str

    def __init__(self, program: Program, heads: int, way: Way):
        self.program, self.heads, self.way = program, heads, way

    @cached_property
    def module(self) -> Any:
        """The loaded kernels."""
        return load.load(self.text)

    def run(self, call: Call, arrays: Mapping[str, Tensor]) -> int:
        """Run all steps of a call on arrays by the names of the slots.

        Returns:
            Which of the two buffers of each state holds the last one.
        """
        count, rows = call.x.shape[call.lead :][:2]
        first, stride = (count - 1, -1) if call.reverse != self.program.backward else (0, 1)
        members = 1 if call.population is None else call.population
        return self.run_steps(arrays, Extent(members, rows, count, first, stride))

    def run_steps(self, arrays: Mapping[str, Tensor], extent: Extent) -> int:
        """The same, for these rows and steps; inside of :func:`surroundings`."""
        raise AssertionError("a form says how it is launched")


class Resident(Loop):
    """One launch for all steps."""

    def __init__(self, program: Program, heads: int, way: Way):
        super().__init__(program, heads, way)
        self.frame = Frame(program, way.dtype, heads, population=way.population)
        self.text = resident.emit(self.frame, interpreted=way.interpreted)

    def run_steps(self, arrays: Mapping[str, Tensor], extent: Extent) -> int:
        tensors = [_plain(arrays[slot]) for slot in self.frame.slots]
        widths = self.frame.widths.values() if self.way.population else ()
        blocks = -(-extent.rows // LEAST) * extent.members
        if blocks:
            self.module.walk[blocks, self.heads](
                *tensors, extent.rows, extent.steps, extent.first, extent.stride,
                *_distances(tensors, widths),
                BLOCK=LEAST, PRECISION=precision(self.way.dtype), num_warps=RESIDENT_WARPS,
            )  # fmt: skip
        return 1


class Steps(Loop):
    """A launch for each step and part of a stage.

    Attributes:
        slots: of the arrays that a caller provides.
    """

    def __init__(self, program: Program, heads: int, way: Way):
        super().__init__(with_temporaries(program, way.dtype), heads, way)
        self.text, self.launches = steps.emit(
            self.program, way.dtype, heads, population=way.population, interpreted=way.interpreted
        )
        read = {slot for each in self.launches for slot in each.slots}
        self.slots = sorted(read - self.program.temporaries.keys())

    def run_steps(self, arrays: Mapping[str, Tensor], extent: Extent) -> int:
        like, rows = next(iter(arrays.values())), extent.rows
        working = {
            array.slot: like.new_empty(
                (extent.members, rows, array.stride), dtype=slot_dtype(array, self.way.dtype)
            )
            for array in self.program.arrays()
            if array.slot in self.program.temporaries
        }
        launched = []
        for each in self.launches:
            tensors = [_plain(working[s] if s in working else arrays[s]) for s in each.slots]
            block = each.rows(rows)
            grid = (-(-rows // block) * extent.members, each.blocks, each.heads)
            if grid[0]:
                run = getattr(self.module, each.name)[grid]
                launched.append((run, tensors, _distances(tensors, each.widths), block))
        how = precision(self.way.dtype)
        for i in range(extent.steps):
            t, last = extent.first + i * extent.stride, int(i == extent.steps - 1)
            for run, tensors, distances, block in launched:
                run(*tensors, rows, t, extent.stride, i & 1, last, *distances,
                    BLOCK=block, PRECISION=how)  # fmt: skip
        return extent.steps & 1


def _distances(tensors: Sequence[Tensor], widths: Iterable[int]) -> list[int]:
    """Rows between the members' parts of each array of a population; 0 where all have the same."""
    return [each.stride(0) // width for each, width in zip(tensors, widths, strict=False)]


def surroundings(like: Tensor) -> AbstractContextManager[Any]:
    """What has to be entered for kernels to be launched on such tensors."""
    return torch.cuda.device(like.device) if like.is_cuda else _Interpreting()


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


class Kept:
    """What is made when it is first needed, and kept."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bool], Any] = {}
        self._lock = threading.RLock()

    def keep(self, key: tuple[str, bool], make: Callable[[], Any]) -> Any:
        """What ``make`` made the first time."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]


class Loops(Kept):
    """The loops of a signature."""

    def __init__(self, signature: Signature, form: str, way: Way):
        super().__init__()
        self.signature, self.form, self.way = signature, form, way

    def _loop(self, program: Program) -> Loop:
        kind = Resident if self.form == RESIDENT else Steps
        return kind(program, programs.heads_of(self.signature, program), self.way)

    def inputs(self, *, keep: bool) -> Program | None:
        """What is hoisted, for all steps at once."""
        found: Program | None = self.keep(
            ("inputs", keep), lambda: planned.forward(self.signature, keep=keep).inputs
        )
        return found

    def forward(self, *, keep: bool) -> Loop:
        """The forward loop; ``keep`` what the backward pass reads."""
        found: Loop = self.keep(
            ("forward", keep), lambda: self._loop(programs.forward(self.signature, keep=keep))
        )
        return found

    def backward(self, *, need_x: bool) -> tuple[planned.Backward, Loop]:
        """The backward programs, and their loop."""

        def make() -> tuple[planned.Backward, Loop]:
            made = planned.backward(self.signature, need_x=need_x)
            return made, self._loop(made.loop)

        found: tuple[planned.Backward, Loop] = self.keep(("backward", need_x), make)
        return found


@lru_cache(maxsize=256)
def loops(text: str, form: str, way: Way) -> Loops:
    """The loops of a signature in one form."""
    return Loops(parse(text), form, way)
