"""A controller and the cart that it drives as one recurrent cell.

A whole evaluation, from the first observation to the last step, is then one call of a compiled
recurrence: of a population with weights of their own, or of many starts with the same weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cellwright.errors import UsageError
from cellwright.lang import CellSpec, cell, next_state, tanh, where
from cellwright.tasks.poles.motion import OBSERVED, VALUES, Cart, State, observe, sway

PLANT = "plant"
"""Name of the size of the cart's numbers, which is 1."""


class _Sensed:
    """A matrix on the observations: a column, a matrix of its own, for each."""

    def __init__(self, columns: Sequence[Any]):
        self._columns = columns

    def __matmul__(self, observed: Sequence[Any]) -> Any:
        first, *others = (c @ o for c, o in zip(self._columns, observed, strict=True))
        for each in others:
            first = first + each
        return first


class _SensedGroup(_Sensed):
    """A group of parameters of which some multiply the observations."""

    def __init__(self, own: Any, columns: Sequence[Any], reading: set[str | None]):
        super().__init__(columns)
        self._own, self._reading = own, reading

    def __getattr__(self, member: str) -> Any:
        if member in self._reading:
            return _Sensed([getattr(each, member) for each in self._columns])
        return getattr(self._own, member)


class _Group:
    """A group of a controller's parameters, and the groups that stand for it in the loop."""

    def __init__(self, name: str, controller: CellSpec):
        mine = [each for each in controller.parameters if each.group == name]
        self.reading = {each.member for each in mine if each.reads_input}
        self.columns = [f"{name}_{sense}" for sense in OBSERVED] if self.reading else []
        self.own = [name] if len(self.reading) < len(mine) else []

    def given(self, groups: Mapping[str, Any]) -> Any:
        """What the controller's equations get in its place."""
        own = groups[self.own[0]] if self.own else None
        if not self.reading:
            return own
        return _SensedGroup(own, [groups[each] for each in self.columns], self.reading)


def closed_loop(controller: CellSpec, cart: Cart) -> CellSpec:
    """A cell whose state is the controller's and the cart's.

    The controller sees what `observe` says; the action is tanh(K @ h), h being the controller's
    first state. The cell's own input is not used. Its first state, and so a layer's output, is
    `sway` after each step, and infinity from the step on in which the cart leaves the track or a
    pole falls.

    Raises:
        UsageError: the controller reads no input, or has a name that the cart needs.
    """
    equations = controller.function
    if equations is None or not any(each.reads_input for each in controller.parameters):
        raise UsageError(f"--cell: {controller.name} has no equations that read an input")
    states = {each.name: each.size for each in controller.states}
    names = list(inspect.signature(equations).parameters)[1 + len(states) :]
    groups = [_Group(name, controller) for name in names]
    plant = ("sway", *State._fields)
    clash = sorted({*states, *names} & {*plant, "K"})
    if clash:
        raise UsageError(f"--cell: {controller.name} has a name that the cart needs: {clash[0]}")
    arguments = [*plant, *states, "K", *(n for each in groups for n in (*each.columns, *each.own))]

    def loop(x: Any, *values: Any) -> Any:
        given = dict(zip(arguments, values, strict=True))
        before = State(*(given[name] for name in State._fields))
        returned = equations(
            observe(before), *(given[name] for name in states), *(g.given(given) for g in groups)
        )
        action = tanh(given["K"] @ returned.states[controller.output])
        standing = given["sway"] < math.inf
        after = cart.step(before, action, VALUES)
        still = where(cart.tilt(after, VALUES) <= 1, sway(after, VALUES), math.inf)
        following: dict[str, Any] = {"sway": where(standing, still, math.inf)}
        for name, old, new in zip(State._fields, before, after, strict=True):
            following[name] = where(standing, new, old)  # where it fell, it stays
        return next_state(**following, **returned.states)

    loop.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("x", *arguments)]
    )
    sizes = {**dict.fromkeys(plant, PLANT), **states}
    return cell(state=sizes, name=f"{controller.name}_on_a_cart")(loop)
