"""Initialisation schemes for every cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import init

from cellwright.errors import InputError
from cellwright.ir import INPUT, Matrix, topological
from cellwright.lang import CellSpec, ParameterSpec

WHOLE = ("default", "orthogonal", "uniform")  # they fill every parameter
SCHEMES = (*WHOLE, "chrono", "forget_bias", "bias.GATE")
_BIAS = "bias."


def parse(scheme: str) -> list[tuple[str, float | None]]:
    """``"orthogonal+chrono:784"`` as pairs of name and number.

    The first is a scheme that fills every parameter: "default" where none is named.
    """
    if not isinstance(scheme, str):
        raise InputError(f"init: expected a string such as 'orthogonal', got {scheme!r}")
    steps: list[tuple[str, float | None]] = []
    for part in scheme.split("+"):
        name, colon, number = part.strip().partition(":")
        of_gate = name.startswith(_BIAS) and name != _BIAS
        if name not in SCHEMES[:-1] and not of_gate:
            raise InputError(f"init: {name!r} is not a scheme; there are {', '.join(SCHEMES)}")
        try:
            value = float(number) if colon else None
        except ValueError:
            raise InputError(f"init: {part!r} should end with a number") from None
        if value is not None and name in ("default", "orthogonal"):
            raise InputError(f"init: {name} takes no number, got {part!r}")
        if value is None and of_gate:
            raise InputError(f"init: {part!r} should end with a number, as in '{name}:-2'")
        if value is not None and not math.isfinite(value):
            raise InputError(f"init: {part!r} should end with a finite number")
        if name == "chrono" and (value is None or value < 2):
            raise InputError(
                "init: chrono needs the longest dependency in steps, at least 2, "
                f"as in 'chrono:784'; got {part!r}"
            )
        if name == "uniform" and (value is None or value <= 0):
            raise InputError(
                f"init: uniform needs a bound above 0, as in 'uniform:0.1'; got {part!r}"
            )
        steps.append((name, value))
    return steps if steps[0][0] in WHOLE else [("default", None), *steps]


def added_parameters(spec: CellSpec) -> set[str]:
    """Vector parameters that are only ever added to something: biases."""
    found: set[str] = set()
    other: set[str] = set()
    for each in topological([*spec.next.values(), *spec.watch.values()]):
        for source in each.inputs:
            if source.op == "parameter" and not isinstance(source.type, Matrix):
                (found if each.op == "add" else other).add(str(source.attribute("name")))
    return found - other


def biases(spec: CellSpec, member: str | None) -> set[str]:
    """The biases of the gate that ``member`` names, as "o" for ``b.o``."""
    added = added_parameters(spec) if member is not None else set()
    return {name for name in added if name.rpartition(".")[2] == member}


@torch.no_grad()
def initialise(
    spec: CellSpec,
    scheme: str,
    members: Sequence[tuple[ParameterSpec, Tensor]],
    fan: int,
) -> None:
    """Fill the parameters of one layer.

    Args:
        spec: the cell.
        scheme: ``"default"`` is torch.nn's: uniform in +-1/sqrt(fan). ``"orthogonal"``:
            recurrent matrices orthogonal (Saxe et al. 2014), input matrices Glorot uniform,
            biases zero. ``"uniform:A"``: uniform in +-A. ``"forget_bias:1"``: the forget gate's
            bias (Jozefowicz et al. 2015). ``"bias.o:-2"``: the bias of any gate, by the name it
            has in the equations. ``"chrono:T"``: forget bias log(uniform(1, T - 1)), the input
            gate's its negative (Tallec & Ollivier 2018). Joined by ``+``, applied in order; the
            last three alone come after the default.
        members: each parameter with the tensor (or view) that holds it.
        fan: hidden units, times the positions of a kernel in a convolution.

    A parameter with a constant initial value in its cell has that value under every scheme.
    """
    for name, value in parse(scheme):
        if name.startswith(_BIAS):
            _gate_bias(spec, members, name.removeprefix(_BIAS), value)
            continue
        if name in ("chrono", "forget_bias"):
            _gate_biases(spec, members, name, value)
            continue
        bound = 1.0 / math.sqrt(fan) if value is None else value
        fill = _orthogonal if name == "orthogonal" else _uniform(bound)
        for parameter, tensor in members:
            if parameter.initial is None:
                fill(parameter, tensor)
            else:
                tensor.fill_(parameter.initial)


def _uniform(bound: float) -> Callable[[ParameterSpec, Tensor], None]:
    def fill(parameter: ParameterSpec, tensor: Tensor) -> None:
        tensor.uniform_(-bound, bound)

    return fill


def _orthogonal(parameter: ParameterSpec, tensor: Tensor) -> None:
    kind = parameter.type
    if not isinstance(kind, Matrix):
        tensor.zero_()
    elif kind.columns == INPUT:
        init.xavier_uniform_(tensor) if tensor.numel() else None
    else:
        for block in tensor.chunk(kind.blocks):
            init.orthogonal_(block)


def _gate_bias(
    spec: CellSpec,
    members: Sequence[tuple[ParameterSpec, Tensor]],
    gate: str,
    value: float | None,
) -> None:
    constant = {each.name for each in spec.parameters if each.initial is not None}
    chosen = biases(spec, gate) - constant
    if not chosen:
        free = added_parameters(spec) - constant
        known = sorted({name.rpartition(".")[2] for name in free})
        there = f"biases of {', '.join(known)}" if known else "no biases"
        raise InputError(f"init: cell {spec.name} has no bias of a gate {gate!r}; it has {there}")
    for parameter, tensor in members:
        if parameter.name in chosen and value is not None:
            tensor.fill_(value)


def _gate_biases(
    spec: CellSpec, members: Sequence[tuple[ParameterSpec, Tensor]], name: str, value: float | None
) -> None:
    forget, admit = biases(spec, spec.forget_gate), biases(spec, spec.input_gate)
    if not forget:
        raise InputError(
            f"init: {name} needs a bias of the gate that keeps the old state; cell {spec.name} "
            f"names none (see forget_gate= of @cell)"
        )
    drawn: Tensor | None = None
    for parameter, tensor in members:
        if parameter.name in forget:
            if name == "forget_bias":
                tensor.fill_(1.0 if value is None else value)
            else:
                tensor.uniform_(1.0, max(float(value or 2.0) - 1.0, 1.0)).log_()
                drawn = tensor
    for parameter, tensor in members:
        if name == "chrono" and parameter.name in admit and drawn is not None:
            tensor.copy_(-drawn)
