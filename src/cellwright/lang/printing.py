"""A cell's equations as text and as LaTeX, from its graph and the table of operators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TYPE_CHECKING

from cellwright.ir import TABLE, Node, topological

if TYPE_CHECKING:
    from cellwright.lang.spec import CellSpec

_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "lambda", "mu", "nu",
    "xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega",
}  # fmt: skip
_SUM, _PRODUCT, _PREFIX, _ATOM = 2, 3, 4, 5
_STRICT = {"sub", "div", "mul", "matvec", "matvec_transposed"}
_LONG = 3  # operators, from which a shared value gets a line of its own
Leaf = Callable[[Node], str]


def number(value: float, style: str) -> str:
    """A constant as one would write it: 2 rather than 2.0."""
    if math.isinf(value) and style == "latex":
        return r"\infty" if value > 0 else r"-\infty"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def expression(
    root: Node, names: Mapping[Node, str], leaf: Leaf, style: str, *, inside: bool = False
) -> str:
    """``root`` written out; nodes in ``names`` are written by name.

    Args:
        root: what to write.
        names: how the named values are written.
        leaf: how the leaves are written.
        style: "text" or "latex", a column of the table of operators.
        inside: whether ``root`` itself may be written by its name.
    """
    return _write(root, names, leaf, style, 0, inside)


def _write(
    each: Node, names: Mapping[Node, str], leaf: Leaf, style: str, outer: int, by_name: bool = True
) -> str:
    if by_name and each in names:
        return names[each]
    operator = TABLE[each.op]
    if each.op == "constant":
        value = each.attribute("value")
        return _bracket(number(value, style), _PREFIX if value < 0 else _ATOM, outer, style)
    if operator.kind == "leaf":
        return leaf(each)
    call = operator.precedence == _ATOM
    parts = []
    for index, operand in enumerate(each.inputs):
        # The right side of these needs brackets at equal precedence too.
        strict = index > 0 and each.op in _STRICT
        level = 0 if call else operator.precedence + (1 if strict else 0)
        if each.op == "mul" and index > 0 and operand.op == "mul":
            level = _PRODUCT
        parts.append(_write(operand, names, leaf, style, level))
    template = operator.latex if style == "latex" else operator.text
    if style == "latex" and each.op == "div":
        parts = [_write(operand, names, leaf, style, 0) for operand in each.inputs]
        return rf"\frac{{{parts[0]}}}{{{parts[1]}}}"
    if style == "latex" and each.op == "mul" and "constant" in [i.op for i in each.inputs]:
        template = r"{0} \, {1}"
    if "{*}" in template:
        joined = ", ".join(parts)
        text = template.replace("{{", "{").replace("}}", "}").replace("{*}", joined)
        text += f"[{each.attribute('index')}]" if len(parts) > 1 and style == "text" else ""
        text += f"_{{{each.attribute('index') + 1}}}" if len(parts) > 1 and style == "latex" else ""
        return text
    return _bracket(template.format(*parts), operator.precedence, outer, style)


def _bracket(text: str, precedence: int, outer: int, style: str) -> str:
    if precedence >= outer:
        return text
    return rf"\left({text}\right)" if style == "latex" else f"({text})"


def equations(spec: CellSpec) -> str:
    """One equation a line: ``c[t] = f[t] * c[t-1] + i[t] * g[t]``."""

    def leaf(each: Node) -> str:
        name = str(each.attribute("name"))
        return {"input": f"{name}[t]", "state": f"{name}[t-1]"}.get(each.op, name)

    return "\n".join(
        f"{left} = {right}" for left, right in _lines(spec, leaf, "text", lambda name: f"{name}[t]")
    )


def latex(spec: CellSpec) -> str:
    """The equations as an ``aligned`` block."""

    def leaf(each: Node) -> str:
        name = str(each.attribute("name"))
        step = {"input": "t", "state": "t-1"}.get(each.op)
        if step is not None:
            return f"{_symbol(name)}_{{{step}}}"
        group, _, member = name.partition(".")
        return f"{_symbol(group)}_{{{_symbol(member)}}}" if member else _symbol(group)

    rows = _lines(spec, leaf, "latex", lambda name: f"{_symbol(name)}_{{t}}")
    body = " \\\\\n".join(f"{left} &= {right}" for left, right in rows)
    return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"


def _symbol(name: str) -> str:
    """A name in LaTeX: one letter in italics, Greek spelt out, a word upright."""
    if name in _GREEK:
        return f"\\{name}"
    return name if len(name) == 1 else rf"\mathrm{{{name.replace('_', chr(92) + '_')}}}"


def _lines(
    spec: CellSpec, leaf: Leaf, style: str, write: Callable[[str], str]
) -> list[tuple[str, str]]:
    """(left side, right side) of each equation, states under their own names."""
    written: dict[Node, str] = {}
    rows: list[tuple[str, Node]] = []
    state_names = {value: name for name, value in spec.next.items()}
    for name, value in spec.names:
        if TABLE[value.op].kind == "leaf" or value in written:
            continue
        left = state_names.get(value, name)
        if left == "x" or spec.next.get(left, value) is not value:
            continue  # x[t] is the input and h[t] the state, so this is written out in its users
        written[value] = write(left)
        rows.append((written[value], value))
    rows += [
        (write(name), value)
        for name, value in spec.next.items()
        if written.get(value) != write(name)
    ]
    result: list[tuple[str, str]] = []
    shared = _shared([value for _, value in rows], set(written))
    taken = {name for name, _ in spec.names} | set(spec.next) | {"x"}
    for left, value in rows:
        for each in topological([value]):
            if each in shared and each not in written:
                name = next(f"s{n}" for n in itertools.count(1) if f"s{n}" not in taken)
                taken.add(name)
                written[each] = write(name)
                result.append((written[each], expression(each, written, leaf, style)))
        inside = value in written and written[value] != left
        result.append((left, expression(value, written, leaf, style, inside=inside)))
    return result


def _shared(roots: Iterable[Node], named: Container[Node]) -> set[Node]:
    """Values without a name that are used more than once and too long to write out each time."""
    order = topological(roots)
    uses: dict[Node, int] = {}
    length: dict[Node, int] = {}
    found = set()
    for each in order:
        for source in each.inputs:
            uses[source] = uses.get(source, 0) + 1
    for each in order:
        inner = (0 if i in named or i in found else length[i] for i in each.inputs)
        length[each] = 0 if TABLE[each.op].kind == "leaf" else 1 + sum(inner)
        if uses.get(each, 0) > 1 and each not in named and length[each] >= _LONG:
            found.add(each)
    return found
