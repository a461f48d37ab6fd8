"""Populations on the CPU engine: one call with weights of their own for every member."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import repeated, threads
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.members import Placed, Script, within
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.scripted import Members
from cellwright.engines.cpu.slots import Slots
from cellwright.engines.cpu.turns import complete
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result


def forward(call: Call, *, keep: bool) -> Result:
    """Run the forward programs of every member."""
    run = None if keep else repeated.ready_members(call, _ready)
    if run is not None:
        return run(call)
    if not _go_one_by_one(call):
        script = Script(call.population or 0)
        return complete(ForwardPass(Members(call, script), keep=keep).turns(), script.run)
    found = [complete(ForwardPass(Slots(each), keep=keep).turns()) for each in call.members()]
    return Result(
        torch.stack([each.output for each in found]),
        _stacked(each.states for each in found),
        _stacked(each.trace for each in found),
        _stacked(each.kept for each in found),
    )


def _ready(call: Call) -> repeated.Run | None:
    """A way to run calls like this one with a script that stays; None where there is none."""
    plan = call.signature.plan
    if plan.graph.streams or plan.forward.once or plan.forward.trace:
        return None
    if not call.population or _go_one_by_one(call):
        return None
    if any(within(each) is not each for each in _tensors(call)):
        return None
    script = Script(call.population)
    forward = ForwardPass(Members(call, script), keep=False)
    if len(forward.spans()) > 1:
        return None
    next(forward.turns())
    return None if script.work > repeated.MOST else _Repeated(call, forward, script.placed()).run


def _tensors(call: Call) -> list[Tensor]:
    return [call.x, *call.states, *call.weights]


class _Repeated:
    """The forward pass of populations like one.

    Args:
        call: of that one.
        forward: its pass.
        placed: the script that this has written.
    """

    def __init__(self, call: Call, forward: ForwardPass, placed: Placed):
        # What is read and written again; the tensors of that call are not kept.
        self._values, self._held = placed.values, (placed.held, forward.slots.kernels)
        self._start, self._last = threads.Prepared(placed.launch), call.steps[-1]
        self._shape, self._dtype = forward.output.shape, forward.output.dtype
        number = {id(each): k for k, each in enumerate([*_tensors(call), forward.output])}
        self._moving = [
            (place, number[id(each)], placed.values[place] - each.data_ptr())
            for place, each in placed.inside
            if id(each) in number
        ]
        self._left = [
            forward.rings[slot].select(-3, self._last & 1) if slot in forward.rings else None
            for slot in forward.slots.kernels.states
        ]

    def run(self, call: Call) -> Result:
        """A population's results; its tensors lie like those of the first."""
        output, values = empty(self._shape, self._dtype), self._values
        bases = [*map(Tensor.data_ptr, _tensors(call)), output.data_ptr()]
        for place, which, skipped in self._moving:
            values[place] = bases[which] + skipped
        self._start.run()
        left = [output.select(-3, self._last) if each is None else each for each in self._left]
        return Result(output, [each.clone() for each in left], [], [])


def backward(
    call: Call, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool, need_weights: bool
) -> Gradients:
    """Run the backward programs of every member."""
    needs = {"need_x": need_x, "need_weights": need_weights}
    if not _go_one_by_one(call):
        script = Script(call.population or 0)
        slots = Members(call, script)
        return complete(BackwardPass(slots, kept, cotangents, **needs).turns(), script.run)

    def members() -> Iterator[Gradients]:
        for number, each in enumerate(call.members()):
            own, arriving = [value[number] for value in kept], cotangents.of_member(number)
            yield complete(BackwardPass(Slots(each), own, arriving, **needs).turns())

    found = [*members()]
    every_x = [each.x for each in found if each.x is not None]
    return Gradients(
        torch.stack(every_x) if every_x else None,
        _stacked(each.states for each in found),
        _stacked(each.weights for each in found),
    )


def _go_one_by_one(call: Call) -> bool:
    """Whether members run one after the other, each on all threads.

    They do where they are few, and where they save less than all gates.
    """
    assert call.population is not None
    few = call.population < threads.count()
    return call.population > 0 and (few or call.signature.options.save != "gates")


def _stacked(results: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The members' results, each as one tensor."""
    return [torch.stack(each) for each in zip(*results, strict=True)]
