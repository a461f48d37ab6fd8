"""Populations on the CPU engine: one call with weights of their own for every member."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import threads
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.members import Script
from cellwright.engines.cpu.scripted import Members
from cellwright.engines.cpu.slots import Slots
from cellwright.engines.cpu.turns import complete
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result


def forward(call: Call, *, keep: bool) -> Result:
    """Run the forward programs of every member."""
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
