"""``@cell``: run the user's function once on symbols and keep the graph."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from types import FrameType, FunctionType, MethodType
from typing import Any

from cellwright.errors import CellError
from cellwright.ir import INPUT, Node, topological, verify
from cellwright.lang.declaration import (
    StateArgument,
    check_gate,
    initial_values,
    parameter_specs,
    read_docstring,
    state_specs,
)
from cellwright.lang.lowering import lower
from cellwright.lang.size import Size
from cellwright.lang.spec import CellSpec, StateSpec
from cellwright.lang.symbols import (
    Parameter,
    ParameterGroup,
    Symbol,
    as_symbol,
    fail,
    used_parameters,
    user_line,
)


class NextState:
    """What a cell's function returns; made by :func:`next_state`."""

    def __init__(self, states: dict[str, Symbol], watch: dict[str, Symbol], line: str):
        self.states = states
        self.watch = watch
        self.line = line


def next_state(*, watch: Mapping[str, Any] | None = None, **states: Any) -> NextState:
    """The states after the step, by name, and the values that one may look at.

    Args:
        watch: name -> value; a layer returns them for every step when called with
            ``trace=True``.
        **states: the new value of every state of the cell.
    """
    if watch is not None and not isinstance(watch, Mapping):
        fail(f"watch has to be a dict of names and values, got {type(watch).__name__}")
    watched = {}
    for name, value in (watch or {}).items():
        if not isinstance(name, str) or not name.isidentifier():
            fail(f"a watched value has to have a name, got {name!r}")
        watched[name] = as_symbol(value)
        if watched[name].boolean:
            fail(f"watch {name!r} is a comparison; use where(condition, 1, 0)")
    return NextState({n: as_symbol(v) for n, v in states.items()}, watched, user_line())


def cell(
    state: StateArgument,
    *,
    name: str | None = None,
    source: str | None = None,
    year: int | None = None,
    init: Mapping[str, float] | None = None,
    forget_gate: str | None = None,
    input_gate: str | None = None,
) -> Callable[[Callable[..., Any]], CellSpec]:
    """Make a recurrent cell from a function that holds its equations.

    The function's arguments are ``x``, the states in order, then groups of parameters.
    ``W.i @ x`` makes ``W.i`` a matrix, ``V.i * c`` a vector; shapes follow from use.

    Args:
        state: names of the states, the output first; or a dict of names and sizes, such as
            ``{"h": "projection", "c": "hidden"}``.
        name: the cell's name; the function's name by default.
        source: the citation. By default the docstring's first line after its first sentence.
        year: of the source; by default the first year in ``source``.
        init: constant initial values by group or parameter, as ``{"gain": 1.0}``.
        forget_gate: member of the gate that keeps the old state, for forget-bias and chrono
            initialisation.
        input_gate: member of the gate that admits the new, for chrono initialisation.

    Raises:
        CellError: naming file and line, where an equation has no meaning.

    Example:
        >>> import cellwright as cw
        >>> @cw.cell(state="h")
        ... def leaky(x, h, W, U, a):
        ...     k = cw.sigmoid(a)
        ...     h = k * h + (1 - k) * cw.tanh(W @ x + U @ h)
        ...     return cw.next_state(h=h)
        >>> print(leaky.equations())
        k[t] = sigmoid(a)
        h[t] = k[t] * h[t-1] + (1 - k[t]) * tanh(W @ x[t] + U @ h[t-1])
    """
    if callable(state):
        fail('@cell needs the names of the states, as in @cell(state=("h", "c"))')
    states = state_specs(state)
    constants = initial_values(init)

    def decorate(function: Callable[..., Any]) -> CellSpec:
        if not isinstance(function, (FunctionType, MethodType)):
            fail(f"@cell expected a function of x, the states and the parameters, got {function!r}")
        title, cited, notes = read_docstring(function.__doc__)
        citation = cited if source is None else source
        years = re.findall(r"\b(?:19|20)\d\d\b", citation)
        return _trace(
            function,
            states,
            constants,
            name=name or function.__name__,
            title=title,
            source=citation,
            year=year if year is not None else (int(years[0]) if years else None),
            notes=notes,
            forget_gate=forget_gate,
            input_gate=input_gate,
        )

    return decorate


def _trace(
    function: Callable[..., Any],
    states: tuple[StateSpec, ...],
    init: dict[str, float],
    *,
    name: str,
    forget_gate: str | None,
    input_gate: str | None,
    **about: Any,
) -> CellSpec:
    x, groups = _arguments(function, states)
    place = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
    before = [Symbol("state", size=Size(each.size), name=each.name) for each in states]
    returned, local_names = _run(function, [x, *before, *groups])
    if not isinstance(returned, NextState):
        fail(f"cell {name} has to return next_state(...), got {type(returned).__name__}", place)
    _check_states(returned, states, name)
    parameters = [p for group in groups for p in _checked(group, place)]
    lowered = lower([*returned.states.values(), *returned.watch.values()])
    named = sorted({**local_names, **returned.watch}.items(), key=lambda pair: pair[1].order)
    following = {each.name: lowered[returned.states[each.name]] for each in states}
    watch = {key: lowered[value] for key, value in returned.watch.items()}
    verify(
        [*following.values(), *watch.values()],
        leaves=("input", "state", "parameter"),
        composites=True,
    )
    _check_reached(parameters, [*following.values(), *watch.values()])
    specs = parameter_specs(parameters, init, place)
    return CellSpec(
        name=name,
        states=states,
        parameters=specs,
        next=following,
        watch=watch,
        names=tuple((key, lowered[value]) for key, value in named if value in lowered),
        forget_gate=check_gate("forget_gate", forget_gate, specs, place),
        input_gate=check_gate("input_gate", input_gate, specs, place),
        function=function,
        **about,
    )


def _arguments(
    function: Callable[..., Any], states: tuple[StateSpec, ...]
) -> tuple[Symbol, list[ParameterGroup]]:
    place = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
    signature = list(inspect.signature(function).parameters.values())
    for argument in signature:
        if argument.kind is not argument.POSITIONAL_OR_KEYWORD or (
            argument.default is not argument.empty
        ):
            fail(f"argument {argument.name}: a cell takes plain arguments without defaults", place)
    names = [argument.name for argument in signature]
    expected = ["x", *(each.name for each in states)]
    if names[: len(expected)] != expected:
        fail(
            f"a cell's arguments begin with x and its states: expected "
            f"({', '.join(expected)}, parameters...), got ({', '.join(names)})",
            place,
        )
    return Symbol("input", size=Size(INPUT), name="x"), [
        ParameterGroup(each) for each in names[len(expected) :]
    ]


def _run(function: Callable[..., Any], arguments: list[Any]) -> tuple[Any, dict[str, Symbol]]:
    """The function's result, and its local variables at the end: they name the equations."""
    captured: dict[str, Any] = {}

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "return" and frame.f_code is function.__code__:
            captured.update(frame.f_locals)

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        returned = function(*arguments)
    except (TypeError, AttributeError) as error:
        raise CellError(f"{_place_of(error, function)}: {_what_went_wrong(error)}") from error
    finally:
        # cProfile's own object is no function to set; it puts itself back.
        put_back = getattr(previous, "enable", None)
        put_back() if put_back else sys.setprofile(previous)
    return returned, {key: each for key, each in captured.items() if isinstance(each, Symbol)}


def _what_went_wrong(error: TypeError | AttributeError) -> str:
    if isinstance(error, AttributeError) and isinstance(error.obj, Symbol):
        return (
            f"a value of the cell has no attribute {error.name!r}; equations are written with "
            f"cellwright's functions, as in tanh(v)"
        )
    return str(error)


def _place_of(error: BaseException, function: Callable[..., Any]) -> str:
    line, trace = function.__code__.co_firstlineno, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is function.__code__:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{function.__code__.co_filename}:{line}"


def _check_states(returned: NextState, states: tuple[StateSpec, ...], name: str) -> None:
    expected = {each.name: each.size for each in states}
    for key in returned.states:
        if key not in expected:
            fail(
                f"cell {name} returns a state {key!r} that it was not given; "
                f"its states are {', '.join(expected)}",
                returned.line,
            )
    for key, size in expected.items():
        if key not in returned.states:
            fail(f"cell {name} does not return its state {key!r}", returned.line)
        value = returned.states[key]
        if value.boolean or value.size.is_one:
            fail(f"state {key!r} becomes a single number or a comparison, not a vector", value.line)
        if not value.size.join(Size(size)):
            fail(
                f"state {key!r} has size {size} and becomes a vector of size {value.size}",
                value.line,
            )
    for key in returned.watch:
        if key in expected:
            fail(f"watch names {key!r}, which is a state; states are traced anyway", returned.line)


def _checked(group: ParameterGroup, place: str) -> list[Parameter]:
    try:
        return used_parameters(group)
    except CellError as error:
        message = str(error).partition(": ")[2]
        raise CellError(f"{place}: {message}") from None


def _check_reached(parameters: list[Parameter], roots: list[Node]) -> None:
    reached = {str(n.attribute("name")) for n in topological(roots) if n.op == "parameter"}
    for each in parameters:
        if each.name not in reached:
            fail(f"parameter {each.name} has no effect on any state or watched value", each.line)
