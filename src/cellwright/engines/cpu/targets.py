"""The products of a stage, grouped for the micro-kernels.

Products whose only use is to be added up become one *target*: a single chain of fused
multiply-adds over all of their columns (``U.i.T @ d_i + U.f.T @ d_f + ...`` in a backward pass).
A bias, or a hoisted ``W @ x + b``, that is added too is what the chain begins with: the sum is the
same whether ``W @ x`` was computed for all steps at once or at its step.

Targets of the same size that read the same operands share a panel of packed weights, so that an
operand, once broadcast, meets the weights of all gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cellwright.engines.cpu.product import VECTORS
from cellwright.ir import Node
from cellwright.plan import Stage


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


@dataclass(frozen=True)
class Group:
    """Targets that are computed together.

    Attributes:
        targets: at most four.
        operands: what they read, in the order of their terms.
        blocks: unit blocks of one panel; targets x blocks is the number of vectors.
        size: units of every target, by name.
    """

    targets: tuple[Target, ...]
    operands: tuple[Node, ...]
    blocks: int
    size: str

    @property
    def vectors(self) -> int:
        """Vectors of a panel."""
        return len(self.targets) * self.blocks


def find_targets(
    stage: Stage,
    uses: Mapping[Node, int],
    kept: set[Node],
    position: Callable[[Node], tuple[bool, str, int]],
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


def group(targets: Sequence[Target], sizes: Mapping[str, int], lanes: int) -> list[Group]:
    """Targets with the same size and operands, at most four at a time."""
    alike: dict[tuple[str, tuple[Node, ...]], list[Target]] = {}
    for each in targets:
        operands = tuple(p.inputs[1] for p in each.products)
        alike.setdefault((each.root.size, operands), []).append(each)
    widest: dict[str, int] = {}
    for (size, _), members in alike.items():
        widest[size] = max(widest.get(size, 1), min(len(members), VECTORS))
    groups = []
    for (size, operands), members in alike.items():
        # All groups of one size walk through the units in the same steps.
        blocks = _blocks(-(-sizes[size] // lanes), widest[size])
        for start in range(0, len(members), VECTORS):
            part = tuple(members[start : start + VECTORS])
            groups.append(Group(part, operands, blocks, size))
    return groups


def _blocks(vectors: int, targets: int) -> int:
    """Blocks of units of a panel: as wide as can be, with as few empty ones at the end."""

    def work(blocks: int) -> float:
        # Panels of fewer vectors do not keep the processor quite as busy.
        return -(-vectors // blocks) * blocks * (1.0 + 0.02 * (VECTORS - targets * blocks))

    return min(range(VECTORS // targets, 0, -1), key=work)
