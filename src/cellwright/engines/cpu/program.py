"""A loop that is to be emitted: its stages, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cellwright.engines.cpu import bfloat
from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources, Stores
from cellwright.engines.cpu.targets import Group
from cellwright.ir import ONE, TABLE, Node, is_leaf
from cellwright.plan import Stage

NUMBERS = ("steps", "rows", "reverse", "ring", "barrier")
"""Arguments of every program, in a row: extents and switches of its loop."""

NEAR = 3
"""Operations, other than functions, up to which a value is computed again rather than stored."""

PAGE_LINES = 64
"""Lines of a page of memory."""

VECTOR = "vector"
"""Name, in chains, of what a program computes for its own products."""

ENTRY = "run"
"""Name of the function that runs a program."""


@dataclass
class Program:
    """A loop to be emitted, and what its caller has to provide.

    Attributes:
        stages: the body.
        sizes: numbers of units by name.
        sources: leaves, and stored values, with their arrays.
        stores: values that are written to arrays when they have been computed.
        backward: run through the steps from the last to the first.
        looped: its rows are those of one step; else those of all steps.
        order: places of operands in chains, where they are not those in memory.
        groups: the products of each stage, filled in by :func:`emit`.
        slots: argument name -> its place, filled in by :func:`emit`.
        temporaries: arrays (rows x stride) that the caller allocates: slot -> stride.
        words: where each stage puts its operands as words of bfloat16 factors; filled in by
            :func:`emit`. The caller allocates them, one for each share.
    """

    stages: Sequence[Stage]
    sizes: Mapping[str, int]
    sources: Sources
    stores: Stores
    backward: bool = False
    looped: bool = True
    order: Mapping[Node, tuple[bool, str, int]] = field(default_factory=dict)
    groups: list[list[Group]] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    temporaries: dict[str, int] = field(default_factory=dict)
    words: list[dict[tuple[Node, ...], Array]] = field(default_factory=list)

    @property
    def bf16(self) -> bool:
        """Whether the factors of its products are bfloat16 numbers: those of all or of none."""
        products = [product for stage in self.stages for product in stage.products]
        return any(dict(each.attributes).get("precision") == "bf16" for each in products)

    def arrays(self) -> list[Array]:
        """Every array that it reads or writes."""
        stored = (array for arrays in self.stores.values() for array in arrays)
        words = (array for places in self.words for array in places.values())
        return [*self.sources.values(), *stored, *words]

    def plan_temporaries(self, lanes: int) -> None:
        """Give a place to every value that a later stage reads and that has none yet.

        So has a single number that all units of a row read, which is computed once then. What is
        near a value in memory (-a, square(a - mean)) is computed again instead. Values are columns
        of one array, so that one address leads to all of them; those that are true or false are
        arrays of their own.
        """
        multiplied = {each.inputs[1] for stage in self.stages for each in stage.products}
        placed: list[Node] = []
        for stage in self.stages:
            for each in (*stage.stored, *stage.reductions, *_single_numbers(stage)):
                if each in self.stores or (each not in multiplied and self._is_near(each)):
                    continue
                scalar, boolean = each.size == ONE, each.vector.boolean
                name = "temporary.numbers" if scalar else "temporary.units"
                name = f"temporary.{len(placed)}" if boolean else name
                offset = self.temporaries.get(name, 0)
                kind = Kind.ROW if scalar else Kind.ROWS
                self.stores[each] = [Array(name, kind, offset=offset, boolean=boolean)]
                width = 1 if scalar else -(-self.sizes[each.size] // lanes) * lanes
                # Whole pages apart, columns drive each other out of the processor's caches.
                apart = lanes if width % (PAGE_LINES * lanes) == 0 else 0
                self.temporaries[name] = offset + width + apart
                placed.append(each)
        for each in placed:
            (array,) = self.stores[each]
            self.stores[each] = [replace(array, stride=self.temporaries[array.slot])]

    def _is_near(self, each: Node) -> bool:
        """Whether it takes as long to load a value as to compute it from another one in memory."""
        read: set[Node] = set()
        return self._operations(each, read) <= NEAR and len(read) <= 1

    def _operations(self, each: Node, read: set[Node]) -> int:
        """How many there are from what is in memory to a value; adds what is read of each row."""
        array = self.sources.get(each) or next(iter(self.stores.get(each, ())), None)
        if array is not None:
            if array.kind is Kind.ROWS:
                read.add(each)
            return 0
        operator = TABLE[each.op]
        if is_leaf(each):
            return 0
        if operator.kind != "pointwise" or operator.cost > 1:
            return NEAR + 1
        return 1 + sum(self._operations(source, read) for source in each.inputs)

    def plan_words(self) -> None:
        """Give an array to the words of what the products of each stage read."""
        for index, groups in enumerate(self.groups):
            places: dict[tuple[Node, ...], Array] = {}
            for operands in dict.fromkeys(g.operands for g in groups) if self.bf16 else ():
                slot = f"words.{index}.{len(places)}"
                stride = sum(bfloat.words(self.sizes[each.size]) for each in operands)
                places[operands] = Array(slot, Kind.ROWS, Index.OWN, stride=stride)
            self.words.append(places)

    def slot(self, name: str) -> int:
        """The place of an argument, new or known."""
        return self.slots.setdefault(name, len(self.slots))


def _single_numbers(stage: Stage) -> list[Node]:
    """What a stage computes once a row, from other numbers of the row, for its units."""
    read = {source for each in stage.pointwise if each.size != ONE for source in each.inputs}
    cost: dict[Node, int] = {}
    for each in stage.pointwise:
        if each.size == ONE:
            before = sum(cost.get(source, 0) for source in each.inputs)
            cost[each] = TABLE[each.op].cost + before
    return [each for each in cost if each in read and cost[each] > 1]


def weights_slot(stage: int, number: int) -> str:
    """Name of the argument with the packed weights of a group."""
    return f"weights.{stage}.{number}"
