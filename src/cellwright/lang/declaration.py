"""What ``@cell`` is told beside the equations: states, docstring, initial values, gates."""

from __future__ import annotations

import inspect
import keyword
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from cellwright.ir import INPUT
from cellwright.lang.lowering import parameter_type
from cellwright.lang.spec import ParameterSpec, StateSpec
from cellwright.lang.symbols import Parameter, fail

StateArgument = str | Iterable[str] | Mapping[str, str]


def state_specs(state: StateArgument) -> tuple[StateSpec, ...]:
    """The states that ``@cell(state=...)`` names, checked."""
    if isinstance(state, str):
        state = (state,)
    if not isinstance(state, Iterable):
        fail(f"state: expected the names of the states, as in ('h', 'c'), got {state!r}")
    names = list(state)
    sizes = dict(state) if isinstance(state, Mapping) else dict.fromkeys(names, "hidden")
    if not sizes:
        fail("a cell needs at least one state")
    if len(names) != len(sizes):
        fail(f"a state is named twice in {tuple(names)!r}")
    for each, size in sizes.items():
        for what, word in (("state", each), ("size", size)):
            if not isinstance(word, str) or not word.isidentifier() or keyword.iskeyword(word):
                fail(f"{word!r} is not a name for a {what}")
        if each.startswith("_"):
            fail(f"{each!r} is not a name for a state: it starts with an underscore")
        if each == "watch":
            fail("a state cannot be called 'watch': next_state has an argument of that name")
        if size in ("one", INPUT):
            fail(f"state {each!r} cannot have the size {size!r}; that name has another meaning")
    return tuple(StateSpec(each, size) for each, size in sizes.items())


def read_docstring(text: str | None) -> tuple[str, str, str]:
    """(title, source, notes): "Title. Source." on the first line, notes after it."""
    if not text:
        return "", "", ""
    first, _, rest = inspect.cleandoc(text).partition("\n\n")
    title, _, source = " ".join(first.split()).partition(". ")
    return title.rstrip("."), source.rstrip("."), rest.strip()


def initial_values(init: Mapping[str, float] | None) -> dict[str, float]:
    """The constants of ``@cell(init=...)``, checked; their names are checked later."""
    if init is None:
        return {}
    if not isinstance(init, Mapping):
        fail(f"init: expected a dict of names and numbers, as in {{'gain': 1.0}}, got {init!r}")
    for name, value in init.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (number and math.isfinite(value)):
            fail(f"init of {name}: expected a number, got {value!r}")
    return {name: float(value) for name, value in init.items()}


def parameter_specs(
    parameters: Sequence[Parameter], init: Mapping[str, float], place: str
) -> tuple[ParameterSpec, ...]:
    """The parameters group by group, in the order of first use."""
    groups: dict[str, list[Parameter]] = {}
    for each in sorted(parameters, key=lambda p: p.order):
        groups.setdefault(each.group, []).append(each)
    known = {*groups, *(p.name for p in parameters)}
    for key in init:
        if key not in known:
            fail(f"init names {key!r}; the parameters are {', '.join(sorted(known))}", place)
    return tuple(
        ParameterSpec(p.group, p.member, parameter_type(p), init.get(p.name, init.get(p.group)))
        for members in groups.values()
        for p in members
    )


def check_gate(
    argument: str, member: str | None, parameters: Iterable[ParameterSpec], place: str
) -> str | None:
    """``member``, which has to be that of a parameter, or a group without members."""
    known = dict.fromkeys(each.member or each.group for each in parameters)
    if member is not None and not (isinstance(member, str) and member in known):
        fail(f"{argument} names {member!r}; the parameters have {', '.join(known)}", place)
    return member
