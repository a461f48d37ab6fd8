"""The backward pass of the CPU engine: span by span, from the last to the first.

Every sum over rows and steps runs from the last step to the first and goes on, span after span, in
the memory of its gradient. So its bits do not depend on where spans begin, nor on whether values
were saved or are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu.call import BoundCall, Packed
from cellwright.engines.cpu.forward_pass import ForwardPrograms
from cellwright.engines.cpu.matrices import Product, add_products, turns
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.spans import LEAST_ROWS, Span, spans
from cellwright.engines.keeping import spacing
from cellwright.engines.protocol import Call, Cotangents, Gradients


class BackwardPass(BoundCall):
    """Runs the backward plan.

    Args:
        call: as it was given to the forward pass.
        kept: what that kept.
        cotangents: gradients of the loss with respect to its results.
        need_x, need_weights: whether the gradients of x and of the weights are asked for.
    """

    def __init__(
        self, call: Call, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool,
        need_weights: bool,
    ):  # fmt: skip
        super().__init__(call)
        self.need_x, self.need_weights = need_x, need_weights
        self.programs, inputs, loop = self.kernels.backward(need_x)
        self._loop = Packed(loop, self.weights, "weights.loop")
        self._inputs = None if inputs is None else Packed(inputs, self.weights, "weights.inputs")
        plan = self.plan.forward
        self._states = {f"state.{name}": plan.next[name] for name in self.names}
        self._saved = {**plan.saved, **plan.saved_inputs}
        slots = [*self._states, *(self._saved if self.save == "gates" else ())]
        self._kept = dict(zip(slots, (each.contiguous() for each in kept), strict=True))
        if self.save != "checkpoints":
            for slot, value in self._kept.items():
                self.put_steps(slot, value)
        self.put_steps("d_output", cotangents.output)
        for name, value in zip(plan.trace, cotangents.trace, strict=True):
            self.put_steps(f"d_trace.{name}", value)
        self._initial = {name: self.at[f"initial.{name}"] for name in self.names}
        self._carried = []
        for name, value in zip(self.names, cotangents.states, strict=True):
            elements = value.numel()
            carry = self.work(f"carry.{name}", 2 * elements)[: 2 * elements].view(2, *value.shape)
            carry[0] = value
            self._carried.append(carry)

    def run(self) -> Gradients:
        """All gradients; that of x only if it is asked for."""
        d_x = None
        if self.need_x:
            d_x = self.put_steps("d_x", empty(self.call.x.shape, self.dtype))
            if "x" not in self.plan.backward.inputs.values:
                d_x.zero_()
        matrices: list[list[Tensor]] = []
        totals: list[tuple[Tensor, list[str]]] = []
        if self.need_weights:
            count = turns(self.kernels.jobs(self.need_x))
            matrices = [self._zeros() for _ in range(count)]
            totals = self._place_sums(matrices[0])
        for span in reversed(self._spans()):
            self._run_span(span, matrices)
        gradients, *others = matrices or [[]]
        for other in others:
            for into, each in zip(gradients, other, strict=True):
                into += each
        if self.need_weights:
            self._add_vectors(totals, gradients)
        return Gradients(d_x, [carry[0].clone() for carry in self._carried], gradients)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros(each.shape, dtype=self.dtype) for each in self.weights]

    def _spans(self) -> list[Span]:
        """Spans by the memory that their steps take; they begin at checkpoints."""
        units = sum((*self.programs.kept.values(), *self.programs.kept_after.values()))
        row_bytes = (self.programs.width + units) * self.width
        if self.save != "gates":
            plan = self.plan.forward
            self._again = ForwardPrograms(
                self, keep=True, place="weights.again",
                rows=LEAST_ROWS if self.save == "states" else self.rows,
            )  # fmt: skip
            row_bytes += self._again.width * self.width
            row_bytes += self.bytes_of(
                [*self._states.values(), *self._saved.values(), plan.output, *plan.trace.values()]
            )
        unit = spacing(self.steps) if self.save == "checkpoints" else 1 + self.kernels.bf16
        found = spans(self.steps, self.rows, row_bytes, unit)
        self.repeat_masks(found[0].stop)
        return found

    def _run_span(self, span: Span, matrices: list[list[Tensor]]) -> None:
        count = self.enter(span)
        rows = count * self.rows
        if self.save == "states":
            self._compute_saved(span, rows)
        self._enter_states(span)
        if self.save == "checkpoints":
            self._run_again(count)
        d_inputs = self.work("d_inputs", rows * self.programs.width)
        if self.programs.missing:
            d_inputs.zero_()
        for slot, units in (*self.programs.kept.items(), *self.programs.kept_after.items()):
            self.work(slot, rows * units)
        self._loop.run(self.at, count, self.rows, reverse=self.reverse)
        if count % 2:
            for carry in self._carried:
                carry[0] = carry[1]
        if self._inputs is not None:
            self._inputs.run(self.at, 1, rows)
        if not self.need_weights:
            return
        self._add_matrices(rows, matrices)
        for which, steps in (("loop", count), ("inputs", 1)):
            for each in self.kernels.sums(self.need_x, which):
                each.compiled.run_sums(self.at, steps, rows // steps, reverse=self.reverse)

    # What the forward pass has computed ----------------------------------------------------------

    def _enter_states(self, span: Span) -> None:
        """The states before a span."""
        for name in self.names:
            slot = f"state.{name}"
            if self.save == "checkpoints":
                number = span.first // spacing(self.steps)
                address = self._kept[slot][number].data_ptr()
            elif span.first == 0:
                address = self._initial[name]
            else:
                before = self.start(span) + (span.stop - span.first if self.reverse else -1)
                address = self.address(slot, before)
            self.at[f"initial.{name}"] = address

    def _scratch_results(self, rows: int) -> dict[str, int]:
        """Addresses for results that are computed again and that nobody reads."""
        plan = self.plan.forward
        nodes = {"output": plan.output, **{f"trace.{n}": each for n, each in plan.trace.items()}}
        return {
            slot: memory.take(slot, rows * self.sizes[n.size], self.dtype_of(n)).data_ptr()
            for slot, n in nodes.items()
        }

    def _run_again(self, count: int) -> None:
        """The forward loop over the steps of a span."""
        rows = count * self.rows
        for slot, node in (self._states | self._saved).items():
            self.work_rows(slot, node, rows)
        self._again.run(self.at | self._scratch_results(rows), count, self.rows)

    def _compute_saved(self, span: Span, rows: int) -> None:
        """Saved values of all steps of a span at once: as one step of many more sequences.

        The numbers of a row do not depend on how many there are.
        """
        for slot, node in self._saved.items():
            self.work_rows(slot, node, rows)
        at = self.at | self._scratch_results(rows)
        held = []
        for index, name in enumerate(self.names):
            slot = f"state.{name}"
            kept, start = self._kept[slot], self.start(span)
            first = self.call.states[index].unsqueeze(0)
            if self.reverse:
                before = kept[start + 1 : start + 1 + span.stop - span.first]
                parts = [before, first]
            else:
                before = kept[max(start - 1, 0) : span.stop - 1]
                parts = [first, before]
            if span.first == 0:
                before = torch.cat(parts)
            held.append(before)
            at[f"initial.{name}"] = before.data_ptr()
            elements = rows * self.sizes[self._states[slot].size]
            at[slot] = memory.take(slot, elements, self.dtype).data_ptr()
        for name in self.masks:
            at[f"stream.{name}"] = at[f"stream_rows.{name}"]
        self._again.run(at, 1, rows)

    # Gradients of parameters ---------------------------------------------------------------------

    def _add_matrices(self, rows: int, matrices: list[list[Tensor]]) -> None:
        """Add a span's products to the gradients of matrices."""
        product = Product(self.double, self.kernels.bf16)
        jobs = self.kernels.jobs(self.need_x)
        add_products(product, jobs, self.at, matrices, rows, self.rows, reverse=self.reverse)
        product.run()

    def _place_sums(self, gradients: list[Tensor]) -> list[tuple[Tensor, list[str]]]:
        """Zeros for the sums to begin with: gradients themselves, or vectors for parts of them.

        Returns:
            the vectors, and the parameters (or values of parameters) whose gradient they are.
        """
        direct = self.kernels.direct_sums(self.need_x)
        apart = []
        for which in ("loop", "inputs"):
            for each in self.kernels.sums(self.need_x, which):
                for slot, names in each.results.items():
                    if slot in direct:
                        place = self.kernels.weights[names[0]]
                        base = gradients[place.tensor].data_ptr()
                        self.at[slot] = base + place.start * self.width
                    else:
                        zeros = torch.zeros((each.units,), dtype=self.dtype)
                        apart.append((self.put(slot, zeros), names))
        return apart

    def _add_vectors(self, found: list[tuple[Tensor, list[str]]], gradients: list[Tensor]) -> None:
        """Gradients of vector parameters, those behind once-values included."""
        totals: dict[str, Tensor] = {}
        for value, names in found:
            for name in names:
                totals[name] = totals[name] + value if name in totals else value
        if self.plan.forward.once:
            self.differentiate_once(totals)
        for part in self.call.signature.slices:
            if part.parameter in totals:
                gradients[part.tensor][part.start : part.stop] += totals[part.parameter]
