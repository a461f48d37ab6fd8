"""Finds where a number first stopped being finite: the layer, the step, the gate, the parameter.

Training looks at two numbers a step, the loss and the norm of the gradient. Only when one of them
is infinite or NaN is the step run once more, slowly: recurrent layers step by step, with every
state and watched value in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cellwright.engines import Call, Result, run
from cellwright.ir import topological
from cellwright.lang import CellSpec
from cellwright.nn.stack import RecurrentStack


@dataclass(frozen=True)
class Report:
    """Where a value first stopped being finite.

    Attributes:
        part: "input", "parameters", "forward", "loss", "backward", or "" if all is finite.
        module: name of the module in the model; "" where none can be named.
        layer, direction: within a recurrent module; direction 1 runs from the end.
        step: the first step of the forward pass, or the last of the backward pass's (it begins
            at the end); None outside of recurrent modules.
        sequences: which of the batch.
        values: what is not finite there, in the order of the equations; states of a "backward"
            report are those after the step, "output" is what the layer above sends back.
        found: "nan" or "inf", of the first of them.
        parameters: those that are not finite, or whose gradients are not.
    """

    part: str = ""
    module: str = ""
    layer: int | None = None
    direction: int = 0
    step: int | None = None
    sequences: tuple[int, ...] = ()
    values: tuple[str, ...] = ()
    found: str = ""
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(self.parameters)
        if not self.part:
            return "every value and every gradient is finite"
        if self.part == "input":
            return f"the input is {self.found} in sequence {_listed(self.sequences)}"
        if self.part == "parameters":
            return f"before the step, {self.found} is in the parameters {named}"
        if self.part == "loss":
            return f"all outputs are finite, and the loss is {self.found}"
        place = self.module or "the model"
        if self.layer is not None:
            turned = ", from the end" if self.direction else ""
            place += f", layer {self.layer}{turned}"
        if self.part == "forward":
            if self.step is None:
                return f"the output of {place} is the first that is {self.found}"
            return (
                f"in {place}, at step {self.step} of sequence {_listed(self.sequences)}, "
                f"{self.values[0]} is the first that is {self.found}"
            )
        begun = f"the gradients of the parameters {named} are not finite"
        if self.step is None:
            return f"{begun}; those of all states are"
        return (
            f"going back through {place}, the gradient of {self.values[0]} is {self.found} at step "
            f"{self.step} of sequence {_listed(self.sequences)}, the first where it is; {begun}"
        )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown}, ... ({len(numbers)} in all)" if len(numbers) > 5 else shown


@dataclass
class _Event:
    """Values that were computed at one time, by name in the order of the equations."""

    module: str
    values: dict[str, Tensor]
    layer: int | None = None
    direction: int = 0
    step: int | None = None
    states: dict[str, Tensor] = field(default_factory=dict)  # what gradients are looked for in


def find_nonfinite(
    model: nn.Module,
    *inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    call: Callable[..., Any] | None = None,
) -> Report:
    """Run a model again, slowly, and tell where a value first stopped being finite.

    Gradients that the parameters have are left as they are. What a model draws in training, such
    as dropout, is drawn anew.

    Args:
        model: with recurrent layers of cellwright in it, or without.
        inputs: what it is called with.
        loss: of the model's output; None to look at the forward pass alone.
        call: how the model is called, if otherwise than ``model(*inputs)``.

    Example:
        >>> import torch, cellwright as cw
        >>> layer = cw.nn.Recurrent("lstm", 1, 2)
        >>> x = torch.ones(9, 1, 1)
        >>> with torch.no_grad():
        ...     _ = layer.parameter("b.g")[0].fill_(torch.inf)
        >>> print(find_nonfinite(layer, x))
        before the step, inf is in the parameters b_l0
    """
    parameters = dict(model.named_parameters())
    broken = tuple(name for name, each in parameters.items() if _bad(each))
    if broken:
        return Report("parameters", found=_kind(parameters[broken[0]]), parameters=broken)
    for each in tree_leaves(inputs):
        if _bad(each):
            sequences = _sequences(each, 1) if each.dim() > 2 else ()
            return Report("input", found=_kind(each), sequences=sequences)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), _watched(model) as events:
        output = (call or model)(*inputs)
        report = _forward(events)
        if report is not None or loss is None:
            return report or Report()
        total = loss(output)
        if _bad(total):
            return Report("loss", found=_kind(total))
        with _own_gradients(list(parameters.values())):
            total.backward()
            broken = tuple(name for name, p in parameters.items() if _bad(p.grad))
            return _backward(events, broken) if broken else Report()


@contextmanager
def _own_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside the block parameters have no gradients, after it those that they had."""
    before = [each.grad for each in parameters]
    for each in parameters:
        each.grad = None
    try:
        yield
    finally:
        for each, gradient in zip(parameters, before, strict=True):
            each.grad = gradient


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[_Event]]:
    """Gather what every module computes, recurrent ones step by step."""
    events: list[_Event] = []
    handles = []
    watched: list[RecurrentStack] = []
    for name, module in model.named_modules():
        if isinstance(module, RecurrentStack):
            module.__dict__["recur"] = _stepwise(module, name, events)
            module.__dict__["stacking"] = lambda *_: None  # one layer after the other
            module.__dict__["quick_sequence"] = lambda *_: None  # and each by `recur`
            watched.append(module)
        elif not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(_noting(name, events)))
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()
        for module in watched:
            for name in ("recur", "stacking", "quick_sequence"):
                del module.__dict__[name]


def _noting(name: str, events: list[_Event]) -> Callable[..., None]:
    def note(module: nn.Module, given: Any, output: Any) -> None:
        tensors = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        events.append(_Event(name, {f"output {i}": each for i, each in enumerate(tensors)}))

    return note


def _stepwise(
    module: RecurrentStack, name: str, events: list[_Event]
) -> Callable[[Sequence[Call], int], list[Result]]:
    """A layer's `recur` that runs one step after another, noting all that can be traced."""

    def one_direction(call: Call, layer: int, direction: int) -> Result:
        asked = call.signature.options
        signature = module.signature(layer, lengths=asked.lengths, reset=asked.reset, trace=True)
        names = list(signature.plan.forward.trace)
        kinds = signature.plan.graph.streams
        states, outputs, traces = list(call.states), {}, {}
        for t in call.steps:
            streams = [
                each[t : t + 1] if kind.per_step else each
                for kind, each in zip(kinds, call.streams, strict=True)
            ]
            one = replace(
                call, signature=signature, x=call.x[t : t + 1], states=states, streams=streams
            )
            result = run(one)
            states, outputs[t], traces[t] = list(result.states), result.output, result.trace
            traced = dict(zip(names, (each[0] for each in result.trace), strict=True))
            after = dict(zip([s.name for s in module.cell.states], states, strict=True))
            event = _Event(name, _ordered(module.cell, traced | after), layer, direction, t)
            event.states = {"output": result.output, **after}
            for each in (result.output, *states):
                if each.requires_grad:
                    each.retain_grad()
            events.append(event)
        order = range(len(outputs))
        traced_all = [torch.cat([traces[t][i] for t in order]) for i in range(len(names))]
        return Result(
            torch.cat([outputs[t] for t in order]), states, traced_all if asked.trace else [], []
        )

    def recur(calls: Sequence[Call], layer: int) -> list[Result]:
        return [one_direction(call, layer, direction) for direction, call in enumerate(calls)]

    return recur


def _ordered(cell: CellSpec, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values in the order in which the cell's equations compute them."""
    place = {node: index for index, node in enumerate(topological(cell.next.values()))}
    node = {**cell.watch, **cell.next}
    return dict(sorted(values.items(), key=lambda pair: place.get(node[pair[0]], len(place))))


def _forward(events: list[_Event]) -> Report | None:
    for event in events:
        names = tuple(name for name, value in event.values.items() if _bad(value))
        if names:
            value = event.values[names[0]]
            found = Report("forward", event.module, values=names, found=_kind(value))
            if event.step is None:
                return found
            return replace(
                found, layer=event.layer, direction=event.direction, step=event.step,
                sequences=_sequences(value, 0),
            )  # fmt: skip
    return None


def _backward(events: list[_Event], parameters: tuple[str, ...]) -> Report:
    for event in reversed(events):
        names = tuple(name for name, value in event.states.items() if _bad(value.grad))
        if names:
            gradient = event.states[names[0]].grad
            assert gradient is not None
            return Report(
                "backward", event.module, event.layer, event.direction, event.step,
                _sequences(gradient, 1 if names[0] == "output" else 0), names, _kind(gradient),
                parameters,
            )  # fmt: skip
    return Report("backward", parameters=parameters)


def _bad(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return not bool(torch.isfinite(value).all())


def _kind(value: Tensor) -> str:
    return "nan" if bool(value.isnan().any()) else "inf"


def _sequences(value: Tensor, axis: int) -> tuple[int, ...]:
    """Which entries along an axis are not finite."""
    broken = ~torch.isfinite(value.detach()).movedim(axis, 0).flatten(1).all(1)
    return tuple(broken.nonzero()[:, 0].tolist())
