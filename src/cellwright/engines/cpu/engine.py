"""The CPU engine: compiles a layer's programs once and runs them on torch's tensors."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, packing, product, threads
from cellwright.engines.cpu.arrays import Array, Index
from cellwright.engines.cpu.body import ENTRY, Program, emit, emit_sums, weights_slot
from cellwright.engines.cpu.programs import Backward, Forward, backward, forward
from cellwright.engines.protocol import Call, Cotangents, Gradients, Result
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.engines.signature import Signature, parse
from cellwright.ir import Matrix, Node, topological
from cellwright.plan import Outer

SHARE_FROM = 300_000
"""Multiplications in a step from which the units of a small batch are shared out."""


class Compiled:
    """A program as machine code."""

    def __init__(self, program: Program, text: str):
        self.program = program
        self.code = jit.compile_ir(text)
        self.address = self.code.address(ENTRY)
        self.work = sum(
            program.sizes[target.root.size] * program.sizes[p.inputs[1].size]
            for groups in program.groups
            for group in groups
            for target in group.targets
            for p in target.products
        )

    def run(
        self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int], rows: int, *, sums: bool = False
    ) -> None:
        """Run it; ``tensors`` and ``numbers`` are its arguments by slot."""
        slots = self.program.slots
        arguments = torch.zeros(len(slots), dtype=torch.int64)
        barrier = torch.zeros(16, dtype=torch.int64)
        values = arguments.numpy()
        held: list[Tensor] = [barrier]
        for name, place in slots.items():
            if name in numbers:
                values[place] = numbers[name]
            elif name == "barrier":
                values[place] = barrier.data_ptr()
            elif name.startswith("temporary."):
                stride = self.program.temporaries[name]
                dtype = torch.float64 if numbers["double"] else torch.float32
                held.append(torch.empty(rows * stride, dtype=dtype))
                values[place] = held[-1].data_ptr()
            else:
                values[place] = tensors[name].data_ptr()
        available = threads.count()
        if sums:
            how, team = threads.SHARES, available
        elif rows >= 2 * available:
            how, team = threads.ROWS, available
            if rows * self.work * numbers["steps"] < 50_000:
                team = 1
        else:
            how, team = threads.SHARES, available if rows * self.work >= SHARE_FROM else 1
        threads.launch(self.address, arguments.data_ptr(), rows, how, team)


class Kernels:
    """Everything compiled for one signature."""

    def __init__(self, signature: Signature, double: bool):
        self.signature, self.double = signature, double
        self._lock = threading.Lock()
        self._made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Any) -> Any:
        with self._lock:
            if key not in self._made:
                product.provide(self.double)
                threads.provide()
                self._made[key] = make()
            return self._made[key]

    def compiled(self, program: Program | None) -> Compiled | None:
        """The program's machine code, or None for no program."""
        if program is None:
            return None
        return Compiled(program, emit(program, self.double))

    def forward(self, keep: bool) -> tuple[Forward, Compiled | None, Compiled]:
        """The forward programs."""

        def make() -> Any:
            programs = forward(self.signature, keep=keep)
            return programs, self.compiled(programs.inputs), self.compiled(programs.loop)

        return self._once(("forward", keep), make)  # type: ignore[no-any-return]

    def backward(self, need_x: bool) -> tuple[Backward, Compiled | None, Compiled]:
        """The backward programs."""

        def make() -> Any:
            programs = backward(self.signature, need_x=need_x)
            return programs, self.compiled(programs.inputs), self.compiled(programs.loop)

        return self._once(("backward", need_x), make)  # type: ignore[no-any-return]

    def sums(self, which: str, found: Mapping[str, tuple[Node, dict[Node, Array]]]) -> list[Any]:
        """Compiled sums, one for each size: (program, names)."""

        def make() -> Any:
            by_size: dict[str, dict[str, tuple[Node, dict[Node, Array]]]] = {}
            for name, (node, sources) in found.items():
                by_size.setdefault(node.size, {})[name] = (node, sources)
            result = []
            for size, members in by_size.items():
                sources: dict[Node, Array] = {}
                for _, each in members.values():
                    sources |= each
                program = Program([], self.signature.size, sources, {})
                results = {}
                for name, (node, _) in members.items():
                    results.setdefault(node, []).append(name)
                slots = {node: f"sum.{names[0]}" for node, names in results.items()}
                text = emit_sums(program, slots, size, self.double)
                result.append((Compiled(program, text), results, self.signature.size[size]))
            return result

        return self._once(("sums", which), make)  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def kernels(text: str, double: bool, limit: str) -> Kernels:
    """The kernels of a signature, made when first needed."""
    return Kernels(parse(text), double)


@lru_cache(maxsize=8)
def _outer(double: bool, limit: str) -> Any:
    product.provide(double)
    code = jit.compile_ir(product.emit_outer(double), limit)
    return code, code.address(ENTRY)


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
        self.double = call.x.dtype == torch.float64
        self.kernels = kernels(call.signature.text, self.double, jit.features_limit())
        self.steps, self.rows = call.x.shape[0], call.x.shape[1]
        self.sizes = call.signature.size
        self.parameters: dict[str, Tensor] = {}
        for each in call.signature.slices:
            weight = call.weights[each.tensor].detach()
            self.parameters[each.parameter] = weight.narrow(
                0, each.start, each.stop - each.start
            ).contiguous()
        self.tensors: dict[str, Tensor] = {"x": call.x.detach().contiguous()}
        for spec, state in zip(self.plan.graph.states, call.states, strict=True):
            self.tensors[f"initial.{spec.name}"] = state.detach().contiguous()
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            units = self.sizes[spec.size]
            lead = (self.steps, self.rows) if spec.per_step else (self.rows,)
            whole = mask.expand(*lead, units).contiguous()
            self.tensors[f"stream.{spec.name}"] = whole
            if not spec.per_step:
                self.tensors[f"stream_rows.{spec.name}"] = whole.repeat(self.steps, 1)
        for name, value in self.parameters.items():
            self.tensors[f"parameter.{name}"] = value
        self._once()

    def empty(self, *shape: int, boolean: bool = False) -> Tensor:
        """Fresh memory for numbers of the call's dtype."""
        return torch.empty(shape, dtype=torch.bool if boolean else self.call.x.dtype)

    def sequence(self, node: Node) -> Tensor:
        """Fresh memory for a value of every step."""
        return self.empty(
            self.steps, self.rows, self.sizes[node.size], boolean=node.vector.boolean
        )

    def _once(self) -> None:
        """Values of parameters alone, by torch: they are computed once a call."""
        graph = self.plan.forward.once
        self.evaluator = Evaluator(algebra(0), self.sizes, self.call.x)
        environment = self._bound(graph.values())
        values = self.evaluator.complete(graph.values(), environment)
        for name, value in zip(graph, values, strict=True):
            self.tensors[f"value.{name}"] = value.contiguous()

    def _bound(self, roots: Any) -> dict[Node, Tensor]:
        return {
            each: self.parameters[str(each.attribute("name"))]
            for each in topological(roots)
            if each.op == "parameter"
        }

    def numbers(self, steps: int, rows: int, *, ring: bool = False) -> dict[str, int]:
        """The programs' whole numbers."""
        return {
            "steps": steps, "rows": rows, "reverse": int(self.call.reverse),
            "ring": 1 if ring else -1, "double": int(self.double),
        }  # fmt: skip

    def execute(self, compiled: Compiled, numbers: Mapping[str, int], rows: int) -> None:
        """Pack the weights that a program multiplies by, and run it."""
        for stage, groups in enumerate(compiled.program.groups):
            for number, group in enumerate(groups):
                lanes = 8 if self.double else 16
                packed = packing.pack(group, self.parameters, self.sizes, lanes)
                self.tensors[weights_slot(stage, number)] = packed
        compiled.run(self.tensors, numbers, rows)

    def forward(self, *, keep: bool) -> Result:
        """Inputs for all steps at once, then the loop."""
        programs, inputs, loop = self.kernels.forward(keep)
        plan = self.plan.forward
        if inputs is not None:
            self.tensors["inputs"] = self.empty(self.steps * self.rows, programs.width)
            rows = self.steps * self.rows
            self.execute(inputs, self.numbers(1, rows), rows)
        names = [each.name for each in self.plan.graph.states]
        for each in self.plan.graph.states:
            length = self.steps if keep else 2
            self.tensors[f"state.{each.name}"] = self.empty(
                length, self.rows, self.sizes[each.size]
            )
        self.tensors["output"] = self.sequence(plan.output)
        for name, node in plan.trace.items():
            self.tensors[f"trace.{name}"] = self.sequence(node)
        if keep:
            for name, node in plan.saved.items():
                self.tensors[name] = self.sequence(node)
        self.execute(loop, self.numbers(self.steps, self.rows, ring=not keep), self.rows)
        last = self.call.steps[-1] & (-1 if keep else 1)
        kept = [self.tensors[f"state.{name}"] for name in names] if keep else []
        kept += [self.tensors[name] for name in plan.saved] if keep else []
        return Result(
            output=self.tensors["output"],
            states=[self.tensors[f"state.{name}"][last].clone() for name in names],
            trace=[self.tensors[f"trace.{name}"] for name in plan.trace],
            kept=kept,
        )

    def backward(
        self, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool
    ) -> Gradients:
        """The loop from the last step to the first, then what is gathered over all steps."""
        programs, inputs, loop = self.kernels.backward(need_x)
        names = [each.name for each in self.plan.graph.states]
        for name, value in zip(names, kept, strict=False):
            self.tensors[f"state.{name}"] = value.contiguous()
        for name, value in zip(self.plan.forward.saved, kept[len(names) :], strict=True):
            self.tensors[name] = value.contiguous()
        self.tensors["d_output"] = cotangents.output.contiguous()
        for name, value in zip(self.plan.forward.trace, cotangents.trace, strict=True):
            self.tensors[f"d_trace.{name}"] = value.contiguous()
        for name, value in zip(names, cotangents.states, strict=True):
            carry = self.empty(2, *value.shape)
            carry[0] = value
            self.tensors[f"carry.{name}"] = carry
        shape = (self.steps * self.rows, programs.width)
        self.tensors["d_inputs"] = self.empty(*shape).zero_() if programs.missing else self.empty(*shape)
        for slot, units in programs.kept.items():
            self.tensors[slot] = self.empty(self.steps * self.rows, units)
        self.execute(loop, self.numbers(self.steps, self.rows), self.rows)
        rows = self.steps * self.rows
        d_x = torch.zeros_like(self.tensors["x"])
        self.tensors["d_x"] = d_x
        for slot, units in programs.kept_after.items():
            self.tensors[slot] = self.empty(rows, units)
        if inputs is not None:
            self.execute(inputs, self.numbers(1, rows), rows)
        totals = self._sums(programs)
        weights = [torch.zeros_like(each) for each in self.call.weights]
        self._matrices(programs, weights)
        self._vectors(totals, weights)
        d_states = [self.tensors[f"carry.{name}"][self.steps % 2].clone() for name in names]
        return Gradients(d_x if need_x else None, d_states, weights)

    def _sums(self, programs: Backward) -> dict[str, Tensor]:
        """Sums over rows and steps by name of parameter or once-value."""
        totals: dict[str, Tensor] = {}
        rows = self.steps * self.rows
        for which, found, steps, count in (
            ("loop", programs.loop_sums, self.steps, self.rows),
            ("inputs", programs.input_sums, 1, rows),
        ):
            for compiled, results, units in self.kernels.sums(which, found):
                tensors = dict(self.tensors)
                for members in results.values():
                    tensors[f"sum.{members[0]}"] = self.empty(units)
                numbers = self.numbers(steps, count)
                compiled.run(tensors, numbers, count, sums=True)
                for members in results.values():
                    for name in members:
                        value = tensors[f"sum.{members[0]}"]
                        totals[name] = totals[name] + value if name in totals else value
        return totals

    def _vectors(self, totals: dict[str, Tensor], weights: list[Tensor]) -> None:
        """Gradients of vector parameters, those behind once-values included."""
        graph, plan = self.plan.forward.once, self.plan.backward.once
        environment = self._bound([*graph.values(), *plan.roots])
        for each in topological(plan.roots):
            if each.op == "cotangent":
                name = str(each.attribute("name"))
                zero = torch.zeros_like(self.tensors[f"value.{name}"])
                environment[each] = totals.get(name, zero)
        for name, node in plan.vectors.items():
            (value,) = self.evaluator.complete([node], environment)
            value = value.expand(self.parameters[name].shape)
            totals[name] = totals[name] + value if name in totals else value
        for outer in plan.matrices:
            delta, operand = self.evaluator.complete([outer.delta, outer.operand], environment)
            value = torch.outer(delta, operand)
            held = totals.get(outer.parameter)
            totals[outer.parameter] = value if held is None else held + value
        for each in self.signature.slices:
            if each.parameter in totals:
                weights[each.tensor][each.start : each.stop] += totals[each.parameter]

    def _matrices(self, programs: Backward, weights: list[Tensor]) -> None:
        """Gradients of matrices: products over all rows and steps."""
        kinds: dict[str, Matrix] = {
            p.name: p.type for p in self.plan.parameters if isinstance(p.type, Matrix)
        }
        places = {each.parameter: each for each in self.signature.slices}
        for outer, delta, operand in (*programs.loop_outers, *programs.input_outers):
            place = places[outer.parameter]
            gradient = weights[place.tensor][place.start : place.stop]
            self._outer(outer, kinds[outer.parameter], delta, operand, gradient)

    def _outer(
        self, outer: Outer, kind: Matrix, delta: Array, operand: Array, gradient: Tensor
    ) -> None:
        """Add delta x operand, over all rows, to a matrix's gradient."""
        rows = self.steps * self.rows
        left = self.tensors[delta.slot].reshape(rows, delta.stride)
        m, n = self.sizes[kind.rows] // kind.blocks, self.sizes[kind.columns] // kind.blocks
        right = self.tensors[operand.slot].reshape(rows, operand.stride)
        parts = [(left, right)]
        if operand.index is Index.BEFORE:
            first = self.tensors[operand.initial]
            batch = self.rows
            if self.call.reverse:
                parts = [(left[: rows - batch], right[batch:]), (left[rows - batch :], first)]
            else:
                parts = [(left[:batch], first), (left[batch:], right[: rows - batch])]
        for a, b in parts:
            for block in range(kind.blocks):
                target = gradient[block * m : (block + 1) * m]
                self._product(
                    a, delta.offset + block * m, b, operand.offset + block * n, target, m, n
                )

    def _product(
        self, a: Tensor, a_column: int, b: Tensor, b_column: int, c: Tensor, m: int, n: int
    ) -> None:
        depth, width = a.shape[0], a.element_size()
        if depth == 0 or n == 0:
            return
        team = threads.count() if depth * m * n > 100_000 else 1
        _, address = _outer(self.double, jit.features_limit())
        arguments = torch.tensor([
            n, depth, a.data_ptr() + a_column * width, a.stride(0),
            b.data_ptr() + b_column * width, b.stride(0), c.data_ptr(), c.stride(0),
        ])  # fmt: skip
        threads.launch(address, arguments.data_ptr(), m, threads.ROWS, team)
