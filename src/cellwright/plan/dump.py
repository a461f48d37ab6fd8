"""A plan as text that a person can read: ``cellwright cells lstm --plan``."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping

from cellwright.ir import Node, is_leaf, topological
from cellwright.lang import CellSpec
from cellwright.lang.printing import expression
from cellwright.plan.build import Gradients, Loop, Plan, build
from cellwright.plan.options import StepOptions

WIDTH = 100  # of the right side of an equation, where it can be helped


def dump(spec: CellSpec, options: StepOptions | None = None) -> str:
    """Forward and backward plan of a cell, stage by stage."""
    plan = build(spec, options)
    return "\n".join([*_forward(plan), "", *_backward(plan)]) + "\n"


def _leaf(each: Node) -> str:
    name = str(each.attribute("name")) if each.op != "reciprocal_size" else ""
    if each.op == "reciprocal_size":
        return f"1/{each.attribute('size')}"
    if each.op == "stream":
        return f"{name}[t]" if each.attribute("per_step") else name
    return {
        "input": f"{name}[t]",
        "state": f"{name}[t-1]",
        "cotangent": f"d {name}",
    }.get(each.op, name)


def _forward(plan: Plan) -> list[str]:
    forward = plan.forward
    lines = [f"forward of {plan.spec.name}"]
    lines += _table("once a call", forward.once)
    lines += _table("for all steps at once", {**forward.saved_inputs, **forward.inputs})
    names = {each: name for name, each in plan.spec.names}
    names |= {each: name for name, each in forward.saved.items() if not is_leaf(each)}
    names |= {each: f"{name}[t]" for name, each in forward.next.items()}
    lines += _stages(forward.loop, names)
    ends = {f"{name}[t]": each for name, each in forward.next.items()}
    ends |= {"output": forward.output} | {f"trace {n}": v for n, v in forward.trace.items()}
    ends |= forward.saved
    shown = {name: each for name, each in ends.items() if names.get(each) != name}
    lines += _table("results", shown, names)
    saved = ", ".join([*forward.saved, *forward.saved_inputs]) or "nothing"
    text = f"saved for the backward pass: {saved}"
    return [*lines, *textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")]


def _backward(plan: Plan) -> list[str]:
    backward = plan.backward
    lines = [f"backward of {plan.spec.name}"]
    names = {each: f"d {name}" for name, each in backward.hoisted.items() if not is_leaf(each)}
    names |= {each: f"d {name}[t-1]" for name, each in backward.states.items() if not is_leaf(each)}
    lines += _stages(backward.loop, names)
    ends = {f"d {name}[t-1]": each for name, each in backward.states.items()}
    ends |= {f"d {name}": each for name, each in backward.hoisted.items()}
    shown = {name: each for name, each in ends.items() if names.get(each) != name}
    lines += _table("results", shown, names)
    lines += _gradients("summed over steps", backward.parameters, names)
    lines += _gradients("after the loop, over all steps at once", backward.inputs, {})
    lines += _gradients("after the loop, once", backward.once, {})
    return lines


def _table(
    title: str, values: Mapping[str, Node], names: Mapping[Node, str] | None = None
) -> list[str]:
    if not values:
        return []
    shown = dict(names or {})
    own = {each: name for name, each in values.items() if not is_leaf(each) and each not in shown}
    lines = [f"  {title}", *_shared(values.values(), shown, own)]
    for name, each in values.items():
        if own.get(each) != name:
            lines.append(f"    {name} = {shown.get(each) or expression(each, {}, _leaf, 'text')}")
    return lines


def _gradients(title: str, found: Gradients, names: Mapping[Node, str]) -> list[str]:
    shown = dict(names)
    lines = _shared(found.roots, shown, {})

    def write(each: Node) -> str:
        return expression(each, shown, _leaf, "text", inside=True)

    lines += [f"    d {name} = {write(each)}" for name, each in found.values.items()]
    lines += [f"    d {name} += {write(each)}" for name, each in found.vectors.items()]
    lines += [
        f"    d {each.parameter} += outer({write(each.delta)}, {write(each.operand)})"
        for each in found.matrices
    ]
    return [f"  {title}", *lines] if lines else []


def _shared(roots: Iterable[Node], names: dict[Node, str], own: Mapping[Node, str]) -> list[str]:
    """A line for each value that has a name of its ``own``, or that several others read.

    Others get a line where the equation that reads them would be too long. The names of all
    are added to ``names``.
    """
    lines: list[str] = []
    numbers = itertools.count()
    roots = list(roots)
    uses = _uses(roots)
    for each in roots:
        uses[each] += 1
    known = {each for named in list(names) for each in topological([named])}

    def write(each: Node) -> str:
        return expression(each, names, _leaf, "text")

    def name(each: Node) -> None:
        text = write(each)
        names[each] = own.get(each) or f"s{next(numbers)}"
        lines.append(f"    {names[each]} = {text}")

    for each, count in uses.items():
        if is_leaf(each) or each in known:
            continue
        while len(write(each)) > WIDTH:
            unnamed = [i for i in each.inputs if not is_leaf(i) and i not in names]
            if not unnamed:
                break
            name(max(unnamed, key=lambda operand: len(write(operand))))
        if count > 1 or each in own:
            name(each)
    return lines


def _stages(loop: Loop, names: dict[Node, str]) -> list[str]:
    """Each stage's values; shared ones get names (``t0``, ``t1``) and are added to ``names``."""
    uses = _uses(loop.roots)
    lines = []
    for index, stage in enumerate(loop.stages):
        lines.append(f"  stage {index}")
        for each in stage.nodes:
            shared = uses.get(each, 0) > 1 or each in stage.stored or each.op.startswith("matvec")
            if each not in names:
                if not shared:
                    continue
                names[each] = f"t{len(names)}"
            text = expression(each, names, _leaf, "text", inside=False)
            mark = "  (stored)" if each in stage.stored else ""
            lines.append(f"    {names[each]} = {text}{mark}")
    return lines


def _uses(roots: Iterable[Node]) -> dict[Node, int]:
    order = topological(roots)
    uses = {each: 0 for each in order}
    for each in order:
        for source in each.inputs:
            uses[source] += 1
    return uses
