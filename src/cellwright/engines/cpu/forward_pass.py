"""The forward pass of the CPU engine, span by span."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cellwright.engines.cpu import once
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.slots import Packed, Slots
from cellwright.engines.cpu.spans import Span, spans
from cellwright.engines.cpu.turns import Turns
from cellwright.engines.keeping import checkpoints, spacing
from cellwright.engines.protocol import Result
from cellwright.ir import Node


def place_once(slots: Slots) -> dict[str, Tensor]:
    """Compute the values of parameters alone, by torch, and put them where programs read them."""
    signature = slots.kernels.signature
    graph = signature.plan.forward.once
    if not graph:
        return {}
    found = [once.values(signature, weights) for weights in slots.by_member(slots.weights)]
    placed = {}
    for number, (name, node) in enumerate(graph.items()):
        value = slots.joined([each[number] for each in found], (slots.sizes[node.size],))
        placed[name] = slots.put(f"value.{name}", value)
    return placed


class ForwardPrograms:
    """Inputs for all steps of a span at once, then the loop.

    Args:
        slots: of the call.
        keep: whether the loop yields what the backward pass reads.
        rows: that the loop will see at a step.
        place: name of the working memory for weights.
        start: how the programs are started.
    """

    def __init__(
        self, slots: Slots, *, keep: bool, rows: int, place: str, start: Callable[..., None]
    ):
        fuse = slots.kernels.fuses(rows, slots.team)
        programs, inputs, loop = slots.kernels.forward(keep, fuse)
        self.width = 0 if inputs is None else programs.width
        self._slots, self._start = slots, start
        self._inputs = None if inputs is None else Packed(inputs, slots.weights, f"{place}.inputs")
        self._loop = Packed(loop, slots.weights, f"{place}.loop")

    def run(self, at: dict[str, int], steps: int, rows: int, *, ring: bool = False) -> None:
        """Run them on the arrays at these addresses."""
        if self._inputs is not None:
            at["inputs"] = self._slots.work("inputs", steps * rows * self.width).data_ptr()
            self._start(self._inputs, at, 1, steps * rows)
        self._start(self._loop, at, steps, rows, ring=ring)


class ForwardPass:
    """Runs the forward plan; ``save`` says what of the kept values stays in memory.

    Args:
        slots: of the call.
        keep: what the backward pass reads.

    Attributes:
        output: of the call, of every step.
        rings: the last two steps of each state that is not the output, by slot, if nothing is kept.
        row_bytes: working memory of one sequence's step; the spans follow from it.
    """

    def __init__(self, slots: Slots, *, keep: bool):
        self.slots, self.keep = slots, keep
        plan = slots.plan.forward
        place_once(slots)
        self._programs = ForwardPrograms(
            slots, keep=keep, rows=slots.rows, place="weights", start=slots.start_by_step
        )
        self._scratch: dict[str, Node] = {}
        self._stay: dict[str, Tensor] = {}
        self.rings: dict[str, Tensor] = {}
        self.output = slots.fresh("output", plan.output)
        self._trace = [slots.fresh(f"trace.{name}", node) for name, node in plan.trace.items()]
        if keep:
            self._place_kept()
        else:
            self._place_states()
        self.row_bytes = self._programs.width * slots.width + slots.bytes_of(self._scratch.values())

    def _place_kept(self) -> None:
        slots = self.slots
        states, saved = slots.kernels.states, slots.kernels.saved
        if slots.save == "gates":
            self._stay = slots.fresh_together(states | saved)
        elif slots.save == "states":
            self._stay, self._scratch = slots.fresh_together(states), saved
        else:
            self._scratch, self._every = states | saved, spacing(slots.steps)
            for slot, node in states.items():
                shape = (checkpoints(slots.steps), slots.rows, slots.sizes[node.size])
                self._stay[slot] = empty(shape, slots.dtype)
            for slot, state in zip(states, slots.call.states, strict=True):
                self._stay[slot][0] = state

    def _place_states(self) -> None:
        """One state may be the output; of the others the last two steps are enough."""
        slots, plan = self.slots, self.slots.plan.forward
        for number, (slot, node) in enumerate(slots.kernels.states.items()):
            if number == 0 and node is plan.output:
                self._stay[slot] = self.output
            else:
                self.rings[slot] = slots.pair(slot, slots.sizes[node.size])

    def spans(self) -> list[Span]:
        """Which steps are computed together."""
        return spans(self.slots.steps, self.slots.rows, self.row_bytes)

    def turns(self) -> Turns[Result]:
        """All spans, each from the states that the one before has left."""
        slots = self.slots
        parts = self.spans()
        slots.repeat_masks(parts[0].stop)
        after: list[Tensor] = []
        for span in parts:
            for name, state in zip(slots.names, after, strict=False):
                slots.put(f"initial.{name}", state)
            inside = self._start(span)
            yield
            after = self._states_after(span, inside)
        return Result(self.output, after, self._trace, [*self._stay.values()] if self.keep else [])

    def _start(self, span: Span) -> dict[str, Tensor]:
        """Start the programs of a span; returns what they leave in working memory."""
        slots = self.slots
        count = slots.enter(span)
        inside = {
            slot: slots.work_rows(slot, node, count * slots.rows).view(count, slots.rows, -1)
            for slot, node in self._scratch.items()
        }
        self._programs.run(slots.at, count, slots.rows, ring=not self.keep)
        return inside

    def _states_after(self, span: Span, inside: dict[str, Tensor]) -> list[Tensor]:
        slots = self.slots
        if self.keep and slots.save == "checkpoints":
            self._keep_checkpoints(span, inside)
        last = 0 if slots.reverse else span.stop - span.first - 1
        after = []
        for slot in slots.kernels.states:
            if slot in self.rings:
                state = self.rings[slot].select(-3, last & 1)
            elif slot in inside:
                state = inside[slot][last]
            else:
                state = self._stay[slot].select(-3, slots.start_of(span) + last)
            after.append(slots.copied(state))
        return after

    def _keep_checkpoints(self, span: Span, inside: dict[str, Tensor]) -> None:
        """Copy the states that are checkpoints inside or at the end of a span."""
        count = span.stop - span.first
        for number in range(span.first // self._every + 1, checkpoints(self.slots.steps)):
            # steps, when the checkpoint is reached
            done = min(number * self._every, self.slots.steps)
            if done > span.stop:
                return
            position = done - span.first - 1
            step = count - 1 - position if self.slots.reverse else position
            for slot in self.slots.kernels.states:
                self._stay[slot][number] = inside[slot][step]
