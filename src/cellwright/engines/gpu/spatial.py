"""Recurrences over space: torch's convolutions, and kernels for what lies between them.

The passes are those of :mod:`cellwright.engines.cpu.spatial`, which does not know what runs its
programs. Here a position of an image is a row of a kernel, and a channel its unit. States go from
step to step as they are computed; sums over all steps are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import programs
from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources
from cellwright.engines.cpu.images import Images, Place
from cellwright.engines.cpu.jobs import Job, jobs
from cellwright.engines.cpu.program import Program
from cellwright.engines.cpu.spatial import Backend, Code, SpatialRun
from cellwright.engines.cpu.spatial_programs import Convolution, join_results, segments, timed
from cellwright.engines.gpu.frame import ARITHMETIC, WORKING
from cellwright.engines.gpu.loops import Extent, Kept, Steps, Way
from cellwright.engines.protocol import Call
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.engines.signature import Signature, parse
from cellwright.ir import Node, topological


class WorkingImages(Images):
    """Images whose working memory holds numbers as they are computed."""

    @property
    def working_dtype(self) -> torch.dtype:
        """The dtype in which everything is computed."""
        return ARITHMETIC[self.dtype]

    def dtype_of(self, slot: str) -> torch.dtype:
        """The dtype of new memory for a slot that is not boolean."""
        return self.working_dtype if slot.startswith(WORKING) else self.dtype


@dataclass(frozen=True)
class EmittedSegment:
    """Convolutions, then kernels for what follows from them."""

    convolutions: tuple[Convolution, ...]
    kernels: Steps

    @property
    def program(self) -> Program:
        """Tells what is stored."""
        return self.kernels.program

    @property
    def text(self) -> str:
        """The emitted source."""
        return self.kernels.text

    def run(self, places: Mapping[str, Place], t: int, rows: int) -> None:
        """Launch the kernels for one step."""
        arrays = {slot: places[slot].at(t) for slot in self.kernels.slots}
        if arrays:  # else nothing stands between two convolutions
            self.kernels.run_steps(arrays, Extent(members=1, rows=rows, steps=1, first=0, stride=1))


Emitted = list[EmittedSegment]


class SpatialLoops(Kept):
    """The kernels of a signature.

    Args:
        signature: of a recurrence over space.
        way: how programs become kernels.
        positional: slots of vectors with a number for each position.
    """

    def __init__(self, signature: Signature, way: Way, positional: frozenset[str]):
        super().__init__()
        self.signature, self.way, self.positional = signature, way, positional

    def _chain(self, program: Program | None, *, looped: bool) -> Emitted:
        if program is None:
            return []
        cut = segments(program, self.signature.slices, self.positional, looped=looped)
        return [EmittedSegment(each.convolutions, Steps(each.program, 1, self.way)) for each in cut]

    def forward_chains(self, keep: bool) -> tuple[Emitted, Emitted, dict[str, str]]:
        """Inputs, loop, and where results lie that are the same value as another."""

        def make() -> Any:
            fuse = programs.can_fuse(self.signature)
            made = programs.forward(self.signature, keep=keep, fuse=fuse, apart=True)
            aliases = _working_states(made.loop, join_results(made.loop))
            inputs = self._chain(made.inputs, looped=False)
            return inputs, self._chain(made.loop, looped=True), aliases

        found: tuple[Emitted, Emitted, dict[str, str]] = self.keep(("forward", keep), make)
        return found

    def backward_chains(self, need_x: bool) -> tuple[Emitted, Emitted]:
        """Inputs and loop."""

        def make() -> Any:
            made = self.planned(need_x)
            return self._chain(made.inputs, looped=False), self._chain(made.loop, looped=True)

        found: tuple[Emitted, Emitted] = self.keep(("backward", need_x), make)
        return found

    def planned(self, need_x: bool) -> programs.Backward:
        """The backward programs, as they are for matrix products."""
        found: programs.Backward = self.keep(
            ("planned", need_x), lambda: programs.backward(self.signature, need_x=need_x)
        )
        return found

    def jobs(self, need_x: bool) -> list[Job]:
        """The gradients of kernels."""
        made = self.planned(need_x)
        found: list[Job] = self.keep(
            ("jobs", need_x),
            lambda: jobs(self.signature, [*made.loop_outers, *made.input_outers]),
        )
        return found

    def vector_sums(self, run: SpatialRun, need_x: bool) -> dict[str, Tensor]:
        """The gradients of vectors: sums over steps and rows, and over positions if they have none.

        A vector's gradient may come in two parts: from the loop, and from what was hoisted.
        """
        made, totals = self.planned(need_x), dict[str, Tensor]()
        for name, (node, sources) in (*made.loop_sums.items(), *made.input_sums.items()):
            value = self._value(run, node, sources)
            if {f"parameter.{name}", f"value.{name}"} & self.positional:
                shape = (run.steps * run.batch, *run.images.space)
                total = value.unflatten(0, shape).sum(0).movedim(-1, 0)
            else:
                total = value.sum(0)
            totals[name] = totals[name] + total if name in totals else total
        return totals

    def _value(self, run: SpatialRun, node: Node, sources: Sources) -> Tensor:
        """A value for every step, row and position, (T x B x positions, units)."""
        every, dtype = run.steps * run.rows, run.images.working_dtype
        environment = {}
        for each, array in sources.items():
            array = timed(each, array, run.sizes, self.positional)
            value = _every(run, array, run.sizes[each.size])
            environment[each] = value if each.vector.boolean else value.to(dtype)
        like = run.call.x.new_empty(0, dtype=dtype)
        evaluator = Evaluator(algebra(0), run.sizes, like)
        evaluator.evaluate(topological([node], environment), environment)
        return evaluator.whole(environment[node], node.size, every).to(dtype)


def _every(run: SpatialRun, array: Array, units: int) -> Tensor:
    """The rows of all steps of an array, or one row for all."""
    place = run.images.places[array.slot]
    if array.kind in (Kind.UNITS, Kind.UNIT):
        return place.tensor.narrow(0, array.offset, units).unsqueeze(0)
    if array.index is Index.BEFORE:
        after = run.every(array, units)
        first = run.images.places[array.initial].tensor.narrow(-1, array.offset, units)
        later = after.narrow(0, int(run.call.reverse), run.steps - 1)
        parts = [first.unsqueeze(0), later]
        return torch.cat(parts[::-1] if run.call.reverse else parts).flatten(0, -2)
    value = run.every(array, units)
    if place.steps is None:
        value = value.expand(run.steps, *value.shape)
    return value.flatten(0, -2)


def _working_states(loop: Program, aliases: dict[str, str]) -> dict[str, str]:
    """Let states be written to working memory; where results lie then."""
    moved = {}
    for arrays in loop.stores.values():
        for place, array in enumerate(arrays):
            kind, _, name = array.slot.partition(".")
            if kind == "state":
                moved[array.slot] = f"carry.{name}"
                arrays[place] = replace(array, slot=moved[array.slot])
    return moved | {slot: moved.get(other, other) for slot, other in aliases.items()}


@lru_cache(maxsize=256)
def _loops(text: str, way: Way, positional: frozenset[str]) -> SpatialLoops:
    return SpatialLoops(parse(text), way, positional)


def _code(call: Call, positional: frozenset[str]) -> Code:
    return _loops(call.signature.text, Way(call.x.dtype, call.x.device.type == "cpu"), positional)


BACKEND = Backend(WorkingImages, _code)
"""The GPU engine's."""
