"""The products of a stage, grouped for the micro-kernels.

Products whose only use is to be added up become one *target*: a single chain of fused
multiply-adds over all of their columns (``U.i.T @ d_i + U.f.T @ d_f + ...`` in a backward pass).
A bias, or a hoisted ``W @ x + b``, that is added too is what the chain begins with: the sum is the
same whether ``W @ x`` was computed for all steps at once or at its step.

Targets of the same size that read the same operands share a panel of packed weights, so that an
operand, once broadcast, meets the weights of all gates. Targets that have only some operands in
common do too where that leaves less of the processor idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from cellwright.engines.cpu.product import VECTORS
from cellwright.ir import Node
from cellwright.plan import Stage

TIME = {1: 1.8, 2: 1.08, 3: 1.0, 4: 1.0}
"""Time of a multiplication in panels of so many vectors: narrow ones wait for their sums."""

Position = Callable[[Node], tuple[bool, str, int]]
"""Where a product's operand lies."""


@dataclass(frozen=True)
class Target:
    """One vector of sums.

    Attributes:
        root: the node whose value this is, or of which it is the first part.
        products: the matrix products added up in it.
        rest: what is added to it afterwards.
        start: what the chain begins with, instead of zero: a hoisted value or a bias.
    """

    root: Node
    products: tuple[Node, ...]
    rest: tuple[Node, ...] = ()
    start: Node | None = None

    @property
    def operands(self) -> tuple[Node, ...]:
        """What it reads, in the order of its terms."""
        return tuple(each.inputs[1] for each in self.products)


@dataclass(frozen=True)
class Panels:
    """Panels of the same width that follow each other.

    Attributes:
        blocks: vectors of units of one panel.
        first: vectors of units before the first panel.
        before, count: panels before the first, and how many there are.
    """

    blocks: int
    first: int
    before: int
    count: int


@dataclass(frozen=True)
class Segment:
    """Operands, one after the other, that the same targets read.

    Attributes:
        first, stop: those targets.
        operands: in the order of their terms.
        products: with each operand, one for each target.
    """

    first: int
    stop: int
    operands: tuple[Node, ...]
    products: tuple[tuple[Node, ...], ...]

    @property
    def width(self) -> int:
        """How many targets."""
        return self.stop - self.first


@dataclass(frozen=True)
class Group:
    """Targets that are computed together.

    Attributes:
        targets: in the order of a panel's vectors; at most four read the same operand.
        segments: what they read.
        panels: of the packed weights, from the widest to the narrowest.
        size: units of every target, by name.
    """

    targets: tuple[Target, ...]
    segments: tuple[Segment, ...]
    panels: tuple[Panels, ...]
    size: str

    @property
    def operands(self) -> tuple[Node, ...]:
        """What the targets read, in the order of their terms."""
        return tuple(each for segment in self.segments for each in segment.operands)

    @property
    def vectors(self) -> int:
        """Vectors of a tile, at most."""
        return len(self.targets) * self.panels[0].blocks

    def per_vector(self, widths: Mapping[Node, int]) -> int:
        """Weights for each unit, where operands have such widths."""
        return sum(s.width * sum(widths[each] for each in s.operands) for s in self.segments)


def find_targets(
    stage: Stage,
    uses: Mapping[Node, int],
    kept: set[Node],
    position: Position,
) -> list[Target]:
    """The targets of a stage.

    Args:
        stage: products and the pointwise work behind them.
        uses: how many nodes of the loop read each node.
        kept: nodes whose own value is stored, which therefore are not merged into others.
        position: where a product's operand lies, by which the terms of a target are ordered.
    """
    products = set(stage.products)
    inside = set(stage.pointwise)

    def single(each: Node) -> bool:
        return uses.get(each, 0) == 1 and each not in kept

    def terms(each: Node, top: bool) -> list[Node]:
        if each.op == "add" and each in inside and (top or single(each)):
            return [t for source in each.inputs for t in terms(source, False)]
        return [each]

    def is_start(each: Node) -> bool:
        # A hoisted value, or a bias: the sum that hoisting would have computed goes on.
        return each.op == "parameter" or (
            each.op == "value" and str(each.attribute("name")).startswith("input.")
        )

    found: list[Target] = []
    merged: set[Node] = set()
    for each in reversed(stage.pointwise):
        if each.op != "add" or each in merged:
            continue
        parts = terms(each, True)
        chain = [p for p in parts if p in products and single(p)]
        rest = [p for p in parts if p not in chain]
        start = next((p for p in rest if is_start(p)), None)
        if not chain or (len(chain) < 2 and start is None):
            continue
        if start is not None:
            rest.remove(start)
        chain.sort(key=position)
        found.append(Target(each, tuple(chain), tuple(rest), start))
        merged.update(chain)
        stack = [each]
        while stack:
            for source in stack.pop().inputs:
                if source.op == "add" and source in inside and single(source):
                    merged.add(source)
                    stack.append(source)
    found += [Target(p, (p,)) for p in stage.products if p not in merged]
    order = {node: index for index, node in enumerate(stage.products)}
    return sorted(found, key=lambda target: order[target.products[0]])


Class = list[Target]
"""Targets that share a panel."""

Places = Mapping[Node, tuple[bool, str, int]]
"""Where operands lie."""


def group(
    targets: Sequence[Target], sizes: Mapping[str, int], lanes: int, position: Position
) -> list[Group]:
    """Targets of the same size that read the same operands, or some of them, together.

    Args:
        targets: of a stage.
        sizes: units by name.
        lanes: of a vector.
        position: as for :func:`find_targets`.
    """
    by_size: dict[str, dict[tuple[Node, ...], Class]] = {}
    place = {p.inputs[1]: position(p) for each in targets for p in each.products}
    for each in targets:
        by_size.setdefault(each.root.size, {}).setdefault(each.operands, []).append(each)
    groups = []
    for size, alike in by_size.items():
        classes = [
            members[start : start + VECTORS]
            for members in alike.values()
            for start in range(0, len(members), VECTORS)
        ]
        vectors = -(-sizes[size] // lanes)
        found = [(c, _segments(c, place)) for c in _joined(classes, vectors, sizes, place)]
        panels = _panels(vectors, max(s.width for _, segments in found for s in segments))
        groups += [Group(tuple(c), segments, panels, size) for c, segments in found]
    return groups


def _segments(targets: Class, place: Places) -> tuple[Segment, ...]:
    """What targets read, segment by segment; those of one operand stand side by side."""
    first = targets[0].operands
    if all(each.operands == first for each in targets):
        products = tuple(zip(*[each.products for each in targets], strict=True))
        return (Segment(0, len(targets), first, products),)
    segments: list[Segment] = []
    for operand in sorted({o for each in targets for o in each.operands}, key=place.__getitem__):
        readers = [n for n, each in enumerate(targets) if operand in each.operands]
        begin, stop = readers[0], readers[-1] + 1
        found = [
            (p for p in each.products if p.inputs[1] == operand) for each in targets[begin:stop]
        ]
        products = (tuple(next(each) for each in found),)
        last = segments[-1] if segments else None
        if last is not None and (last.first, last.stop) == (begin, stop):
            operands = (*last.operands, operand)
            segments[-1] = Segment(begin, stop, operands, last.products + products)
        else:
            segments.append(Segment(begin, stop, (operand,), products))
    return tuple(segments)


def _joined(
    classes: list[Class], vectors: int, sizes: Mapping[str, int], place: Places
) -> list[Class]:
    """Targets that share a panel: classes are joined as long as that saves time."""

    def time(every: list[Class]) -> float:
        segments = [s for each in every for s in _segments(each, place)]
        panels = _panels(vectors, max(s.width for s in segments))
        return sum(
            run.count * width * TIME[min(width, VECTORS)] * sum(sizes[o.size] for o in s.operands)
            for run, s in product(panels, segments)
            for width in [run.blocks * s.width]
        )

    while True:
        tries = []
        for n, other in product(range(len(classes)), repeat=2):
            together = _side_by_side(classes[n], classes[other]) if n < other else None
            if together is not None:
                rest = [each for m, each in enumerate(classes) if m not in (n, other)]
                tries.append([*rest[:n], together, *rest[n:]])
        best = min([classes, *tries], key=time)
        if best is classes:
            return classes
        classes = best


def _side_by_side(first: Class, second: Class) -> Class | None:
    """The targets of both, such that those of one operand adjoin; None where it cannot be."""
    reads: dict[tuple[Node, ...], Class] = {}
    for each in (*first, *second):
        reads.setdefault(each.operands, []).append(each)
    shared = set(first[0].operands) & set(second[0].operands)
    twice = any(len(set(operands)) < len(operands) for operands in reads)
    if len(reads) == 1 or len(reads) > VECTORS or not shared or twice:
        return None
    every = {operand for operands in reads for operand in operands}
    for order in permutations(reads):
        readers = [[n for n, each in enumerate(order) if operand in each] for operand in every]
        if all(
            places[-1] - places[0] < len(places)
            and sum(len(reads[order[n]]) for n in places) <= VECTORS
            for places in readers
        ):
            return [each for operands in order for each in reads[operands]]
    return None


def _panels(vectors: int, targets: int) -> tuple[Panels, ...]:
    """Panels for so many vectors of units, each with the weights of so many targets.

    They are as few as can be and alike: nine vectors are three panels of three rather than two of
    four and one.
    """
    if vectors == 0:
        return (Panels(1, 0, 0, 0),)
    count = -(-vectors // (VECTORS // targets))
    narrow, wider = divmod(vectors, count)
    widths = [narrow + 1] * wider + [narrow] * (count - wider)
    found: list[Panels] = []
    first = 0
    for before, width in enumerate(widths):
        if found and found[-1].blocks == width:
            found[-1] = Panels(width, found[-1].first, found[-1].before, found[-1].count + 1)
        else:
            found.append(Panels(width, first, before, 1))
        first += width
    return tuple(found)
