"""The plan of a layer: what an engine has to compute, forward and backward, in which order.

From a step's graph this makes

* ``once``: values computed from parameters alone, once a call;
* ``inputs``: values computed from ``x``, for all steps at once (every ``W @ x + b``);
* the forward loop, in stages, with what it saves;
* the backward loop, in stages, with the gradients that it carries, keeps and sums up;
* the gradients of ``inputs`` and of ``once``, after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cellwright.autodiff import gradient
from cellwright.ir import (
    Matrix,
    Node,
    is_leaf,
    leaf,
    leave_out_markers,
    substitute,
    topological,
    verify,
)
from cellwright.lang import CellSpec, ParameterSpec
from cellwright.plan.hoist import hoist
from cellwright.plan.linear import take_apart
from cellwright.plan.options import StepGraph, StepOptions, specialise
from cellwright.plan.saving import choose, costs
from cellwright.plan.stages import Stage, cut


@dataclass(frozen=True)
class Outer:
    """A contribution to a matrix's gradient: the sum of delta x operand over rows and steps."""

    parameter: str
    delta: Node
    operand: Node
    precision: str = "fp32"


@dataclass(frozen=True)
class Loop:
    """The body of a time loop.

    Attributes:
        stages: what is computed at a step, in order.
        roots: everything that is read after the stages.
    """

    stages: tuple[Stage, ...]
    roots: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All computed values in order."""
        return tuple(each for stage in self.stages for each in stage.nodes)


@dataclass(frozen=True)
class Forward:
    """The forward pass.

    Attributes:
        once, inputs: what is hoisted out of the loop, by name.
        loop: the body.
        next: state -> its value after the step.
        output: the layer's output at the step.
        trace: name -> traced value.
        saved: name -> value that the backward loop reads, kept for every step.
        saved_inputs: name -> value on the way to ``inputs`` that their gradients read, kept for
            every step.
    """

    once: Mapping[str, Node]
    inputs: Mapping[str, Node]
    loop: Loop
    next: Mapping[str, Node]
    output: Node
    trace: Mapping[str, Node]
    saved: Mapping[str, Node]
    saved_inputs: Mapping[str, Node]


@dataclass(frozen=True)
class Gradients:
    """Gradients that a graph yields for its leaves, by name.

    Attributes:
        values: state, hoisted value or ``x`` -> its gradient, one row a sequence.
        vectors: vector parameter -> the contribution of one row at one step.
        matrices: outer products, one or more for each matrix.
    """

    values: Mapping[str, Node]
    vectors: Mapping[str, Node]
    matrices: tuple[Outer, ...]

    @property
    def roots(self) -> tuple[Node, ...]:
        """All nodes that have to be computed for them."""
        pairs = (node for each in self.matrices for node in (each.delta, each.operand))
        return (*self.values.values(), *self.vectors.values(), *pairs)

    def map(self, change: Callable[[Iterable[Node]], list[Node]]) -> Gradients:
        """The same gradients after a pass over all of their roots at once."""
        changed = iter(change(self.roots))
        return Gradients(
            values={name: next(changed) for name in self.values},
            vectors={name: next(changed) for name in self.vectors},
            matrices=tuple(
                Outer(each.parameter, next(changed), next(changed), each.precision)
                for each in self.matrices
            ),
        )


@dataclass(frozen=True)
class Backward:
    """The backward pass; it reads the states before and after each step, and what was saved.

    Leaves of kind ``cotangent`` are ``next.STATE`` (carried), ``output``, ``trace.NAME``; in the
    graphs after the loop ``input.N`` and ``once.N``. Leaves of kind ``value`` are ``saved.N``,
    ``saved_input.N``, ``next.STATE`` and ``once.N``.

    Attributes:
        loop: the body, last step first.
        states: state -> gradient with respect to the state before the step, carried.
        hoisted: hoisted value -> its gradient at the step, kept (``input.N``) or summed
            (``once.N``).
        parameters: gradients of what the loop reads directly.
        inputs: the gradients of the ``inputs`` graph.
        once: the gradients of the ``once`` graph.
    """

    loop: Loop
    states: Mapping[str, Node]
    hoisted: Mapping[str, Node]
    parameters: Gradients
    inputs: Gradients
    once: Gradients


@dataclass(frozen=True)
class Plan:
    """All that an engine needs to know of a layer.

    Attributes:
        spec, options: what was planned.
        graph: one step, hoisted values as leaves.
        forward, backward: the two passes.
        marked: the forward pass with the operators that only a differentiation sees, for runs
            that torch's autograd differentiates.
        parameters: the weights of one layer.
    """

    spec: CellSpec
    options: StepOptions
    graph: StepGraph
    forward: Forward
    backward: Backward
    marked: Forward
    parameters: tuple[ParameterSpec, ...] = field(default=())


@lru_cache(maxsize=512)
def build(spec: CellSpec, options: StepOptions | None = None) -> Plan:
    """The plan for a cell with the given options; kept, so asking again costs nothing."""
    options = options or StepOptions()
    graph = specialise(spec, options)
    hoisted = hoist(graph.roots, [each.name for each in graph.parameters])
    marked = graph.map(lambda _: hoisted.roots)
    step, once, inputs = marked.map(leave_out_markers), _bare(hoisted.once), _bare(hoisted.inputs)
    verify(once.values(), leaves=("parameter",))
    verify(inputs.values(), leaves=("input", "parameter", "stream", "value"))
    verify(step.roots, leaves=("state", "parameter", "stream", "value"))
    of_step = _differentiate_step(marked)
    of_inputs = _differentiate_hoisted(hoisted.inputs, ("input", "parameter", "value"))
    of_once = _differentiate_hoisted(hoisted.once, ("parameter",))
    saved, saved_inputs, backward = _connect_all(step, inputs, of_step, of_inputs, of_once)
    return Plan(
        spec,
        options,
        step,
        _forward(step, once, inputs, saved, saved_inputs),
        backward,
        _forward(marked, hoisted.once, hoisted.inputs, {}, {}),
        graph.parameters,
    )


def _bare(graph: Mapping[str, Node]) -> dict[str, Node]:
    return dict(zip(graph, leave_out_markers(graph.values()), strict=True))


def _forward(
    step: StepGraph,
    once: Mapping[str, Node],
    inputs: Mapping[str, Node],
    saved: Mapping[str, Node],
    saved_inputs: Mapping[str, Node],
) -> Forward:
    loop = _loop([*step.roots, *saved.values()])
    return Forward(once, inputs, loop, step.next, step.output, step.trace, saved, saved_inputs)


def _loop(roots: Iterable[Node]) -> Loop:
    roots = tuple(dict.fromkeys(roots))
    return Loop(cut(roots), roots)


def cotangent(name: str, of: Node) -> Node:
    """The leaf for a gradient that arrives from outside a graph."""
    return leaf("cotangent", name, of.vector)


def _leaves(roots: Iterable[Node], *kinds: str) -> list[Node]:
    return [each for each in topological(roots) if each.op in kinds]


def _name(each: Node) -> str:
    return str(each.attribute("name"))


def _differentiate_step(step: StepGraph) -> Gradients:
    """Gradients of what a step reads, given those of all that it yields."""
    seeds: dict[Node, Node] = {}
    arriving = [(f"next.{name}", value) for name, value in step.next.items()]
    arriving += [("output", step.output)]
    arriving += [(f"trace.{name}", value) for name, value in step.trace.items()]
    for name, value in arriving:
        seed = cotangent(name, value)
        seeds[value] = seeds[value] + seed if value in seeds else seed
    found = gradient(seeds, _leaves(step.roots, "state", "value", "parameter"))
    return _sort(found)


def _connect_all(
    step: StepGraph,
    inputs: Mapping[str, Node],
    of_step: Gradients,
    of_inputs: Gradients,
    of_once: Gradients,
) -> tuple[dict[str, Node], dict[str, Node], Backward]:
    """What is to be saved, in the loop and before it, and the backward pass."""
    after = {
        value: leaf("value", f"next.{name}", value.vector)
        for name, value in step.next.items()
        if not is_leaf(value)
    }
    saved_inputs, of_inputs = _connect(of_inputs, inputs.values(), {}, "saved_input")
    again = _hoisted_again(inputs, saved_inputs)
    saved, adjoint = _connect(of_step, step.roots, after, "saved", again)
    roots = [*adjoint.roots]
    verify(roots, leaves=("state", "parameter", "stream", "value", "cotangent"))
    is_state = {each.name for each in step.states}
    backward = Backward(
        loop=_loop(roots),
        states={n: value for n, value in adjoint.values.items() if n in is_state},
        hoisted={n: value for n, value in adjoint.values.items() if n not in is_state},
        parameters=Gradients({}, adjoint.vectors, adjoint.matrices),
        inputs=of_inputs,
        once=of_once,
    )
    return saved, saved_inputs, backward


def _hoisted_again(
    inputs: Mapping[str, Node], saved_inputs: Mapping[str, Node]
) -> dict[Node, tuple[Node, int]]:
    """Hoisted values that can be computed again from what is saved of them, and at which cost."""
    kept = {node: leaf("value", name, node.type) for name, node in saved_inputs.items()}
    found = costs(inputs.values(), kept)
    return {
        leaf("value", name, node.vector): (substitute([node], kept)[0], found[node])
        for name, node in inputs.items()
        if node in found
    }


def _differentiate_hoisted(graph: Mapping[str, Node], kinds: Sequence[str]) -> Gradients:
    seeds = {value: cotangent(name, value) for name, value in graph.items()}
    found = _sort(gradient(seeds, _leaves(graph.values(), *kinds)))
    verify(found.roots, leaves=("input", "parameter", "stream", "value", "cotangent"))
    return found


def _sort(found: Mapping[Node, Node]) -> Gradients:
    """Gradients by the kind of leaf they belong to."""
    values: dict[str, Node] = {}
    vectors: dict[str, Node] = {}
    matrices: list[Outer] = []
    for each, value in found.items():
        if isinstance(each.type, Matrix):
            for outer in _summands(value):
                delta, operand = outer.inputs
                precision = dict(outer.attributes).get("precision", "fp32")
                matrices.append(Outer(_name(each), delta, operand, precision))
        elif each.op == "parameter":
            vectors[_name(each)] = value
        else:
            values[_name(each)] = value
    return Gradients(values, vectors, tuple(matrices)).map(leave_out_markers)


def _summands(value: Node) -> list[Node]:
    """The outer products that a matrix's gradient is the sum of."""
    if value.op == "add":
        return [each for source in value.inputs for each in _summands(source)]
    assert value.op == "outer", f"a matrix's gradient is made of outer products, not {value.op}"
    return [value]


def _connect(
    adjoint: Gradients,
    roots: Iterable[Node],
    at_hand: Mapping[Node, Node],
    prefix: str,
    again: Mapping[Node, tuple[Node, int]] | None = None,
) -> tuple[dict[str, Node], Gradients]:
    """Let a gradient graph read saved values instead of computing them a second time.

    Args:
        adjoint: gradients of the graph with these ``roots``.
        roots: what the forward pass computes.
        at_hand: values of it that are kept anyway, and the leaves to read them by.
        prefix: of the names of what is saved.
        again: leaves of the graph that can be computed again, how, and at which cost.
    """
    again = again or {}
    order = topological(roots)
    forward = set(order)
    adjoint = adjoint.map(lambda found: take_apart(found, forward))
    needed = [
        source
        for each in topological(adjoint.roots)
        if each not in forward
        for source in each.inputs
        if source in forward
    ]
    needed += [root for root in adjoint.roots if root in forward]
    states = [each for each in order if each.op == "state"]
    cost = dict.fromkeys([*states, *at_hand], 0) | {each: found[1] for each, found in again.items()}
    chosen = choose(dict.fromkeys(needed), cost)
    saved = {f"{prefix}.{index}": each for index, each in enumerate(chosen)}
    as_leaf = {each: found for each, (found, _) in again.items()}
    as_leaf |= {**at_hand, **{each: leaf("value", n, each.type) for n, each in saved.items()}}
    return saved, adjoint.map(lambda found: substitute(found, as_leaf))
