"""Everything that is compiled for one signature, made when first needed and kept."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from cellwright.engines.cpu import bfloat, joined, product, threads
from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources
from cellwright.engines.cpu.body import emit
from cellwright.engines.cpu.jobs import Job, jobs
from cellwright.engines.cpu.ops import Lanes
from cellwright.engines.cpu.ordered import Weight
from cellwright.engines.cpu.program import Program
from cellwright.engines.cpu.programs import Backward, Forward, backward, can_fuse, forward
from cellwright.engines.cpu.runtime import Compiled
from cellwright.engines.cpu.sums import emit_sums
from cellwright.engines.signature import Signature, parse
from cellwright.ir import INPUT, Matrix, Node

FUSE_FROM = ((350_000, 4), (1 << 25, 10))
"""Bytes of weights of x, and rows a thread from which it pays to read them at every step.

Then nothing is written for all steps at once, which would be read again from memory.
"""

NEAR = 40_000
"""Bytes of all weights of a step up to which it pays for any rows, if there are ``BUSY`` sums: they
stay in the nearest cache."""

BUSY = 8
"""Sums of two vectors of units that keep a processor's multipliers busy though each of them waits
for its last product; fewer would wait for those with x too."""

JOIN_FROM = 4
"""Rows of a batch from which the backward loop does what else it can at its step; see ``joined``.

For fewer, all steps at once have more to share out among threads.
"""

NO_BF16 = (
    "precision='bf16' runs in float32 here: the cpu engine needs a processor with AVX512_BF16 for "
    "products of bfloat16 numbers"
)


@dataclass(frozen=True)
class Sum:
    """Compiled sums of values of one size: result slot -> the parameter whose gradient it is."""

    compiled: Compiled
    results: Mapping[str, str]
    units: int


class Kernels:
    """The compiled programs of a signature."""

    def __init__(self, signature: Signature, double: bool):
        self.signature, self.double = as_it_runs(signature), double
        self.bf16 = self.signature.options.precision == "bf16"
        self._lock = threading.RLock()
        self._made: dict[Any, Any] = {}

    def _keep(self, key: Any, make: Callable[[], Any]) -> Any:
        found = self._made.get(key)
        if found is None:
            with self._lock:
                if key not in self._made:
                    product.provide(self.double, self.bf16)
                    threads.provide()
                    self._made[key] = make()
                found = self._made[key]
        return found

    def _compile(self, program: Program | None) -> Compiled | None:
        if program is None:
            return None
        return self._compiled(program, emit(program, self.double))

    def _compiled(self, program: Program, text: str) -> Compiled:
        return Compiled(program, text, self.double, self.weights)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Where each parameter lies among a call's weights."""
        sizes = self.signature.size
        columns = {}
        for each in self.signature.plan.parameters:
            _, *rest = each.shape(sizes)
            columns[each.name] = rest[0] if rest else 1
        return {
            each.parameter: Weight(each.tensor, each.start, columns[each.parameter])
            for each in self.signature.slices
        }

    @cached_property
    def places(self) -> list[tuple[str, int, int]]:
        """The parameters' slots, the weight tensors that they lie in, and bytes before them."""
        width = 8 if self.double else 4
        return [
            (f"parameter.{name}", place.tensor, place.start * place.columns * width)
            for name, place in self.weights.items()
        ]

    @cached_property
    def step_work(self) -> int:
        """Multiplications of one row in a step, those with x left out."""
        sizes = self.signature.size
        return sum(
            sizes[p.type.rows] * sizes[p.type.columns]
            for p in self.signature.plan.parameters
            if isinstance(p.type, Matrix) and p.type.columns != INPUT
        )

    @cached_property
    def states(self) -> dict[str, Node]:
        """The states after each step, by slot."""
        plan = self.signature.plan
        return {f"state.{s.name}": plan.forward.next[s.name] for s in plan.graph.states}

    @cached_property
    def saved(self) -> dict[str, Node]:
        """What else the forward pass yields for the backward pass, by slot."""
        plan = self.signature.plan.forward
        return {**plan.saved, **plan.saved_inputs}

    @cached_property
    def fuse_from(self) -> int | None:
        """Rows a thread from which products with x are computed in the loop; None for never."""
        sizes = self.signature.size
        weights = sum(
            sizes[p.type.rows] * sizes[p.type.columns]
            for p in self.signature.plan.parameters
            if isinstance(p.type, Matrix) and p.type.columns == INPUT
        )
        width = 2 if self.bf16 else 8 if self.double else 4
        tiers, lanes = [*FUSE_FROM], Lanes(self.double).count
        inputs = self.signature.plan.forward.inputs.values()
        if sum(min(2, -(-sizes[each.size] // lanes)) for each in inputs) >= BUSY:
            tiers.insert(0, (NEAR - self.step_work * width, 0))
        for limit, rows in tiers:
            if weights * width <= limit and can_fuse(self.signature):
                return rows
        return None

    def fuses(self, rows: int, team: int) -> bool:
        """Whether they are, for a batch of so many rows that so many threads share."""
        return self.fuse_from is not None and rows >= self.fuse_from * team

    def forward(self, keep: bool, fuse: bool) -> tuple[Forward, Compiled | None, Compiled]:
        """The forward programs: what they are, inputs, loop."""

        def make() -> Any:
            programs = forward(self.signature, keep=keep, fuse=fuse, in_place=True)
            return programs, self._compile(programs.inputs), self._compile(programs.loop)

        return self._keep(("forward", keep, fuse), make)

    @cached_property
    def can_step(self) -> bool:
        """Whether a step is one program: products with x inside, nothing computed beforehand."""
        plan = self.signature.plan
        no_inputs = not plan.forward.inputs or can_fuse(self.signature)
        return no_inputs and not plan.forward.once and not plan.graph.streams

    @cached_property
    def step_slots(self) -> tuple[str, ...]:
        """The first arguments of :meth:`step`: x, the output, the states before and after it."""
        names = [each.name for each in self.signature.plan.graph.states]
        before, after = [f"initial.{n}" for n in names], [f"state.{n}" for n in names]
        return ("x", "output", *before, *after)

    def step(self) -> Compiled:
        """The loop for single steps; its arguments begin with :attr:`step_slots`."""

        def make() -> Any:
            fuse = bool(self.signature.plan.forward.inputs)
            loop = forward(self.signature, keep=False, fuse=fuse, apart=True).loop
            for name in self.step_slots:
                loop.slot(name)
            return self._compile(loop)

        found: Compiled = self._keep("step", make)
        return found

    def joins(self, rows: int) -> bool:
        """Whether, for a batch of so many rows, the backward loop does all but products."""
        return rows >= JOIN_FROM and self._can_join

    @cached_property
    def _can_join(self) -> bool:
        return joined.pays(self.signature.plan)

    def backward(
        self, need_x: bool, join: bool = False
    ) -> tuple[Backward, Compiled | None, Compiled]:
        """The backward programs: what they are, inputs, loop."""

        def make() -> Any:
            programs = self.planned(need_x, join)
            return programs, self._compile(programs.inputs), self._compile(programs.loop)

        return self._keep(("backward", need_x, join), make)

    def planned(self, need_x: bool, join: bool = False) -> Backward:
        """The backward programs, not compiled."""

        def make() -> Any:
            if join:
                return joined.backward(self.signature, need_x=need_x)
            return backward(self.signature, need_x=need_x, spread_rows=True)

        found: Backward = self._keep(("planned", need_x, join), make)
        return found

    def sums(self, need_x: bool, join: bool = False) -> list[Sum]:
        """The sums over all steps and rows, those of one size together."""

        def make() -> Any:
            programs = self.planned(need_x, join)
            every = [(name, *found) for name, found in programs.loop_sums.items()]
            for name, (node, sources) in programs.input_sums.items():
                here = {each: _step_by_step(array) for each, array in sources.items()}
                every.append((name, node, here))
            return self._sums(every)

        return self._keep(("sums", need_x, join), make)

    def total_sums(self, need_x: bool, join: bool) -> list[Sum]:
        """The sums over rows of what the loop has added up for each."""

        def make() -> Any:
            found = self.planned(need_x, join).total_sums
            return self._sums(((name, *each) for name, each in found.items()), "sum.of.totals")

        return self._keep(("total sums", need_x, join), make)

    def _sums(self, found: Iterable[tuple[str, Node, Sources]], prefix: str = "sum") -> list[Sum]:
        places: dict[str, Sources] = {}
        results: dict[str, dict[Node, list[str]]] = {}
        for name, node, sources in found:
            places.setdefault(node.size, {}).update(sources)
            results.setdefault(node.size, {}).setdefault(node, []).append(name)
        made = []
        for size, members in results.items():
            program = Program([], self.signature.size, places[size], {}, backward=True)
            slots = {
                node: [f"{prefix}.{number}.{each}.{size}" for each in range(len(names))]
                for number, (node, names) in enumerate(members.items())
            }
            text = emit_sums(program, slots, size, self.double)
            names = dict(zip(chain(*slots.values()), chain(*members.values()), strict=True))
            found_at = self._compiled(program, text)
            made.append(Sum(found_at, names, self.signature.size[size]))
        return made

    def direct_sums(self, need_x: bool, join: bool = False) -> set[str]:
        """Slots of sums that are one parameter's whole gradient and can be written in place."""

        def make() -> Any:
            every = [*self.sums(need_x, join), *self.total_sums(need_x, join)]
            names = [name for each in every for name in each.results.values()]
            own = {p.name for p in self.signature.plan.parameters} - set(
                self.signature.plan.backward.once.vectors
            )
            return {
                slot
                for each in every
                for slot, name in each.results.items()
                if names.count(name) == 1 and name in own
            }

        return self._keep(("direct", need_x, join), make)

    def jobs(self, need_x: bool, join: bool = False) -> list[Job]:
        """The products for the matrices' gradients, neighbours joined."""

        def make() -> Any:
            programs = self.planned(need_x, join)
            return jobs(self.signature, [*programs.loop_outers, *programs.input_outers])

        return self._keep(("jobs", need_x, join), make)


def _step_by_step(array: Array) -> Array:
    """Where a value lies at one step, that a program for all steps at once finds there."""
    if array.kind in (Kind.ROWS, Kind.ROW) and array.index is Index.NONE:
        return replace(array, index=Index.TIME)
    return array


_warned = False


def as_it_runs(signature: Signature) -> Signature:
    """The signature, in float32 where the processor lacks what bfloat16 needs; warns then."""
    global _warned
    if signature.options.precision != "bf16" or bfloat.is_available():
        return signature
    if not _warned:
        _warned = True
        warnings.warn(NO_BF16, stacklevel=2)
    return replace(signature, options=replace(signature.options, precision="fp32"))


@lru_cache(maxsize=256)
def kernels(text: str, double: bool, limit: str) -> Kernels:
    """The kernels of a signature; they are the same whatever its layer saves."""
    signature = parse(text)
    usual = replace(signature, options=replace(signature.options, save="gates"))
    return Kernels(signature, double) if signature == usual else kernels(usual.text, double, limit)
