"""The backward pass of the CPU engine: span by span, from the last to the first.

Every sum over rows and steps runs from the last step to the first and goes on, span after span, in
the memory of its gradient. So its bits do not depend on where spans begin, nor on whether values
were saved or are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import joined
from cellwright.engines.cpu.forward_pass import ForwardPrograms, place_once
from cellwright.engines.cpu.parameters import ParameterGradients
from cellwright.engines.cpu.slots import Packed, Slots
from cellwright.engines.cpu.spans import LEAST_ROWS, Span, spans
from cellwright.engines.cpu.turns import Turns
from cellwright.engines.keeping import spacing
from cellwright.engines.protocol import Cotangents, Gradients


class BackwardPass:
    """Runs the backward plan.

    Args:
        slots: of the call, as it was given to the forward pass.
        kept: what that kept.
        cotangents: gradients of the loss with respect to its results.
        need_x, need_weights: whether the gradients of x and of the weights are asked for.

    Attributes:
        d_x: the gradient of x; None if it is not asked for.
        row_bytes: working memory of one sequence's step; the spans follow from it.
    """

    def __init__(
        self, slots: Slots, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool,
        need_weights: bool,
    ):  # fmt: skip
        self.slots = slots
        once = place_once(slots)
        self.programs, inputs, loop = slots.kernels.backward(
            need_x, slots.kernels.joins(slots.rows)
        )
        self._loop = Packed(loop, slots.weights, "weights.loop")
        self._inputs = None if inputs is None else Packed(inputs, slots.weights, "weights.inputs")
        plan, names = slots.plan.forward, slots.names
        self._states, self._saved = slots.kernels.states, slots.kernels.saved
        stayed = [*self._states, *(self._saved if slots.save == "gates" else ())]
        whole = (each if each.is_contiguous() else slots.whole(each) for each in kept)
        self._kept = dict(zip(stayed, whole, strict=True))
        if slots.save != "checkpoints":
            for slot, value in self._kept.items():
                slots.put_steps(slot, value)
        slots.put_steps("d_output", cotangents.output)
        for name, value in zip(plan.trace, cotangents.trace, strict=True):
            slots.put_steps(f"d_trace.{name}", value)
        self._carried = []
        for name, value in zip(names, cotangents.states, strict=True):
            carry = slots.pair(f"carry.{name}", value.shape[-1])
            slots.copy(carry.select(-3, 0), value)
            self._carried.append(carry)
        if self.programs.totals:
            shape = (*slots.lead, slots.rows, self.programs.totals)
            slots.put(joined.TOTALS, slots.zeros(shape))
        self._parameters = ParameterGradients(slots, once, need_x=need_x) if need_weights else None
        self.d_x: Tensor | None = None
        if need_x:
            self.d_x = slots.put_steps("d_x", slots.empty(slots.call.x.shape))
            if "x" not in slots.plan.backward.inputs.values:
                slots.clear(self.d_x)
        self.row_bytes = self._bytes()

    def turns(self) -> Turns[Gradients]:
        """The gradients that are asked for, after all spans."""
        last = 0  # which of the two is left in what is carried
        for span in reversed(self._spans()):
            if last:
                for carry in self._carried:
                    self.slots.copy(carry.select(-3, 0), carry.select(-3, 1))
            self._start(span)
            if span.first == 0 and self._parameters is not None:
                self._parameters.add_totals()
            yield
            last = (span.stop - span.first) % 2
        d_states = [self.slots.copied(carry.select(-3, last)) for carry in self._carried]
        d_weights = self._parameters.finished() if self._parameters else []
        return Gradients(self.d_x, d_states, d_weights)

    def _bytes(self) -> int:
        slots = self.slots
        units = sum((*self.programs.kept.values(), *self.programs.kept_after.values()))
        found = (self.programs.width + units) * slots.width
        if slots.save == "gates":
            return found
        plan = slots.plan.forward
        rows = LEAST_ROWS if slots.save == "states" else slots.rows
        self._again = ForwardPrograms(
            slots, keep=True, rows=rows, place="weights.again", start=slots.start
        )
        return found + self._again.width * slots.width + slots.bytes_of(
            [*self._states.values(), *self._saved.values(), plan.output, *plan.trace.values()]
        )  # fmt: skip

    def _spans(self) -> list[Span]:
        """Spans by the memory that their steps take; they begin at checkpoints."""
        slots = self.slots
        unit = spacing(slots.steps) if slots.save == "checkpoints" else 1 + slots.kernels.bf16
        found = spans(slots.steps, slots.rows, self.row_bytes, unit)
        slots.repeat_masks(found[0].stop)
        return found

    def _start(self, span: Span) -> None:
        """Start the programs of a span."""
        slots, programs = self.slots, self.programs
        count = slots.enter(span)
        rows = count * slots.rows
        if slots.save == "states":
            self._compute_saved(span, rows)
        self._enter_states(span)
        if slots.save == "checkpoints":
            self._run_again(count)
        d_inputs = slots.work("d_inputs", rows * programs.width)
        if programs.missing:
            slots.clear(d_inputs)
        for slot, units in (*programs.kept.items(), *programs.kept_after.items()):
            slots.work(slot, rows * units)
        slots.start_by_step(self._loop, slots.at, count, slots.rows)
        if self._inputs is not None:
            slots.start_by_step(self._inputs, slots.at, 1, rows)
        if self._parameters is not None:
            self._parameters.add(count)

    # What the forward pass has computed ----------------------------------------------------------

    def _enter_states(self, span: Span) -> None:
        """The states before a span."""
        slots = self.slots
        for name in slots.names:
            state, before = f"state.{name}", f"initial.{name}"
            if slots.save == "checkpoints":
                slots.point(before, self._kept[state][span.first // spacing(slots.steps)])
            elif span.first == 0:
                slots.point(before, slots.initial[name])
            else:
                step = slots.start_of(span) + (span.stop - span.first if slots.reverse else -1)
                slots.point_at_step(before, state, step)

    def _scratch_results(self, rows: int) -> dict[str, int]:
        """Addresses for results that are computed again and that nobody reads."""
        slots, plan = self.slots, self.slots.plan.forward
        nodes = {"output": plan.output, **{f"trace.{n}": each for n, each in plan.trace.items()}}
        return {
            slot: slots.take(slot, rows * slots.sizes[n.size], slots.dtype_of(n)).data_ptr()
            for slot, n in nodes.items()
        }

    def _run_again(self, count: int) -> None:
        """The forward loop over the steps of a span."""
        slots = self.slots
        rows = count * slots.rows
        for slot, node in (self._states | self._saved).items():
            slots.work_rows(slot, node, rows)
        self._again.run(slots.at | self._scratch_results(rows), count, slots.rows)

    def _compute_saved(self, span: Span, rows: int) -> None:
        """Saved values of all steps of a span at once: as one step of many more sequences.

        The numbers of a row do not depend on how many there are.
        """
        slots = self.slots
        for slot, node in self._saved.items():
            slots.work_rows(slot, node, rows)
        at = slots.at | self._scratch_results(rows)
        self._before = []  # stays until the programs have run
        for name, first in zip(slots.names, slots.call.states, strict=True):
            slot = f"state.{name}"
            kept, start = self._kept[slot], slots.start_of(span)
            first = first.unsqueeze(0)
            if slots.reverse:
                before = kept[start + 1 : start + 1 + span.stop - span.first]
                parts = [before, first]
            else:
                before = kept[max(start - 1, 0) : span.stop - 1]
                parts = [first, before]
            if span.first == 0:
                before = torch.cat(parts)
            self._before.append(before)
            at[f"initial.{name}"] = before.data_ptr()
            elements = rows * slots.sizes[self._states[slot].size]
            at[slot] = slots.take(slot, elements).data_ptr()
        for name in slots.masks:
            at[f"stream.{name}"] = at[f"stream_rows.{name}"]
        self._again.run(at, 1, rows)
