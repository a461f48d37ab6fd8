"""The CPU engine: compiles a layer's programs once and runs them on torch's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.arrays import Index
from cellwright.engines.cpu.kernels import FUSE_FROM, kernels
from cellwright.engines.cpu.runtime import Product, memory
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.engines.signature import Signature
from cellwright.ir import Node, topological


class CpuEngine:
    """Compiles plans to machine code with LLVM and runs them on torch's threads."""

    name = "cpu"

    def objection(
        self, signature: Signature, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """Why it cannot run the signature; None if it can."""
        if device.type != "cpu":
            return f"the tensors are on {device}"
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, not {str(dtype).removeprefix('torch.')}"
        if signature.spatial:
            return "@ is a convolution here, which it does not compile yet"
        if signature.options.precision != "fp32":
            return f"it has no products in {signature.options.precision} yet"
        return None

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the forward programs."""
        return _Run(call).forward(keep=keep)

    def backward(
        self, call: Call, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        """Run the backward programs."""
        return _Run(call).backward(kept, cotangents, need_x=need_x)


class _Run:
    """One call: tensors by the names of the programs' slots."""

    def __init__(self, call: Call):
        self.call = call
        self.signature = call.signature
        self.plan = call.signature.plan
        self.dtype = call.x.dtype
        double = self.dtype == torch.float64
        self.kernels = kernels(call.signature.text, double, jit.features_limit())
        self.steps, self.rows = call.x.shape[0], call.x.shape[1]
        self.every = self.steps * self.rows
        self.sizes = call.signature.size
        self.names = [each.name for each in self.plan.graph.states]
        self.parameters: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {"x": call.x.detach().contiguous()}
        weights = [each.detach() for each in call.weights]
        for each in call.signature.slices:
            part = weights[each.tensor].narrow(0, each.start, each.stop - each.start)
            if not part.is_contiguous():
                part = part.contiguous()
            self.parameters[each.parameter] = self.tensors[f"parameter.{each.parameter}"] = part
        for name, state in zip(self.names, call.states, strict=True):
            self.tensors[f"initial.{name}"] = state.detach().contiguous()
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            lead = (self.steps, self.rows) if spec.per_step else (self.rows,)
            whole = mask.expand(*lead, self.sizes[spec.size]).contiguous()
            self.tensors[f"stream.{spec.name}"] = whole
            if not spec.per_step:
                self.tensors[f"stream_rows.{spec.name}"] = whole.repeat(self.steps, 1)
        if self.plan.forward.once:
            self._compute_once()

    def kept_slots(self) -> list[str]:
        """Slots of what the forward pass keeps, in the protocol's order."""
        plan = self.plan.forward
        return [*(f"state.{name}" for name in self.names), *plan.saved, *plan.saved_inputs]

    def sequence(self, node: Node) -> Tensor:
        """Fresh memory for a value of every step."""
        dtype = torch.bool if node.vector.boolean else self.dtype
        return torch.empty((self.steps, self.rows, self.sizes[node.size]), dtype=dtype)

    def work(self, name: str, *shape: int) -> Tensor:
        """Working memory of a shape, with anything in it."""
        elements = 1
        for extent in shape:
            elements *= extent
        self.tensors[name] = memory.take(name, elements, self.dtype)[:elements].view(shape)
        return self.tensors[name]

    def _compute_once(self) -> None:
        """Values of parameters alone, by torch: they are computed once a call."""
        graph = self.plan.forward.once
        evaluator = Evaluator(algebra(0), self.sizes, self.call.x)
        values = evaluator.complete(graph.values(), self._bound(graph.values()))
        for name, value in zip(graph, values, strict=True):
            units = self.sizes[graph[name].size]
            self.tensors[f"value.{name}"] = value.expand(units).contiguous()

    def _bound(self, roots: Iterable[Node]) -> dict[Node, Tensor]:
        return {
            each: self.parameters[str(each.attribute("name"))]
            for each in topological(roots)
            if each.op == "parameter"
        }

    def numbers(self, steps: int, rows: int, *, ring: bool = False) -> dict[str, int]:
        """The programs' whole numbers."""
        reverse = int(self.call.reverse)
        return {"steps": steps, "rows": rows, "reverse": reverse, "ring": 1 if ring else -1}

    def forward(self, *, keep: bool) -> Result:
        """Inputs for all steps at once, then the loop."""
        fuse = self.rows >= FUSE_FROM * threads.count() and self.kernels.fusible
        programs, inputs, loop = self.kernels.forward(keep, fuse)
        plan = self.plan.forward
        if keep:
            for name, node in {**plan.saved, **plan.saved_inputs}.items():
                self.tensors[name] = self.sequence(node)
        if inputs is not None:
            self.work("inputs", self.every, programs.width)
            inputs.run(self.tensors, self.numbers(1, self.every), self.every)
        for each in self.plan.graph.states:
            shape = (self.steps if keep else 2, self.rows, self.sizes[each.size])
            if keep:
                self.tensors[f"state.{each.name}"] = torch.empty(shape, dtype=self.dtype)
            else:
                self.work(f"state.{each.name}", *shape)
        self.tensors["output"] = self.sequence(plan.output)
        for name, node in plan.trace.items():
            self.tensors[f"trace.{name}"] = self.sequence(node)
        loop.run(self.tensors, self.numbers(self.steps, self.rows, ring=not keep), self.rows)
        last = self.call.steps[-1] & (-1 if keep else 1)
        return Result(
            output=self.tensors["output"],
            states=[self.tensors[f"state.{name}"][last].clone() for name in self.names],
            trace=[self.tensors[f"trace.{name}"] for name in plan.trace],
            kept=[self.tensors[name] for name in self.kept_slots()] if keep else [],
        )

    def backward(
        self, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        """The loop from the last step to the first, then what is gathered over all steps."""
        programs, inputs, loop = self.kernels.backward(need_x)
        for slot, value in zip(self.kept_slots(), kept, strict=True):
            self.tensors[slot] = value.contiguous()
        self.tensors["d_output"] = cotangents.output.contiguous()
        for name, value in zip(self.plan.forward.trace, cotangents.trace, strict=True):
            self.tensors[f"d_trace.{name}"] = value.contiguous()
        for name, value in zip(self.names, cotangents.states, strict=True):
            self.work(f"carry.{name}", 2, *value.shape)[0] = value
        d_inputs = self.work("d_inputs", self.every, programs.width)
        if programs.missing:
            d_inputs.zero_()
        for slot, units in (*programs.kept.items(), *programs.kept_after.items()):
            self.work(slot, self.every, units)
        loop.run(self.tensors, self.numbers(self.steps, self.rows), self.rows)
        d_x = None
        if need_x:
            d_x = self.tensors["d_x"] = torch.empty_like(self.tensors["x"])
            if "x" not in self.plan.backward.inputs.values:
                d_x.zero_()
        if inputs is not None:
            inputs.run(self.tensors, self.numbers(1, self.every), self.every)
        weights = [torch.zeros(each.shape, dtype=self.dtype) for each in self.call.weights]
        self._matrices(weights, need_x=need_x)
        self._vectors(weights, need_x=need_x)
        last = self.steps % 2
        d_states = [self.tensors[f"carry.{name}"][last].clone() for name in self.names]
        return Gradients(d_x, d_states, weights)

    def _matrices(self, weights: list[Tensor], *, need_x: bool) -> None:
        """Gradients of matrices: products over all rows and steps."""
        product = Product(self.dtype == torch.float64)
        for job in self.kernels.jobs(need_x):
            left = self.tensors[job.delta.slot].view(self.every, job.delta.stride)
            right = self.tensors[job.operand.slot].view(-1, job.operand.stride)
            gradient = weights[job.tensor][job.row : job.row + job.m]
            columns = job.delta.offset, job.operand.offset
            if job.operand.index is not Index.BEFORE:
                product.add(job.m, job.n, left, columns[0], right, columns[1], gradient)
                continue
            first = self.tensors[job.operand.initial]
            edge = (0, self.rows)
            if self.call.reverse:
                edge = (self.every - self.rows, self.every)
            shift = self.rows if self.call.reverse else -self.rows
            product.add(
                job.m, job.n, left, columns[0], right, columns[1], gradient, first, edge, shift
            )
        product.run()

    def _sums(self, need_x: bool) -> dict[str, Tensor]:
        """Sums over rows and steps by name of parameter or once-value."""
        totals: dict[str, Tensor] = {}
        for which, steps, rows in (("loop", self.steps, self.rows), ("inputs", 1, self.every)):
            for each in self.kernels.sums(need_x, which):
                for slot in each.results:
                    self.tensors[slot] = torch.empty(each.units, dtype=self.dtype)
                each.compiled.run_sums(self.tensors, self.numbers(steps, rows), rows)
                for slot, names in each.results.items():
                    for name in names:
                        value = self.tensors[slot]
                        totals[name] = totals[name] + value if name in totals else value
        return totals

    def _vectors(self, weights: list[Tensor], *, need_x: bool) -> None:
        """Gradients of vector parameters, those behind once-values included."""
        totals = self._sums(need_x)
        if self.plan.forward.once:
            self._differentiate_once(totals)
        for each in self.signature.slices:
            if each.parameter in totals:
                weights[each.tensor][each.start : each.stop] += totals[each.parameter]

    def _differentiate_once(self, totals: dict[str, Tensor]) -> None:
        plan = self.plan.backward.once
        environment = self._bound([*self.plan.forward.once.values(), *plan.roots])
        for each in topological(plan.roots):
            if each.op == "cotangent":
                name = str(each.attribute("name"))
                zero = torch.zeros_like(self.tensors[f"value.{name}"])
                environment[each] = totals.get(name, zero)
        evaluator = Evaluator(algebra(0), self.sizes, self.call.x)

        def add(name: str, value: Tensor) -> None:
            totals[name] = totals[name] + value if name in totals else value

        for name, node in plan.vectors.items():
            (value,) = evaluator.complete([node], environment)
            add(name, value.expand(self.parameters[name].shape))
        for outer in plan.matrices:
            delta, operand = evaluator.complete([outer.delta, outer.operand], environment)
            add(outer.parameter, torch.outer(delta, operand))


