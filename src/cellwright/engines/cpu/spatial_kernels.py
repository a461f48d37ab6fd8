"""What is compiled for a signature whose ``@`` is a convolution, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.arrays import Array, Kind, Sources
from cellwright.engines.cpu.body import emit
from cellwright.engines.cpu.exchange import ExchangedImages
from cellwright.engines.cpu.images import Place
from cellwright.engines.cpu.kernels import Kernels, Sum
from cellwright.engines.cpu.program import Program
from cellwright.engines.cpu.programs import can_fuse, forward
from cellwright.engines.cpu.runtime import Compiled
from cellwright.engines.cpu.spatial import Backend, Chain, Code, SpatialRun
from cellwright.engines.cpu.spatial_programs import Convolution, join_results, segments, timed
from cellwright.engines.protocol import Call
from cellwright.engines.signature import Signature, parse
from cellwright.ir import ONE, Node, is_leaf, leaf, substitute
from cellwright.plan.stages import cut


@dataclass(frozen=True)
class CompiledSegment:
    """Convolutions, then a compiled program."""

    convolutions: tuple[Convolution, ...]
    compiled: Compiled

    @property
    def program(self) -> Program:
        """Tells what is stored."""
        return self.compiled.program

    def run(self, places: Mapping[str, Place], t: int, rows: int) -> None:
        """Run the program at one step."""
        at = {slot: places[slot].address(t) for slot in self.program.slots if slot in places}
        self.compiled.run_rows(at, 1, rows)


@dataclass(frozen=True)
class Positions:
    """A compiled sum over all steps of the gradient of a vector that has a number a position."""

    name: str
    compiled: Compiled
    slot: str
    units: int


class SpatialKernels(Kernels):
    """The compiled programs of a signature.

    Args:
        signature: of a recurrence over space.
        double: float64.
        positional: slots of vectors with a number for each position.
    """

    def __init__(self, signature: Signature, double: bool, positional: frozenset[str]):
        super().__init__(signature, double)
        self.positional = positional

    def _chain(self, program: Program | None, *, looped: bool) -> list[CompiledSegment]:
        if program is None:
            return []
        return [
            CompiledSegment(
                each.convolutions,
                self._compiled(each.program, emit(each.program, self.double)),
            )
            for each in segments(program, self.signature.slices, self.positional, looped=looped)
        ]

    def forward_chains(self, keep: bool) -> tuple[Chain, Chain, dict[str, str]]:
        """Inputs, loop, and where results lie that are the same value as another."""

        def make() -> Any:
            programs = forward(self.signature, keep=keep, fuse=can_fuse(self.signature), apart=True)
            aliases = join_results(programs.loop)
            inputs = self._chain(programs.inputs, looped=False)
            return inputs, self._chain(programs.loop, looped=True), aliases

        found: tuple[Chain, Chain, dict[str, str]] = self._keep(("forward chains", keep), make)
        return found

    def backward_chains(self, need_x: bool) -> tuple[Chain, Chain]:
        """Inputs and loop."""

        def make() -> Any:
            programs = self.planned(need_x)
            inputs = self._chain(programs.inputs, looped=False)
            return inputs, self._chain(programs.loop, looped=True)

        found: tuple[Chain, Chain] = self._keep(("backward chains", need_x), make)
        return found

    def channel_sums(self, need_x: bool) -> list[Sum]:
        """Sums over steps, sequences and positions."""

        def make() -> Any:
            return [
                each
                for found in self._summands(need_x)
                for each in self._sums((n, *v) for n, v in found.items() if not self._spread(n))
            ]

        made: list[Sum] = self._keep(("channel sums", need_x), make)
        return made

    def position_sums(self, need_x: bool) -> list[Positions]:
        """Sums over steps, for vectors that have a number for each position."""

        def make() -> Any:
            return [
                self._positions(name, node, sources)
                for found in self._summands(need_x)
                for name, (node, sources) in found.items()
                if self._spread(name)
            ]

        made: list[Positions] = self._keep(("position sums", need_x), make)
        return made

    def vector_sums(self, run: SpatialRun, need_x: bool) -> dict[str, Tensor]:
        """The gradients of vectors, from what a backward pass left in its places."""
        images, reverse = run.images, run.call.reverse
        at = {slot: place.base for slot, place in images.places.items()}
        totals: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            totals[name] = totals[name] + value if name in totals else value

        for each in self.channel_sums(need_x):
            found = {slot: torch.zeros((each.units,), dtype=images.dtype) for slot in each.results}
            at |= {slot: value.data_ptr() for slot, value in found.items()}
            each.compiled.run_sums(at, run.steps, run.rows, reverse=reverse)
            for slot, name in each.results.items():
                add(name, found[slot])
        for position in self.position_sums(need_x):
            total = images.room(position.slot, position.units, None).zero_()
            at[position.slot] = total.data_ptr()
            position.compiled.run_rows(at, run.steps, run.rows, reverse=reverse)
            add(position.name, total.sum(0).movedim(-1, 0))
        return totals

    def _spread(self, name: str) -> bool:
        return bool({f"parameter.{name}", f"value.{name}"} & self.positional)

    def _summands(self, need_x: bool) -> list[dict[str, tuple[Node, Sources]]]:
        """What is summed after the loop, and after the inputs' gradients."""
        programs = self.planned(need_x)

        def moved(sources: Mapping[Node, Array]) -> Sources:
            sizes = self.signature.size
            return {n: timed(n, array, sizes, self.positional) for n, array in sources.items()}

        return [
            {name: (node, moved(sources)) for name, (node, sources) in found.items()}
            for found in (programs.loop_sums, programs.input_sums)
        ]

    def _positions(self, name: str, node: Node, sources: Sources) -> Positions:
        """A program that adds a value of every step to a total, position by position."""
        units = self.signature.size[node.size]
        kind = Kind.ROW if node.size == ONE else Kind.ROWS
        slot = f"total.{name}"
        place = Array(slot, kind, stride=units)
        total = leaf("value", slot, node.vector)
        read = {
            each: each if is_leaf(each) else leaf("value", f"summand.{number}", each.vector)
            for number, each in enumerate(sources)
        }
        (value,) = substitute([node], read)
        stores = {total + value: [place]}
        found = {read[each]: array for each, array in sources.items()} | {total: place}
        program = Program(cut(stores), self.signature.size, found, stores)
        return Positions(name, self._compiled(program, emit(program, self.double)), slot, units)


@lru_cache(maxsize=256)
def spatial_kernels(
    text: str, double: bool, limit: str, positional: frozenset[str]
) -> SpatialKernels:
    """The kernels of a signature, for one target."""
    return SpatialKernels(parse(text), double, positional)


def _code(call: Call, positional: frozenset[str]) -> Code:
    double = call.x.element_size() == 8
    return spatial_kernels(call.signature.text, double, jit.features_limit(), positional)


BACKEND = Backend(ExchangedImages, _code)
"""The CPU engine's."""
