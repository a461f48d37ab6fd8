"""From a plan to programs: which loops run, and where each of their values lies.

A layer's forward pass is two programs, ``inputs`` (everything hoisted, over all steps and rows at
once) and ``loop``. Its backward pass is ``loop``, then ``inputs``, then sums over rows and steps
for vector parameters, and products over them for matrices. ``joined`` has another backward pass, in
which the loop does all but the products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cellwright.engines.cpu.arrays import Array, Index, Stores
from cellwright.engines.cpu.keeper import Keeper, Outers, Sums
from cellwright.engines.cpu.layout import Layout
from cellwright.engines.cpu.program import Program
from cellwright.engines.signature import Signature
from cellwright.ir import (
    ONE,
    Node,
    apply,
    constant,
    is_leaf,
    leaf,
    substitute,
    topological,
)
from cellwright.plan import Stage
from cellwright.plan.stages import cut


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
        totals: numbers of each row that the loop adds to at every step.
        total_sums: what is summed over rows when all steps are done.
    """

    loop: Program
    inputs: Program | None
    width: int
    missing: bool
    kept: dict[str, int]
    kept_after: dict[str, int]
    loop_outers: Outers
    input_outers: Outers
    loop_sums: Sums
    input_sums: Sums
    totals: int = 0
    total_sums: Sums = field(default_factory=dict)


def with_copies(stages: Iterable[Stage], stores: Stores) -> list[Stage]:
    """The stages, and one more for leaves that are to be written somewhere as they are."""
    leaves = tuple(each for each in stores if is_leaf(each))
    return [*stages, *([Stage((), (), leaves, ())] if leaves else [])]


def whole(node: Node, size: str) -> Node:
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
    plan = layout.plan.forward
    if not plan.inputs:
        return None
    stores: Stores = {}
    for name, node in plan.inputs.items():
        stores.setdefault(node, []).append(layout.hoisted("inputs", name, Index.NONE))
    if keep:
        for name, node in plan.saved_inputs.items():
            array = layout.array(name, node.size, Index.NONE, boolean=node.vector.boolean)
            stores.setdefault(node, []).append(array)
    sources = layout.leaves(stores, looped=False)
    stages = with_copies(cut(stores), stores)
    return Program(stages, layout.sizes, sources, stores, looped=False)


def backward(signature: Signature, *, need_x: bool, spread_rows: bool = False) -> Backward:
    """The programs of a backward pass.

    Args:
        signature: of the layer.
        need_x: whether they yield the gradient of x.
        spread_rows: as for :class:`Layout`.
    """
    layout = Layout(signature, spread_rows=spread_rows)
    plan = layout.plan.backward
    stores: Stores = {}
    for name, node in plan.hoisted.items():
        if name.startswith("input."):
            size = layout.plan.forward.inputs[name].size
            array = layout.hoisted("d_inputs", name, Index.TIME)
            stores.setdefault(whole(node, size), []).append(array)
    for state in layout.plan.graph.states:
        node = plan.states.get(state.name, constant(0.0))
        array = layout.array(f"carry.{state.name}", state.size, Index.ODD)
        stores.setdefault(whole(node, state.size), []).append(array)
    keeper = Keeper(layout, stores, "kept", looped=True)
    outers = keeper.outers(plan.parameters.matrices)
    to_sum = dict(plan.parameters.vectors)
    to_sum |= {name: node for name, node in plan.hoisted.items() if name.startswith("once.")}
    vectors = {name: parameter_size(layout, name) for name in to_sum}
    sums = {name: keeper.summand(whole(node, vectors[name])) for name, node in to_sum.items()}
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


def parameter_size(layout: Layout, name: str) -> str:
    """Units of a vector parameter, or of a value of parameters alone."""
    once = layout.plan.forward.once.get(name)
    if once is not None:
        return once.size
    kind = next(p.type for p in layout.plan.parameters if p.name == name)
    return str(getattr(kind, "size", ONE))


def _backward_inputs(
    layout: Layout, *, need_x: bool
) -> tuple[Program | None, dict[str, int], Outers, Sums]:
    plan = layout.plan.backward.inputs
    stores: Stores = {}
    if need_x and "x" in plan.values:
        stores[whole(plan.values["x"], "input")] = [layout.array("d_x", "input", Index.NONE)]
    keeper = Keeper(layout, stores, "after", looped=False)
    outers = keeper.outers(plan.matrices)
    to_sum = dict(plan.vectors)
    to_sum |= {name: node for name, node in plan.values.items() if name != "x"}
    sums = {
        name: keeper.summand(whole(node, parameter_size(layout, name)))
        for name, node in to_sum.items()
    }
    outers, sums = keeper.joined(outers, sums)
    if not stores:
        return None, keeper.kept, outers, sums
    sources = layout.leaves(stores, looped=False)
    stages = with_copies(cut(stores), stores)
    program = Program(stages, layout.sizes, sources, stores, looped=False)
    return program, keeper.kept, outers, sums
