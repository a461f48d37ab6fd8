"""A layer's options as rewrites of the cell's graph.

Dropout, zoneout, lengths, resets, clipping: each becomes part of the equations of a step
before anything is differentiated or planned. So every engine has every option, and its
gradient, without a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from cellwright.errors import InputError
from cellwright.ir import (
    INPUT,
    ONE,
    Matrix,
    Node,
    Vector,
    apply,
    constant,
    expand_composites,
    leaf,
    substitute,
    topological,
    verify,
    where,
)
from cellwright.ir.node import rebuild
from cellwright.lang import CellSpec, ParameterSpec, StateSpec
from cellwright.plan.truncation import truncate

SAVES = ("gates", "states", "checkpoints")
"""From the most memory and the least time to the reverse."""

GRADIENTS = ("full", "truncated")
"""How far an error flows back in time: through every connection, or not through weights."""


@dataclass(frozen=True)
class StepOptions:
    """What a layer asks of its cell; part of the key under which plans are kept.

    Attributes:
        heads: blocks on the diagonal of every recurrent matrix.
        layer_norm: normalise every product, with a gain.
        recurrent_dropout: multiply what recurrent matrices read by one mask a sequence.
        zoneout: (state, rate) pairs; a unit keeps its old value with that probability.
        training: draw zoneout at random (True), or use its expectation.
        lengths: sequences end early; their states are held and their outputs are zero.
        reset: states start afresh where a mask says so.
        learn_initial_state: a reset goes to the learnt initial state instead of zero.
        grad_clip: limit of the gradient that flows back into each state, at every step.
        gradient: one of ``GRADIENTS``; see :mod:`cellwright.plan.truncation`.
        trace: return every state and every watched value.
        precision: "fp32" or "bf16", of the operands of products.
        save: what the forward pass keeps for the backward pass, one of ``SAVES``; the equations
            and the numbers are the same.
    """

    heads: int = 1
    layer_norm: bool = False
    recurrent_dropout: bool = False
    zoneout: tuple[tuple[str, float], ...] = ()
    training: bool = False
    lengths: bool = False
    reset: bool = False
    learn_initial_state: bool = False
    grad_clip: float | None = None
    gradient: str = "full"
    trace: bool = False
    precision: str = "fp32"
    save: str = "gates"


@dataclass(frozen=True)
class StreamSpec:
    """A mask that a step reads: one row a sequence, new at each step or one for all steps."""

    name: str
    size: str
    per_step: bool
    boolean: bool


@dataclass(frozen=True)
class StepGraph:
    """One step with its options, free of composite operators.

    Attributes:
        states: as the cell has them.
        parameters: the cell's, and those that options add.
        streams: the masks it reads.
        next: state -> its value after the step.
        output: what the layer returns for the step.
        trace: name -> value, if asked for.
    """

    states: tuple[StateSpec, ...]
    parameters: tuple[ParameterSpec, ...]
    streams: tuple[StreamSpec, ...]
    next: Mapping[str, Node]
    output: Node
    trace: Mapping[str, Node]

    @property
    def roots(self) -> list[Node]:
        """Everything that a step yields."""
        return [*self.next.values(), self.output, *self.trace.values()]

    def map(self, change: Callable[[list[Node]], list[Node]]) -> StepGraph:
        """The same step after a pass over all of its roots at once."""
        changed = iter(change(self.roots))
        return replace(
            self,
            next={name: next(changed) for name in self.next},
            output=next(changed),
            trace={name: next(changed) for name in self.trace},
        )


def gain_group(group: str) -> str:
    """Name of the group of gains that ``layer_norm`` adds for the matrices of ``group``."""
    return f"gain_{group}"


def layer_parameters(spec: CellSpec, options: StepOptions) -> tuple[ParameterSpec, ...]:
    """The weights of one layer: the cell's own, with heads, and those that options add."""
    own = []
    gains = []
    groups = {parameter.group for parameter in spec.parameters}
    added = {"initial"} if options.learn_initial_state else set()
    if options.layer_norm:
        added |= {gain_group(group) for group in groups}
    for group in sorted(groups & added):
        option = "learn_initial_state" if group == "initial" else "layer_norm"
        raise InputError(
            f"{option}: it adds parameters called {group}, and cell {spec.name} has a group of "
            f"that name; rename the cell's"
        )
    for parameter in spec.parameters:
        kind = parameter.type
        if isinstance(kind, Matrix):
            if options.layer_norm:
                gain = ParameterSpec(
                    gain_group(parameter.group), parameter.member, Vector(kind.rows), 1.0
                )
                gains.append(gain)
            if kind.columns != INPUT:
                parameter = replace(parameter, type=replace(kind, blocks=options.heads))
        own.append(parameter)
    initial = []
    if options.learn_initial_state:
        initial = [ParameterSpec("initial", s.name, Vector(s.size), 0.0) for s in spec.states]
    return (*own, *gains, *initial)


def specialise(spec: CellSpec, options: StepOptions) -> StepGraph:
    """The step of ``spec`` with ``options`` written into its equations."""
    state = {each.name: leaf("state", each.name, Vector(each.size)) for each in spec.states}
    streams: dict[str, StreamSpec] = {}

    def stream(name: str, size: str, *, per_step: bool, boolean: bool) -> Node:
        streams[name] = StreamSpec(name, size, per_step, boolean)
        return leaf("stream", name, Vector(size, boolean), per_step=per_step)

    graph = StepGraph(
        states=spec.states,
        parameters=layer_parameters(spec, options),
        streams=(),
        next=dict(spec.next),
        output=spec.next[spec.output],
        trace={**spec.next, **spec.watch} if options.trace else {},
    )
    if options.gradient == "truncated":
        graph = graph.map(lambda roots: truncate(roots, spec.next.values()))
    graph = graph.map(lambda roots: _rewrite_products(roots, options))
    if options.recurrent_dropout:
        masks = {
            state[each.name]: state[each.name]
            * stream(f"dropout.{each.name}", each.size, per_step=False, boolean=False)
            for each in spec.states
            if each.name in read_by_matrices(spec)
        }
        graph = graph.map(lambda roots: _rewrite_operands(roots, masks))
    graph = _hold_back(graph, state, options, stream)
    graph = replace(graph.map(expand_composites), streams=tuple(streams.values()))
    verify(graph.roots, leaves=("input", "state", "parameter", "stream"), markers=True)
    return graph


def read_by_matrices(spec: CellSpec) -> set[str]:
    """States that a recurrent matrix multiplies directly: where recurrent dropout acts."""
    return {
        str(each.inputs[1].attribute("name"))
        for each in topological([*spec.next.values(), *spec.watch.values()])
        if each.op == "matvec" and each.inputs[1].op == "state"
    }


def _rewrite_products(roots: Iterable[Node], options: StepOptions) -> list[Node]:
    """Block-diagonal matrices, precision, and normalised products."""
    roots = list(roots)
    done: dict[Node, Node] = {}
    for each in topological(roots):
        inputs = tuple(done[source] for source in each.inputs)
        if each.op != "matvec":
            done[each] = each if inputs == each.inputs else rebuild(each, inputs)
            continue
        matrix, operand = inputs
        kind, name = matrix.matrix, str(matrix.attribute("name"))
        if kind.columns != INPUT and options.heads > 1:
            matrix = leaf("parameter", name, replace(kind, blocks=options.heads))
        how = {} if options.precision == "fp32" else {"precision": options.precision}
        product = apply("matvec", matrix, operand, **how)
        if options.layer_norm:
            group, dot, member = name.partition(".")
            gain = leaf("parameter", f"{gain_group(group)}{dot}{member}", Vector(kind.rows))
            product = apply("layer_norm", product, index=0, eps=1e-5) * gain
        done[each] = product
    return [done[root] for root in roots]


def _rewrite_operands(roots: Iterable[Node], masks: Mapping[Node, Node]) -> list[Node]:
    """Masked states inside the operands of products, states as they are elsewhere."""
    roots = list(roots)
    inside: dict[Node, Node] = dict(masks)
    outside: dict[Node, Node] = {}
    for each in topological(roots):
        if each.op == "matvec":
            product = rebuild(each, (each.inputs[0], inside[each.inputs[1]]))
            inside[each] = outside[each] = product
            continue
        for done in (inside, outside):
            if each not in done:
                inputs = tuple(done[source] for source in each.inputs)
                done[each] = each if inputs == each.inputs else rebuild(each, inputs)
    return [outside[root] for root in roots]


def _hold_back(
    graph: StepGraph,
    state: Mapping[str, Node],
    options: StepOptions,
    stream: Callable[..., Node],
) -> StepGraph:
    """Zoneout, resets, clipping and lengths: what stands between a state and the next."""
    following = dict(graph.next)
    for name, rate in options.zoneout:
        old, new = state[name], following[name]
        if options.training:
            keep = stream(f"zoneout.{name}", old.size, per_step=True, boolean=True)
            following[name] = where(keep, old, new)
        else:
            following[name] = old * rate + new * (1.0 - rate)
    output = following[graph.states[0].name]
    trace = {name: following.get(name, value) for name, value in graph.trace.items()}
    graph = replace(graph, next=following, output=output, trace=trace)

    entering = dict(state)
    if options.reset:
        fresh = stream("reset", ONE, per_step=True, boolean=True)
        for name, old in state.items():
            zero: Node = constant(0.0)
            if options.learn_initial_state:
                zero = leaf("parameter", f"initial.{name}", old.vector)
            entering[name] = where(fresh, zero, old)
    if options.grad_clip is not None:
        limit = float(options.grad_clip)
        entering = {n: apply("clip_gradient", old, limit=limit) for n, old in entering.items()}
    changed = {state[name]: new for name, new in entering.items() if new is not state[name]}
    graph = graph.map(lambda roots: substitute(roots, changed))
    if not options.lengths:
        return graph
    active = stream("active", ONE, per_step=True, boolean=True)
    return replace(
        graph,
        next={name: where(active, new, state[name]) for name, new in graph.next.items()},
        output=where(active, graph.output, 0.0),
        trace={name: where(active, value, 0.0) for name, value in graph.trace.items()},
    )
