"""The programs of a backward pass whose loop does what else is done for all steps at once.

The loop of :func:`programs.backward` writes the gradients of all hoisted values; another program
reads them for the gradients of what was hoisted, and sums read them, and what was saved, once
more. Here the loop goes on to those gradients while it has the row at hand, and adds up what is to
be summed: every row has a total, a chain from the last step to the first, and the rows are added
when all steps are done. What is left for later are products: the gradients of matrices and of x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, chain

from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources, Stores
from cellwright.engines.cpu.keeper import Keeper, Sums
from cellwright.engines.cpu.layout import Layout
from cellwright.engines.cpu.program import VECTOR, Program
from cellwright.engines.cpu.programs import Backward, parameter_size, whole, with_copies
from cellwright.engines.signature import Signature
from cellwright.ir import ONE, TABLE, Node, constant, is_leaf, leaf, substitute, topological
from cellwright.plan import Gradients, Plan
from cellwright.plan.stages import cut

TOTALS = "totals"
"""Slot of the rows' totals."""


def pays(plan: Plan) -> bool:
    """Whether the gradients of what was hoisted are worth computing at their step.

    They are where they have sums over units, for which rows would be read more than once. Products
    of all steps at once are faster than those of a step: where gradients wait for one, they stay
    outside.
    """
    back = plan.backward
    if any(name not in back.hoisted for name in plan.forward.inputs):
        return False
    roots = [node for each in back.inputs.matrices for node in (each.delta, each.operand)]
    roots += [node for _, node in _vectors(back.inputs, back.inputs.values)]
    kinds = {TABLE[each.op].kind for each in topological(roots)}
    return "reduction" in kinds and "product" not in kinds


def backward(signature: Signature, *, need_x: bool) -> Backward:
    """The programs of a backward pass, joined."""
    layout = Layout(signature)
    plan, hoisted = layout.plan.backward, layout.plan.forward.inputs
    arriving = {
        leaf("cotangent", name, node.vector): whole(plan.hoisted[name], node.size)
        for name, node in hoisted.items()
    }
    of_inputs = plan.inputs.map(lambda roots: substitute(roots, arriving))
    stores: Stores = {}
    for state in layout.plan.graph.states:
        node = plan.states.get(state.name, constant(0.0))
        array = layout.array(f"carry.{state.name}", state.size, Index.ODD)
        stores.setdefault(whole(node, state.size), []).append(array)
    keeper = Keeper(layout, stores, "kept", looped=True)
    outers = keeper.outers([*plan.parameters.matrices, *of_inputs.matrices])
    d_x = _GradientOfX(layout, arriving, keeper) if need_x and "x" in plan.inputs.values else None
    summands: dict[str, Node] = {}
    vectors = chain(_vectors(plan.parameters, plan.hoisted), _vectors(of_inputs, of_inputs.values))
    for name, node in vectors:
        every = whole(node, parameter_size(layout, name))
        summands[name] = summands[name] + every if name in summands else every
    apart = {
        name: node
        for name, node in summands.items()
        if node.size == ONE or is_leaf(node) or keeper.known(node) is not None
    }
    sums = {name: keeper.summand(node) for name, node in apart.items()}
    outers, sums = keeper.joined(outers, sums)
    found = _Totals(layout, {n: node for n, node in summands.items() if n not in apart})
    for node, total in found.leaves.items():
        stores[total + node] = [found.places[total]]
    sources = layout.leaves(stores, looped=True) | found.places
    loop = Program(with_copies(cut(stores), stores), layout.sizes, sources, stores, backward=True)
    inputs = None if d_x is None else d_x.program(keeper)
    return Backward(
        loop, inputs, 0, False, keeper.kept, {}, outers, [], sums, {}, found.width, found.sums
    )


def _vectors(gradients: Gradients, values: Mapping[str, Node]) -> Iterator[tuple[str, Node]]:
    """What is to be summed for vector parameters, and for values of parameters alone."""
    yield from gradients.vectors.items()
    yield from ((name, node) for name, node in values.items() if name.startswith("once."))


class _GradientOfX:
    """The gradient of x, as products of what the loop keeps for all steps.

    Their terms have the order that they have where the loop is not joined, so that the bits are
    the same.

    Args:
        layout: of the programs.
        arriving: gradients of hoisted values, as the loop computes them.
        keeper: where the products find what they read.
    """

    def __init__(self, layout: Layout, arriving: Mapping[Node, Node], keeper: Keeper):
        self.layout = layout
        given = layout.plan.backward.inputs.values["x"]
        nodes = topological([given])
        operands = [n.inputs[1] for n in nodes if TABLE[n.op].kind == "product"]
        leaves = {n: leaf("value", f"kept.{i}", n.type) for i, n in enumerate(operands)}
        (self.node,) = substitute([whole(given, "input")], leaves)
        self.places = {
            leaves[operand]: keeper.place(node)
            for operand, node in zip(operands, substitute(operands, arriving), strict=True)
        }
        self.order: dict[Node, tuple[bool, str, int]] = {}
        for operand, found in leaves.items():
            self.order[found] = True, VECTOR, nodes.index(operand)
            if operand.op == "cotangent":
                place = layout.hoisted("d_inputs", str(operand.attribute("name")), Index.NONE)
                self.order[found] = True, place.slot, place.offset

    def program(self, keeper: Keeper) -> Program:
        """For all steps at once, when nothing more is kept."""
        stores: Stores = {self.node: [self.layout.array("d_x", "input", Index.NONE)]}
        sources = self.layout.leaves(stores, looped=False)
        for found, array in self.places.items():
            sources[found] = replace(keeper.whole(array), index=Index.NONE)
        stages = with_copies(cut(stores), stores)
        return Program(stages, self.layout.sizes, sources, stores, looped=False, order=self.order)


class _Totals:
    """Columns of one array, a row for each of the batch, that the loop adds summands to.

    Attributes:
        leaves: summand -> its total.
        places: of the totals.
        width: elements of a row.
        sums: by parameter, its total and where it lies, to be summed over rows.
    """

    def __init__(self, layout: Layout, summands: Mapping[str, Node]):
        self.leaves = {
            node: leaf("value", f"total.{number}", node.type)
            for number, node in enumerate(dict.fromkeys(summands.values()))
        }
        units = [layout.sizes[node.size] for node in self.leaves]
        *begins, self.width = accumulate(units, initial=0)
        self.places: Sources = {
            total: Array(TOTALS, Kind.ROWS, stride=self.width, offset=begin)
            for total, begin in zip(self.leaves.values(), begins, strict=True)
        }
        self.sums: Sums = {}
        for name, node in summands.items():
            total = self.leaves[node]
            self.sums[name] = total, {total: self.places[total]}
