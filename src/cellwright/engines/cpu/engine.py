"""The CPU engine: compiles a layer's programs once and runs them on torch's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import bfloat, jit, spatial, spatial_backward
from cellwright.engines.cpu.arrays import Index
from cellwright.engines.cpu.kernels import NO_BF16, kernels
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.runtime import Product, memory
from cellwright.engines.cpu.streaming import Stream
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.engines.signature import Signature
from cellwright.ir import Matrix, Node, topological


class CpuEngine:
    """Compiles plans to machine code with LLVM and runs them on torch's threads."""

    name = "cpu"
    purpose = "it runs the cell as machine code compiled for this processor"
    fresh = True

    def objection(
        self, signature: Signature, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """Why it cannot run the signature; None if it can."""
        if device.type != "cpu":
            return f"the tensors are on {device}"
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, not {str(dtype).removeprefix('torch.')}"
        if signature.options.precision == "bf16" and signature.spatial:
            return "it has no convolutions of bfloat16 numbers"
        if signature.options.precision == "bf16" and dtype != torch.float32:
            return "its products of bfloat16 numbers have float32 sums, and the tensors are float64"
        return None

    def remark(self, signature: Signature) -> str | None:
        """How products are computed, where that is not in the tensors' own precision."""
        if signature.options.precision == "fp32":
            return None
        if bfloat.is_available():
            return "products are of bfloat16 numbers, with float32 sums"
        return NO_BF16

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the forward programs."""
        try:
            if call.signature.spatial:
                return spatial.forward(call, keep=keep)
            return _Run(call).forward(keep=keep)
        finally:
            memory.release()

    def backward(
        self, call: Call, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        """Run the backward programs."""
        try:
            if call.signature.spatial:
                return spatial_backward.backward(call, kept, cotangents, need_x=need_x)
            return _Run(call).backward(kept, cotangents, need_x=need_x)
        finally:
            memory.release()

    def stream(
        self,
        signatures: Sequence[Signature],
        weights: Sequence[Sequence[Tensor]],
        lead: Sequence[int],
        sizes: Sequence[int],
    ) -> Stream | None:
        """Prepared single steps, or None where a step is more than one program."""
        double = weights[0][0].dtype == torch.float64
        limit = jit.features_limit()
        if not all(kernels(each.text, double, limit).can_step for each in signatures):
            return None
        return Stream(signatures, weights, lead, sizes)


class _Run:
    """One call: its tensors, and the addresses of arrays by the names of the programs' slots."""

    def __init__(self, call: Call):
        self.call = call
        self.dtype = call.x.dtype
        self.double = self.dtype == torch.float64
        self.width = 8 if self.double else 4
        self.kernels = kernels(call.signature.text, self.double, jit.features_limit())
        self.plan = self.kernels.signature.plan
        self.steps, self.rows = call.x.shape[0], call.x.shape[1]
        self.every = self.steps * self.rows
        self.sizes = call.signature.size
        self.names = [each.name for each in self.plan.graph.states]
        self.held: list[Tensor] = []  # what the addresses point into
        self.at: dict[str, int] = {}
        self.weights = [
            each if each.is_contiguous() else each.contiguous() for each in call.weights
        ]
        bases = [each.data_ptr() for each in self.weights]
        for slot, tensor, skipped in self.kernels.places:
            self.at[slot] = bases[tensor] + skipped
        self.put("x", call.x)
        for name, state in zip(self.names, call.states, strict=True):
            self.put(f"initial.{name}", state)
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            lead = (self.steps, self.rows) if spec.per_step else (self.rows,)
            whole = self.put(f"stream.{spec.name}", mask.expand(*lead, self.sizes[spec.size]))
            if not spec.per_step:
                self.put(f"stream_rows.{spec.name}", whole.repeat(self.steps, 1))
        self.once: dict[str, Tensor] = {}
        if self.plan.forward.once:
            self._compute_once()

    # Memory ----------------------------------------------------------------------------------

    def put(self, slot: str, tensor: Tensor) -> Tensor:
        """Let a slot be a tensor's numbers, copied if they do not lie one after the other."""
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        self.held.append(tensor)
        self.at[slot] = tensor.data_ptr()
        return tensor

    def fresh(self, slot: str, node: Node) -> Tensor:
        """Let a slot be new memory for a value of every step."""
        dtype = torch.bool if node.vector.boolean else self.dtype
        return self.put(slot, empty((self.steps, self.rows, self.sizes[node.size]), dtype))

    def work(self, slot: str, elements: int) -> Tensor:
        """Let a slot be working memory, with anything in it."""
        tensor = memory.take(slot, elements, self.dtype)
        self.at[slot] = tensor.data_ptr()
        return tensor

    # Values of parameters alone -----------------------------------------------------------------

    def _bound(self, roots: Iterable[Node]) -> dict[Node, Tensor]:
        slices = {each.parameter: each for each in self.call.signature.slices}
        found = {}
        for each in topological(roots):
            if each.op == "parameter":
                place = slices[str(each.attribute("name"))]
                weight = self.weights[place.tensor].detach()
                # At the start of its memory: torch's products depend on the address.
                found[each] = weight[place.start : place.stop].clone()
        return found

    def _compute_once(self) -> None:
        """By torch: they are computed once a call."""
        graph = self.plan.forward.once
        evaluator = Evaluator(algebra(0), self.sizes, self.call.x)
        values = evaluator.complete(graph.values(), self._bound(graph.values()))
        for name, value in zip(graph, values, strict=True):
            units = self.sizes[graph[name].size]
            self.once[name] = self.put(f"value.{name}", value.expand(units))

    def _differentiate_once(self, totals: dict[str, Tensor]) -> None:
        """Carry the gradients of such values on to the parameters behind them."""
        plan = self.plan.backward.once
        environment = self._bound([*self.plan.forward.once.values(), *plan.roots])
        for each in topological(plan.roots):
            if each.op == "cotangent":
                name = str(each.attribute("name"))
                environment[each] = totals.get(name, torch.zeros_like(self.once[name]))
        evaluator = Evaluator(algebra(0), self.sizes, self.call.x)

        def add(name: str, value: Tensor) -> None:
            totals[name] = totals[name] + value if name in totals else value

        shapes = {p.name: p.shape(self.sizes) for p in self.plan.parameters}
        for name, node in plan.vectors.items():
            (value,) = evaluator.complete([node], environment)
            add(name, value.expand(shapes[name]))
        for outer in plan.matrices:
            delta, operand = evaluator.complete([outer.delta, outer.operand], environment)
            left, right = (
                evaluator.round(value.expand(1, self.sizes[node.size]), outer.precision)
                for value, node in ((delta, outer.delta), (operand, outer.operand))
            )
            kind = next(p.type for p in self.plan.parameters if p.name == outer.parameter)
            assert isinstance(kind, Matrix)
            add(outer.parameter, algebra(0).outer(left, right, self.weights[0], kind))

    # Forward -----------------------------------------------------------------------------------

    def kept_slots(self) -> list[str]:
        """Slots of what the forward pass keeps, in the protocol's order."""
        plan = self.plan.forward
        return [*(f"state.{name}" for name in self.names), *plan.saved, *plan.saved_inputs]

    def forward(self, *, keep: bool) -> Result:
        """Inputs for all steps at once, then the loop."""
        programs, inputs, loop = self.kernels.forward(keep, self.kernels.fuses(self.rows))
        plan = self.plan.forward
        kept: dict[str, Tensor] = {}
        if keep:
            for name, node in {**plan.saved, **plan.saved_inputs}.items():
                kept[name] = self.fresh(name, node)
        if inputs is not None:
            self.work("inputs", self.every * programs.width)
            inputs.run(self.at, self.weights, 1, self.every)
        output = self.fresh("output", plan.output)
        first = self.names[0]
        states = {first: output} if not keep and plan.next[first] is plan.output else {}
        rings = {}
        for each in self.plan.graph.states:
            if each.name not in states:
                slot, elements = f"state.{each.name}", self.rows * self.sizes[each.size]
                if keep:
                    states[each.name] = self.fresh(slot, plan.next[each.name])
                else:
                    rings[each.name] = self.work(slot, 2 * elements)[: 2 * elements]
        trace = [self.fresh(f"trace.{name}", node) for name, node in plan.trace.items()]
        loop.run(
            self.at, self.weights, self.steps, self.rows, reverse=self.call.reverse, ring=not keep
        )
        last = self.call.steps[-1]
        after = [
            rings[name].view(2, self.rows, -1)[last & 1].clone()
            if name in rings
            else states[name][last].clone()
            for name in self.names
        ]
        kept |= {f"state.{name}": value for name, value in states.items()}
        return Result(output, after, trace, [kept[s] for s in self.kept_slots()] if keep else [])

    # Backward ----------------------------------------------------------------------------------

    def backward(
        self, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        """The loop from the last step to the first, then what is gathered over all steps."""
        programs, inputs, loop = self.kernels.backward(need_x)
        for slot, value in zip(self.kept_slots(), kept, strict=True):
            self.put(slot, value)
        self.put("d_output", cotangents.output)
        for name, value in zip(self.plan.forward.trace, cotangents.trace, strict=True):
            self.put(f"d_trace.{name}", value)
        carried = []
        for name, value in zip(self.names, cotangents.states, strict=True):
            elements = value.numel()
            carry = self.work(f"carry.{name}", 2 * elements)[: 2 * elements].view(2, *value.shape)
            carry[0] = value
            carried.append(carry)
        d_inputs = self.work("d_inputs", self.every * programs.width)
        if programs.missing:
            d_inputs.zero_()
        for slot, units in (*programs.kept.items(), *programs.kept_after.items()):
            self.work(slot, self.every * units)
        loop.run(self.at, self.weights, self.steps, self.rows, reverse=self.call.reverse)
        d_x = None
        if need_x:
            d_x = self.put("d_x", empty(self.call.x.shape, self.dtype))
            if "x" not in self.plan.backward.inputs.values:
                d_x.zero_()
        if inputs is not None:
            inputs.run(self.at, self.weights, 1, self.every)
        gradients = [torch.zeros(each.shape, dtype=self.dtype) for each in self.weights]
        self._matrices(gradients, need_x=need_x)
        self._vectors(gradients, need_x=need_x)
        return Gradients(d_x, [carry[self.steps % 2].clone() for carry in carried], gradients)

    def _matrices(self, gradients: list[Tensor], *, need_x: bool) -> None:
        """Gradients of matrices: products over all rows and steps."""
        product = Product(self.double, self.kernels.bf16)
        bases = [each.data_ptr() for each in gradients]
        for job in self.kernels.jobs(need_x):
            delta, operand = job.delta, job.operand
            left = self.at[delta.slot] + delta.offset * self.width
            right = self.at[operand.slot] + operand.offset * self.width
            gradient = bases[job.tensor] + job.row * job.columns * self.width
            arguments = (job.m, job.n, self.every, left, delta.stride, right, operand.stride,
                         gradient, job.columns)  # fmt: skip
            if operand.index is not Index.BEFORE:
                product.add(*arguments)
                continue
            other = self.at[operand.initial] + operand.offset * self.width
            if self.call.reverse:
                product.add(*arguments, other, (self.every - self.rows, self.every), self.rows)
            else:
                product.add(*arguments, other, (0, self.rows), -self.rows)
        product.run()

    def _vectors(self, gradients: list[Tensor], *, need_x: bool) -> None:
        """Gradients of vector parameters, those behind once-values included."""
        direct = self.kernels.direct_sums(need_x)
        bases = [each.data_ptr() for each in gradients]
        totals: dict[str, Tensor] = {}
        for which, steps, rows in (("loop", self.steps, self.rows), ("inputs", 1, self.every)):
            for each in self.kernels.sums(need_x, which):
                apart: list[tuple[Tensor, list[str]]] = []
                for slot, names in each.results.items():
                    if slot in direct:
                        place = self.kernels.weights[names[0]]
                        self.at[slot] = bases[place.tensor] + place.start * self.width
                    else:
                        apart.append(
                            (self.put(slot, torch.empty(each.units, dtype=self.dtype)), names)
                        )
                reverse = self.call.reverse and which == "loop"
                each.compiled.run_sums(self.at, steps, rows, reverse=reverse)
                for value, names in apart:
                    for name in names:
                        totals[name] = totals[name] + value if name in totals else value
        if self.plan.forward.once:
            self._differentiate_once(totals)
        if totals:
            for part in self.call.signature.slices:
                if part.parameter in totals:
                    gradients[part.tensor][part.start : part.stop] += totals[part.parameter]
