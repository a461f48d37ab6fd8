"""The forward pass of the CPU engine, span by span."""

from __future__ import annotations

from torch import Tensor

from cellwright.engines.cpu.call import BoundCall, Packed
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.spans import Span, spans
from cellwright.engines.keeping import checkpoints, spacing
from cellwright.engines.protocol import Call, Result
from cellwright.ir import Node


class ForwardPrograms:
    """Inputs for all steps of a span at once, then the loop.

    Args:
        bound: the call.
        keep: whether the loop yields what the backward pass reads.
        rows: that the loop will see at a step.
        place: name of the working memory for weights.
    """

    def __init__(self, bound: BoundCall, *, keep: bool, rows: int, place: str):
        # Not the call itself, which holds this: memory would wait for Python's garbage collector.
        self._dtype, self._reverse = bound.dtype, bound.reverse
        fuse = bound.kernels.fuses(rows)
        programs, inputs, loop = bound.kernels.forward(keep, fuse)
        self.width = 0 if inputs is None else programs.width
        self._inputs = None if inputs is None else Packed(inputs, bound.weights, f"{place}.inputs")
        self._loop = Packed(loop, bound.weights, f"{place}.loop")

    def run(self, at: dict[str, int], steps: int, rows: int, *, ring: bool = False) -> None:
        """Run them on the arrays at these addresses."""
        if self._inputs is not None:
            inputs = memory.take("inputs", steps * rows * self.width, self._dtype)
            at["inputs"] = inputs.data_ptr()
            self._inputs.run(at, 1, steps * rows)
        self._loop.run(at, steps, rows, reverse=self._reverse, ring=ring)


class ForwardPass(BoundCall):
    """Runs the forward plan; ``save`` says what of the kept values stays in memory."""

    def __init__(self, call: Call, *, keep: bool):
        super().__init__(call)
        plan = self.plan.forward
        self.keep = keep
        self._programs = ForwardPrograms(self, keep=keep, rows=self.rows, place="weights")
        self._scratch: dict[str, Node] = {}
        self._stay: dict[str, Tensor] = {}
        self._rings: dict[str, Tensor] = {}
        self._output = self.fresh("output", plan.output)
        self._trace = [self.fresh(f"trace.{name}", node) for name, node in plan.trace.items()]
        if keep:
            self._place_kept()
        else:
            self._place_states()

    def _place_kept(self) -> None:
        plan = self.plan.forward
        states = {f"state.{name}": plan.next[name] for name in self.names}
        saved = {**plan.saved, **plan.saved_inputs}
        stay = {"gates": {**states, **saved}, "states": states, "checkpoints": {}}[self.save]
        self._stay = {slot: self.kept(slot, node) for slot, node in stay.items()}
        self._scratch = {s: n for s, n in (states | saved).items() if s not in stay}
        if self.save == "checkpoints":
            self._every = spacing(self.steps)
            for slot, node in states.items():
                shape = (checkpoints(self.steps), self.rows, self.sizes[node.size])
                self._stay[slot] = empty(shape, self.dtype)
            for slot, state in zip(states, self.call.states, strict=True):
                self._stay[slot][0] = state

    def _place_states(self) -> None:
        """One state may be the output; of the others the last two steps are enough."""
        plan, first = self.plan.forward, self.names[0]
        for each in self.plan.graph.states:
            slot, elements = f"state.{each.name}", self.rows * self.sizes[each.size]
            if each.name == first and plan.next[first] is plan.output:
                self._stay[slot] = self._output
            else:
                ring = self.work(slot, 2 * elements)[: 2 * elements]
                self._rings[slot] = ring.view(2, self.rows, -1)

    def run(self) -> Result:
        """All spans, each from the states that the one before has left."""
        row_bytes = self._programs.width * self.width + self.bytes_of(self._scratch.values())
        parts = spans(self.steps, self.rows, row_bytes)
        self.repeat_masks(parts[0].stop)
        after: list[Tensor] = []
        for span in parts:
            for name, state in zip(self.names, after, strict=False):
                self.at[f"initial.{name}"] = state.data_ptr()
            after = self._run_span(span)
        return Result(self._output, after, self._trace, [*self._stay.values()] if self.keep else [])

    def _run_span(self, span: Span) -> list[Tensor]:
        """The states after a span."""
        count = self.enter(span)
        inside = {
            slot: self.work_rows(slot, node, count * self.rows).view(count, self.rows, -1)
            for slot, node in self._scratch.items()
        }
        self._programs.run(self.at, count, self.rows, ring=not self.keep)
        if self.keep and self.save == "checkpoints":
            self._keep_checkpoints(span, inside)
        last = 0 if self.reverse else count - 1
        after = []
        for slot in (f"state.{name}" for name in self.names):
            if slot in self._rings:
                after.append(self._rings[slot][last & 1].clone())
            elif slot in inside:
                after.append(inside[slot][last].clone())
            else:
                after.append(self._stay[slot][self.start(span) + last].clone())
        return after

    def _keep_checkpoints(self, span: Span, inside: dict[str, Tensor]) -> None:
        """Copy the states that are checkpoints inside or at the end of a span."""
        count = span.stop - span.first
        for number in range(span.first // self._every + 1, checkpoints(self.steps)):
            done = min(number * self._every, self.steps)  # steps, when the checkpoint is reached
            if done > span.stop:
                return
            position = done - span.first - 1
            step = count - 1 - position if self.reverse else position
            for slot in (f"state.{name}" for name in self.names):
                self._stay[slot][number] = inside[slot][step]
