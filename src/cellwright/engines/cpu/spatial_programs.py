"""Programs whose ``@`` is a convolution: torch's convolutions, with compiled code between them.

A program for matrix products computes its products itself. Here it is cut where it needs one:
first come the convolutions of a segment, then one compiled program for all that is pointwise, or
a sum over channels, up to the next convolution. Values lie position by position, channels last,
so a position of a sequence is to that program what a sequence is elsewhere: a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources, Stores
from cellwright.engines.cpu.program import Program
from cellwright.engines.cpu.programs import with_copies
from cellwright.engines.cpu.targets import Target, find_targets
from cellwright.engines.signature import Slice
from cellwright.ir import ONE, Node, is_leaf, leaf, substitute, topological
from cellwright.plan import Stage
from cellwright.plan.stages import cut


@dataclass(frozen=True)
class Convolution:
    """One convolution with some rows of a weight.

    Attributes:
        transposed: the product with the transpose.
        weight: the rows.
        blocks: of the matrix, on its diagonal.
        operand: where its channels lie.
        channels: how many they are.
        slot: of the result.
        ahead: the operand is there for all steps before the loop starts.
    """

    transposed: bool
    weight: Slice
    blocks: int
    operand: Array
    channels: int
    slot: str
    ahead: bool


@dataclass(frozen=True)
class Segment:
    """Some convolutions, then a program that reads their results.

    Attributes:
        convolutions: in any order.
        program: it has no products; its arrays lie, at every step, where the caller says.
    """

    convolutions: tuple[Convolution, ...]
    program: Program


def is_constant(each: Node) -> bool:
    """Whether a leaf is the same at every step."""
    if each.op == "stream":
        return not each.attribute("per_step")
    name = str(each.attribute("name")) if each.op == "value" else ""
    return each.op == "parameter" or name.startswith("once.")


def timed(each: Node, array: Array, sizes: Mapping[str, int], positional: frozenset[str]) -> Array:
    """An array as a loop over time reads it, also where it was meant for all steps at once.

    Args:
        each: the value that lies there.
        array: where.
        sizes: numbers of channels by name.
        positional: slots of vectors with a number for each position.
    """
    array = replace(array, slot=array.slot.replace("stream_rows.", "stream."))
    if array.slot in positional:
        kind = Kind.ROW if each.size == ONE else Kind.ROWS
        return replace(array, kind=kind, stride=sizes[each.size])
    if array.index is Index.NONE and not is_constant(each):
        return replace(array, index=Index.TIME)
    return array


def at_a_step(array: Array) -> Array:
    """The array at one step, whose address is set before the step."""
    if array.index is Index.BEFORE:
        return replace(array, index=Index.NONE, slot=array.initial, initial="")
    if array.index is Index.ODD:
        return replace(array, index=Index.NONE, slot=before(array.slot))
    return replace(array, index=Index.NONE)


def before(slot: str) -> str:
    """Slot of what a carried gradient becomes at a step, on the way to the step before."""
    return f"{slot}.before"


def segments(
    program: Program, slices: Iterable[Slice], positional: frozenset[str], *, looped: bool
) -> list[Segment]:
    """Cut a program at its products.

    Args:
        program: as it is for matrix products; it is not changed.
        slices: where each parameter lies.
        positional: slots of vectors with a number for each position.
        looped: it runs through the steps, each of which may read the one before.
    """
    return _Cut(program, slices, positional, looped=looped).segments


def join_results(loop: Program) -> dict[str, str]:
    """Let a value that several results are be written once; the others' slots -> its slot."""
    aliases: dict[str, str] = {}
    for arrays in loop.stores.values():
        results = [a for a in arrays if a.slot.partition(".")[0] in ("output", "state", "trace")]
        results.sort(key=lambda array: not array.slot.startswith("state."))
        for other in results[1:]:
            aliases[other.slot] = results[0].slot
            arrays.remove(other)
    return aliases


class _Cut:
    def __init__(
        self, program: Program, slices: Iterable[Slice], positional: frozenset[str], *, looped: bool
    ):
        self.program, self.positional, self.looped = program, positional, looped
        self.sizes = program.sizes
        self.places = {each.parameter: each for each in slices}
        self.stores: Stores = {node: [*arrays] for node, arrays in program.stores.items()}
        self.sources = {
            each: timed(each, array, self.sizes, positional)
            for each, array in program.sources.items()
        }
        # What a segment reads of those before it, and of its convolutions, as leaves.
        self.known: dict[Node, Node] = {}
        self.arrays: Sources = {}
        self.convolutions = 0
        parts = _parts(program.stages)
        self._keep_between(parts)
        self.uses: dict[Node, int] = {}
        for each in (n for part in parts for stage in part for n in stage.nodes):
            for source in each.inputs:
                self.uses[source] = self.uses.get(source, 0) + 1
        self.segments = [self._segment(part) for part in parts]

    def _keep_between(self, parts: list[list[Stage]]) -> None:
        """Give a place to every value that a later segment reads."""
        number = {n: k for k, part in enumerate(parts) for stage in part for n in stage.nodes}
        products = {n for part in parts for stage in part for n in stage.products}
        for each, k in number.items():
            for source in each.inputs:
                crosses = number.get(source, k) < k
                if crosses and source not in products and source not in self.stores:
                    slot = f"between.{len(self.stores)}"
                    kind = Kind.ROW if source.size == ONE else Kind.ROWS
                    self.stores[source] = [
                        Array(slot, kind, stride=self.sizes[source.size],
                              boolean=source.vector.boolean)
                    ]  # fmt: skip

    def _segment(self, stages: list[Stage]) -> Segment:
        convolutions = self._convolve(stages[0])
        wanted = [n for stage in stages for n in stage.nodes if n in self.stores]
        stores: Stores = {}
        for each, changed in zip(wanted, substitute(wanted, self.known), strict=True):
            places = [at_a_step(array) for array in self.stores[each]]
            stores.setdefault(changed, []).extend(places)
        sources = {
            each: at_a_step(self.arrays.get(each) or self.sources[each])
            for each in topological(stores)
            if is_leaf(each) and each.op not in ("constant", "reciprocal_size")
        }
        for each in wanted:
            if not is_leaf(each):
                self._know(each, at_a_step(self.stores[each][0]))
        program = Program(with_copies(cut(stores), stores), self.sizes, sources, stores)
        return Segment(convolutions, program)

    def _know(self, each: Node, array: Array) -> Node:
        """Let a value be a leaf from now on."""
        found = leaf("value", f"known.{len(self.arrays)}", each.vector)
        self.known[each] = found
        self.arrays[found] = array
        return found

    # Convolutions --------------------------------------------------------------------------------

    def _operand(self, product: Node) -> Array:
        """Where what a product reads lies for all steps, or at the step."""
        operand = product.inputs[1]
        if operand in self.sources:
            return self.sources[operand]
        return self.arrays[self.known[operand]]

    def _convolve(self, stage: Stage) -> tuple[Convolution, ...]:
        """The convolutions of a stage; their results, and sums of them, become known."""

        def position(product: Node) -> tuple[bool, str, int]:
            array = self._operand(product)
            return False, array.slot, array.offset

        targets = find_targets(stage, self.uses, set(self.stores), position)
        order = {each: index for index, each in enumerate(stage.nodes)}
        sums = {target: self._joined_sums(target) for target in targets}
        single = [run for runs in sums.values() for run in runs]
        made, results = self._join_gates(single)
        for target in sorted(targets, key=lambda target: order[target.root]):
            parts = [self._know(run[0], results[run]) for run in sums[target]]
            behind = [part for part in (target.start, *target.rest) if part is not None]
            total, *others = [*parts, *substitute(behind, self.known)]
            for part in others:
                total = total + part
            self.known[target.root] = total
        return made

    def _joined_sums(self, target: Target) -> list[tuple[Node, ...]]:
        """The products of a target; those that one transposed convolution adds up are together."""
        runs: list[list[Node]] = []
        for product in target.products:
            if runs and self._continues(runs[-1][-1], product):
                runs[-1].append(product)
            else:
                runs.append([product])
        return [tuple(run) for run in runs]

    def _continues(self, first: Node, second: Node) -> bool:
        """Whether weight and operand of a transposed product follow upon another's."""
        if {first.op, second.op} != {"matvec_transposed"} or first.inputs[0].matrix.blocks > 1:
            return False
        a, b = self._operand(first), self._operand(second)
        channels = self.sizes[first.inputs[1].size]
        return self._adjoin(first, second) and a.moved(channels) == b

    def _adjoin(self, first: Node, second: Node) -> bool:
        a, b = self._place(first), self._place(second)
        return a.tensor == b.tensor and a.stop == b.start

    def _place(self, product: Node) -> Slice:
        return self.places[str(product.inputs[0].attribute("name"))]

    def _join_gates(
        self, runs: list[tuple[Node, ...]]
    ) -> tuple[tuple[Convolution, ...], dict[tuple[Node, ...], Array]]:
        """One convolution for all gates that read the same operand, and where each result is."""

        def place(run: tuple[Node, ...]) -> tuple[bool, str, int, int, int]:
            array, where = self._operand(run[0]), self._place(run[0])
            transposed = run[0].op == "matvec_transposed"
            return transposed, array.slot, array.offset, where.tensor, where.start

        joined: list[list[tuple[Node, ...]]] = []
        for run in sorted(runs, key=place):
            last = joined[-1][-1][-1] if joined else None
            plain = run[0].op == "matvec" and run[0].inputs[0].matrix.blocks == 1
            if (
                plain
                and last is not None
                and last.op == "matvec"
                and last.inputs[0].matrix.blocks == 1
                and last.inputs[1] is run[0].inputs[1]
                and self._adjoin(last, run[0])
            ):
                joined[-1].append(run)
            else:
                joined.append([run])
        made, results = [], {}
        for members in joined:
            slot = f"product.{self.convolutions}"
            self.convolutions += 1
            stride, offset = sum(self.sizes[run[0].size] for run in members), 0
            for run in members:
                units = self.sizes[run[0].size]
                kind = Kind.ROW if run[0].size == ONE else Kind.ROWS
                results[run] = Array(slot, kind, stride=stride, offset=offset)
                offset += units
            made.append(self._convolution(members, slot))
        return tuple(made), results

    def _convolution(self, members: list[tuple[Node, ...]], slot: str) -> Convolution:
        first, last = members[0][0], members[-1][-1]
        operand = first.inputs[1]
        array = self._operand(first)
        assert array.kind in (Kind.ROWS, Kind.ROW), f"a convolution reads {operand!r}"
        return Convolution(
            transposed=first.op == "matvec_transposed",
            weight=replace(self._place(first), stop=self._place(last).stop),
            blocks=first.inputs[0].matrix.blocks,
            operand=at_a_step(array),
            channels=sum(self.sizes[each.inputs[1].size] for each in members[0]),
            slot=slot,
            ahead=is_leaf(operand) and (operand.op == "input" or not self.looped),
        )


def _parts(stages: Iterable[Stage]) -> list[list[Stage]]:
    """Stages, together where no product stands between them."""
    parts: list[list[Stage]] = []
    for stage in stages:
        if stage.products or not parts:
            parts.append([])
        parts[-1].append(stage)
    return parts
