"""The arguments of a layer's constructor, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cellwright import cells
from cellwright.errors import InputError
from cellwright.lang import CellSpec
from cellwright.plan import GRADIENTS, SAVES


def read_cell(given: Any) -> CellSpec:
    """A cell, by itself or by its name in the catalogue, that a layer can be made of."""
    cell = cells.get(given) if isinstance(given, str) else given
    if not isinstance(cell, CellSpec):
        raise InputError(
            f"cell: expected a cell (see @cellwright.cell) or the name of one, "
            f"got {type(given).__name__}"
        )
    if not cell.parameters:
        raise InputError(
            f"cell: {cell.name} has no parameters, so it cannot read x; a layer needs at least "
            f"one matrix, as in W @ x"
        )
    return cell


def read_sizes(given: Any) -> dict[str, int]:
    """Numbers for a cell's sizes by name; :meth:`CellSpec.resolve_sizes` checks each."""
    if given is not None and not isinstance(given, Mapping):
        raise InputError(
            f"sizes: expected a dict of names and numbers, as {{'projection': 32}}, got {given!r}"
        )
    return dict(given or {})


def check_count(name: str, number: Any, *, least: int) -> None:
    """Raise :class:`InputError` unless ``number`` is whole and at least ``least``."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"{name}: expected a whole number, got {number!r}")
    if number < least:
        raise InputError(f"{name}: expected at least {least}, got {number}")


def read_rate(name: str, rate: Any, *, most: float | None = None) -> float:
    """A probability below 1, or ``most`` itself."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise InputError(f"{name}: expected a probability, got {rate!r}")
    if not (0 <= rate < 1 or rate == most):
        raise InputError(f"{name}: expected a probability in [0, 1), got {rate!r}")
    return float(rate)


def read_choice(name: str, given: Any, choices: Sequence[str]) -> str:
    """One of ``choices``."""
    if given not in choices:
        named = [repr(each) for each in choices]
        raise InputError(f"{name}: expected {', '.join(named[:-1])} or {named[-1]}, got {given!r}")
    return str(given)


def read_limit(grad_clip: Any) -> float | None:
    """The limit of a gradient, or None."""
    if grad_clip is None:
        return None
    number = isinstance(grad_clip, (int, float)) and not isinstance(grad_clip, bool)
    if not (number and grad_clip > 0):
        raise InputError(f"grad_clip: expected a positive limit or None, got {grad_clip!r}")
    return float(grad_clip)


def read_zoneout(given: Any, spec: CellSpec) -> tuple[tuple[str, float], ...]:
    """(state, rate) for every state with a rate above 0."""
    names = [state.name for state in spec.states]
    if isinstance(given, tuple):
        given = dict(given)  # as this function returns it
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise InputError(
                    f"zoneout: cell {spec.name} has no state {name!r}; it has {', '.join(names)}"
                )
        rates = dict(given)
    else:
        rates = {name: given for name in names}
    checked = {name: read_rate("zoneout", rate) for name, rate in rates.items()}
    return tuple((name, checked[name]) for name in names if checked.get(name))


OPTIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "dropout": lambda layer, given: read_rate("dropout", given, most=1.0),
    "recurrent_dropout": lambda layer, given: read_rate("recurrent_dropout", given),
    "zoneout": lambda layer, given: read_zoneout(given, layer.cell),
    "grad_clip": lambda layer, given: read_limit(given),
    "gradient": lambda layer, given: read_choice("gradient", given, GRADIENTS),
    "precision": lambda layer, given: read_choice("precision", given, ("fp32", "bf16")),
    "save": lambda layer, given: read_choice("save", given, SAVES),
}
"""Options that may be set again, and how each is read."""

FIXED = frozenset({
    "cell", "input_size", "hidden_size", "num_layers", "bidirectional", "layer_norm", "heads",
    "learn_initial_state", "sizes", "proj_size",
})  # fmt: skip
"""What a layer's parameters follow from, so that it stays as it is."""
