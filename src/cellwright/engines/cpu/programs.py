"""From a plan to programs: which loops run, and where each of their values lies.

A layer's forward pass is two programs, ``inputs`` (everything hoisted, over all steps and rows at
once) and ``loop``. Its backward pass is ``loop``, then ``inputs``, then sums over rows and steps
for vector parameters, and products over them for matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources, Stores
from cellwright.engines.cpu.layout import Layout
from cellwright.engines.cpu.program import Program
from cellwright.engines.signature import Signature
from cellwright.ir import (
    ONE,
    TABLE,
    Node,
    apply,
    constant,
    is_leaf,
    leaf,
    substitute,
    topological,
)
from cellwright.plan import Outer, Stage
from cellwright.plan.stages import cut

Outers = list[tuple[Outer, Array, Array]]
"""Outer products with the places of their factors."""


@dataclass
class Forward:
    """The programs of a forward pass."""

    inputs: Program | None
    loop: Program
    width: int  # of all hoisted values together


@dataclass
class Backward:
    """The programs of a backward pass.

    Attributes:
        loop, inputs: as in the forward pass; ``inputs`` yields the gradient of x.
        kept: arrays over all steps that the loop fills: slot -> units.
        kept_after: arrays that ``inputs`` fills.
        loop_outers, input_outers: matrices' gradients with the places of both factors.
        loop_sums, input_sums: what is summed, with the sources to read from.
    """

    loop: Program
    inputs: Program | None
    width: int
    missing: bool
    kept: dict[str, int]
    kept_after: dict[str, int]
    loop_outers: Outers
    input_outers: Outers
    loop_sums: dict[str, tuple[Node, Sources]]
    input_sums: dict[str, tuple[Node, Sources]]


def with_copies(stages: Iterable[Stage], stores: Stores) -> list[Stage]:
    """The stages, and one more for leaves that are to be written somewhere as they are."""
    leaves = tuple(each for each in stores if is_leaf(each))
    return [*stages, *([Stage((), (), leaves, ())] if leaves else [])]


def _whole(node: Node, size: str) -> Node:
    """A value with all units, where it has only one number a row."""
    return node if node.size == size or size == ONE else apply("expand", node, size=size)


def can_fuse(signature: Signature) -> bool:
    """Whether the products with x may be computed at their step with the very same numbers.

    They may where every hoisted value is a sum of products with x and at most one bias, and is
    read once: then its sum simply goes on in the loop. They may too where it is in no sum with a
    product, neither with one of its own nor with one of the loop: then it is computed as before.
    """
    plan = signature.plan.forward
    if not plan.inputs:
        return False
    uses: dict[str, int] = {}
    sums: dict[str, list[Node]] = {}  # the terms of all sums that a value is in
    for each in topological(plan.loop.roots):
        terms = _terms(each) if each.op == "add" else []
        for source in each.inputs:
            if source.op == "value":
                uses[_name(source)] = uses.get(_name(source), 0) + 1
        for term in terms:
            if term.op == "value":
                sums.setdefault(_name(term), []).extend(terms)
    kept = {_name(node) for node in plan.saved.values() if is_leaf(node)}
    for name, node in plan.inputs.items():
        once = uses.get(name, 0) == 1 and name not in kept
        around = sums.get(name, [])
        beside = around and any(each.op == "matvec" for each in (*around, *_terms(node)))
        inside = any(
            node in topological(other.inputs) for other in plan.inputs.values() if other is not node
        )
        if inside or (beside and not (once and _is_plain_sum(node))):
            return False
    return True


def _name(each: Node) -> str:
    return str(each.attribute("name"))


def _is_plain_sum(node: Node) -> bool:
    """Whether a hoisted value is a sum of products with x, and of a bias at most."""
    terms = _terms(node)
    vectors = [each for each in terms if each.op == "parameter"]
    products = [each for each in terms if each.op == "matvec" and each.inputs[1].op == "input"]
    return bool(products) and len(vectors) <= 1 and len(vectors) + len(products) == len(terms)


def _terms(node: Node) -> list[Node]:
    if node.op == "add":
        return [term for source in node.inputs for term in _terms(source)]
    return [node]


def forward(
    signature: Signature, *, keep: bool, fuse: bool = False, apart: bool = False,
    in_place: bool = False,
) -> Forward:  # fmt: skip
    """The programs of a forward pass.

    Args:
        signature: of the layer.
        keep: what the backward pass reads.
        fuse: compute the products with x in the loop; see :func:`can_fuse`.
        apart: write the state that is the output to a place of its own too.
        in_place: with ``keep``, write hoisted values that are saved where they are saved.
    """
    # A user may change the output in place, so what the backward pass reads lies elsewhere.
    layout = Layout(
        signature,
        output_is_state=not (keep or apart),
        saved_in_place=in_place and keep and not fuse,
    )
    plan = layout.plan.forward
    stores: Stores = {}
    fused = {leaf("value", name, node.vector): node for name, node in plan.inputs.items() if fuse}

    def store(node: Node, array: Array) -> None:
        (node,) = substitute([node], fused)
        stores.setdefault(node, []).append(array)

    store(plan.output, layout.array("output", plan.output.size, Index.TIME))
    for state in layout.plan.graph.states:
        slot = layout.state_slot(state.name)
        if slot != "output":
            store(plan.next[state.name], layout.array(slot, state.size, Index.TIME))
    for name, node in plan.trace.items():
        store(node, layout.array(f"trace.{name}", node.size, Index.TIME))
    if keep:
        for name, node in {**plan.saved, **(plan.saved_inputs if fuse else {})}.items():
            if name not in layout.in_place.values():
                array = layout.array(name, node.size, Index.TIME, boolean=node.vector.boolean)
                store(node, array)
    sources = layout.leaves(stores, looped=True)
    loop = Program(with_copies(cut(stores), stores), layout.sizes, sources, stores)
    return Forward(None if fuse else _forward_inputs(layout, keep=keep), loop, layout.width)


def _forward_inputs(layout: Layout, *, keep: bool) -> Program | None:
    graph = layout.plan.forward.inputs
    if not graph:
        return None
    stores: Stores = {}
    for name, node in graph.items():
        stores.setdefault(node, []).append(layout.hoisted("inputs", name, Index.NONE))
    if keep:
        for name, node in layout.plan.forward.saved_inputs.items():
            array = layout.array(name, node.size, Index.NONE, boolean=node.vector.boolean)
            stores.setdefault(node, []).append(array)
    sources = layout.leaves(stores, looped=False)
    stages = with_copies(cut(stores), stores)
    return Program(stages, layout.sizes, sources, stores, looped=False)


def backward(signature: Signature, *, need_x: bool) -> Backward:
    """The programs of a backward pass."""
    layout = Layout(signature)
    plan = layout.plan.backward
    stores: Stores = {}
    for name, node in plan.hoisted.items():
        if name.startswith("input."):
            size = layout.plan.forward.inputs[name].size
            array = layout.hoisted("d_inputs", name, Index.TIME)
            stores.setdefault(_whole(node, size), []).append(array)
    for state in layout.plan.graph.states:
        node = plan.states.get(state.name, constant(0.0))
        array = layout.array(f"carry.{state.name}", state.size, Index.ODD)
        stores.setdefault(_whole(node, state.size), []).append(array)
    keeper = _Keeper(layout, stores, "kept", looped=True)
    outers = keeper.outers(plan.parameters.matrices)
    to_sum = dict(plan.parameters.vectors)
    to_sum |= {name: node for name, node in plan.hoisted.items() if name.startswith("once.")}
    vectors = {name: _parameter_size(layout, name) for name in to_sum}
    sums = {name: keeper.summand(_whole(node, vectors[name])) for name, node in to_sum.items()}
    outers, sums = keeper.joined(outers, sums)
    loop = Program(
        with_copies(cut(stores), stores), layout.sizes,
        layout.leaves(stores, looped=True), stores, backward=True,
    )  # fmt: skip
    inputs, after, input_outers, input_sums = _backward_inputs(layout, need_x=need_x)
    return Backward(
        loop, inputs, layout.width,
        any(name not in plan.hoisted for name in layout.plan.forward.inputs),
        keeper.kept, after, outers, input_outers, sums, input_sums,
    )  # fmt: skip


def _parameter_size(layout: Layout, name: str) -> str:
    once = layout.plan.forward.once.get(name)
    if once is not None:
        return once.size
    kind = next(p.type for p in layout.plan.parameters if p.name == name)
    return str(getattr(kind, "size", ONE))


def _backward_inputs(
    layout: Layout, *, need_x: bool
) -> tuple[Program | None, dict[str, int], Outers, dict[str, tuple[Node, Sources]]]:
    plan = layout.plan.backward.inputs
    stores: Stores = {}
    if need_x and "x" in plan.values:
        stores[_whole(plan.values["x"], "input")] = [layout.array("d_x", "input", Index.NONE)]
    keeper = _Keeper(layout, stores, "after", looped=False)
    outers = keeper.outers(plan.matrices)
    to_sum = dict(plan.vectors)
    to_sum |= {name: node for name, node in plan.values.items() if name != "x"}
    sums = {
        name: keeper.summand(_whole(node, _parameter_size(layout, name)))
        for name, node in to_sum.items()
    }
    outers, sums = keeper.joined(outers, sums)
    if not stores:
        return None, keeper.kept, outers, sums
    sources = layout.leaves(stores, looped=False)
    stages = with_copies(cut(stores), stores)
    program = Program(stages, layout.sizes, sources, stores, looped=False)
    return program, keeper.kept, outers, sums


class _Keeper:
    """Finds, or makes, an array over all steps for a value that is needed after the loop.

    What it makes are columns of one array, in the order in which they are asked for; single numbers
    of rows are arrays of their own.
    """

    def __init__(self, layout: Layout, stores: Stores, slot: str, *, looped: bool):
        self.layout, self.stores, self.slot, self.looped = layout, stores, slot, looped
        self._width = 0
        self._made: list[Array] = []
        self._numbers: list[Array] = []

    @property
    def kept(self) -> dict[str, int]:
        """The arrays that it makes, and elements of their rows."""
        made = {self.slot: self._width} if self._made else {}
        return made | {each.slot: each.stride for each in self._numbers}

    def outers(self, outers: Iterable[Outer]) -> Outers:
        """Places of what is multiplied for matrices' gradients.

        They are asked for in the order of the matrices' rows, so that the gradients of matrices
        that lie side by side, and have the same operand, can be one product.
        """
        start = {each.parameter: (each.tensor, each.start) for each in self.layout.signature.slices}
        found = [(each, self.place(each.operand)) for each in outers]
        found.sort(key=lambda pair: start[pair[0].parameter])
        return [(each, self.place(each.delta), operand) for each, operand in found]

    def joined(
        self, outers: Outers, sums: Mapping[str, tuple[Node, Sources]]
    ) -> tuple[Outers, dict[str, tuple[Node, Sources]]]:
        """The same with the width of the array, which is known when nothing more is asked for."""
        whole = {each: replace(each, stride=self._width) for each in self._made}

        def now(array: Array) -> Array:
            return whole.get(array, array)

        for node, arrays in self.stores.items():
            self.stores[node] = [now(each) for each in arrays]
        return (
            [(outer, now(delta), now(operand)) for outer, delta, operand in outers],
            {
                name: (node, {source: now(array) for source, array in sources.items()})
                for name, (node, sources) in sums.items()
            },
        )

    def known(self, node: Node) -> Array | None:
        """Where the value lies for all steps, if it does."""
        for array in self.stores.get(node, ()):
            if array.index is not Index.ODD:
                return array
        if is_leaf(node) and node.op not in ("constant", "reciprocal_size"):
            place = self.layout.leaf(node, looped=self.looped)
            if place is not None and place.index is not Index.EVEN:
                return place
        return None

    def place(self, node: Node) -> Array:
        """Where the value lies for all steps."""
        known = self.known(node)
        if known is not None and known.kind is Kind.ROWS and not known.boolean:
            constant_in_time = known.index is Index.NONE and self.looped
            if not constant_in_time:
                return known
        index = Index.TIME if self.looped else Index.NONE
        if node.size == ONE:
            slot = f"{self.slot}.{len(self._numbers)}"
            array = self.layout.array(slot, node.size, index, boolean=node.vector.boolean)
            self._numbers.append(array)
            self.stores.setdefault(node, []).append(array)
            return array
        array = self.layout.array(self.slot, node.size, index).moved(self._width)
        self._width += array.stride
        self._made.append(array)
        self.stores.setdefault(node, []).append(array)
        return array

    def summand(self, node: Node) -> tuple[Node, Sources]:
        """A value to be summed, with the places of all that it is computed from."""
        sources: Sources = {}
        if not self._collect(node, sources):
            sources = {node: self.place(node)}
        return node, sources

    def _collect(self, node: Node, sources: Sources) -> bool:
        """Whether the value can be computed from arrays, unit by unit; adds them."""
        found = self.known(node)
        if found is not None:
            sources[node] = found
            return True
        if is_leaf(node):
            return node.op in ("constant", "reciprocal_size")
        if TABLE[node.op].kind != "pointwise" or TABLE[node.op].cost > 4:
            return False
        if node.size == ONE and TABLE[node.op].cost > 1:
            sources[node] = self.place(node)
            return True
        return all(self._collect(source, sources) for source in node.inputs)
