"""The GPU engine: a layer's loops as Triton kernels, what surrounds them as torch operations."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cellwright.engines import choice, segments
from cellwright.engines.cpu import spatial as passes
from cellwright.engines.cpu import spatial_backward
from cellwright.engines.gpu import form as forms
from cellwright.engines.gpu import hoisted, loops, spatial
from cellwright.engines.gpu.frame import ARITHMETIC
from cellwright.engines.gpu.outside import Outside
from cellwright.engines.protocol import Call, Cotangents, Engine, Gradients, Result
from cellwright.engines.signature import Signature
from cellwright.errors import UsageError
from cellwright.ir import Node

INTERPRET = "CELLWRIGHT_INTERPRET"
"""Environment variable: "1" lets Triton's interpreter run kernels on a CPU, to test them."""


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class GpuEngine(Engine):
    """Emits the loops of a plan as Triton kernels.

    Args:
        form: "resident" or "steps" for all recurrences; None to choose by their shapes.
    """

    purpose = "it runs the cell as Triton kernels made for it"
    fresh = True

    def __init__(self, form: str | None = None):
        if form is not None and form not in forms.FORMS:
            known = ", ".join(repr(each) for each in forms.FORMS)
            raise UsageError(f"form: the gpu engine has {known}, got {form!r}")
        self.form = form
        self.name = "gpu" if form is None else f"gpu:{form}"

    def objection(
        self, signature: Signature, device: torch.device, dtype: torch.dtype
    ) -> str | None:
        """Why it cannot run the signature; None if it can."""
        if not _has_triton():
            return "triton is not installed"
        if device.type == "cpu":
            if os.environ.get(INTERPRET) != "1" or choice.asked_for() != self.name:
                return (
                    f"the tensors are on cpu, where it runs only if asked for by name and with "
                    f"{INTERPRET}=1, in Triton's interpreter, to test it"
                )
        elif device.type != "cuda":
            return f"the tensors are on {device}"
        elif dtype == torch.float64:
            return "it computes in float64 only in Triton's interpreter"
        if dtype not in ARITHMETIC:
            return f"it has no arithmetic for {str(dtype).removeprefix('torch.')}"
        if signature.spatial and self.form == forms.RESIDENT:
            return "@ is a convolution here, which runs in form 'steps' only"
        return None

    def way(self, signature: Signature, device: torch.device, dtype: torch.dtype) -> str:
        """The form in which it runs a signature, and why."""
        if signature.spatial:
            return f"{forms.STEPS}, convolutions are torch's: at each step, kernels between them"
        chosen = self._form(signature, device, dtype)
        return f"{chosen.name}, {chosen.reason}"

    def _form(self, signature: Signature, device: torch.device, dtype: torch.dtype) -> forms.Form:
        if self.form is not None:
            return forms.Form(self.form, "for it was asked for")
        return forms.choose(signature.text, dtype, forms.shared_memory(device))

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the forward plan."""
        with torch.no_grad(), loops.surroundings(call.x):
            if call.signature.spatial:
                return passes.forward(call, spatial.BACKEND, keep=keep)
            if keep and call.signature.options.save != "gates":
                return segments.forward(call, self._kept)
            return self._run(call).forward(keep=keep)

    def backward(
        self,
        call: Call,
        kept: Sequence[Tensor],
        cotangents: Cotangents,
        *,
        need_x: bool,
        need_weights: bool = True,
    ) -> Gradients:
        """Run the backward plan."""

        def gradient(call: Call, kept: Sequence[Tensor], cotangents: Cotangents) -> Gradients:
            run = self._run(call)
            return run.backward(kept, cotangents, need_x=need_x, need_weights=need_weights)

        with torch.no_grad(), loops.surroundings(call.x):
            if call.signature.spatial:
                return spatial_backward.backward(
                    call, spatial.BACKEND, kept, cotangents, need_x=need_x
                )
            if call.signature.options.save == "gates":
                return gradient(call, kept, cotangents)
            return segments.backward(call, kept, cotangents, self._kept, gradient)

    def _kept(self, call: Call) -> Result:
        return self._run(call).forward(keep=True)

    def _run(self, call: Call) -> _Run:
        return _Run(call, self._form(call.signature, call.x.device, call.x.dtype).name)


class _Run:
    """One call."""

    def __init__(self, call: Call, form: str):
        self.call, self.plan = call, call.signature.plan
        self.sizes, self.dtype = call.signature.size, call.x.dtype
        way = loops.Way(self.dtype, call.x.device.type == "cpu", call.population is not None)
        self.loops = loops.loops(call.signature.text, form, way)
        width = sum(self.sizes[node.size] for node in self.plan.forward.inputs.values())
        self.outside = Outside(call, width)
        self.arrays = self.outside.arrays
        self.names = [each.name for each in self.plan.graph.states]

    def _fresh(self, slot: str, node: Node) -> Tensor:
        dtype = torch.bool if node.vector.boolean else None
        return self.outside.empty(slot, self.sizes[node.size], dtype)

    def _carry(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Two buffers for each state, the first with its value before the loop."""
        carried, lead = [], self.call.lead
        for name, value in zip(self.names, values, strict=True):
            shape = (*value.shape[:lead], 2, *value.shape[lead:])
            buffers = value.new_empty(shape, dtype=ARITHMETIC[self.dtype])
            buffers.select(lead, 0).copy_(value)
            self.arrays[f"carry.{name}"] = buffers
            carried.append(buffers)
        return carried

    def _last(self, carried: Sequence[Tensor], last: int) -> list[Tensor]:
        """The states that lie in one of the two buffers, in memory of their own."""
        after = (each.select(self.call.lead, last) for each in carried)
        form = torch.contiguous_format
        return [each.to(self.dtype, copy=True, memory_format=form) for each in after]

    def _kept_slots(self) -> list[str]:
        """Slots of what the forward pass keeps, in the protocol's order."""
        plan = self.plan.forward
        return [*(f"state.{name}" for name in self.names), *plan.saved, *plan.saved_inputs]

    def forward(self, *, keep: bool) -> Result:
        """Inputs for all steps at once, then the loop."""
        plan = self.plan.forward
        hoisted.fill(self.outside, self.loops.inputs(keep=keep), keep=keep)
        output = self._fresh("output", plan.output)
        trace = [self._fresh(f"trace.{name}", node) for name, node in plan.trace.items()]
        if keep:
            for name in self.names:
                self._fresh(f"state.{name}", plan.next[name])
            for name, node in plan.saved.items():
                self._fresh(name, node)
        carried = self._carry(self.call.states)
        last = self.loops.forward(keep=keep).run(self.call, self.arrays)
        states = self._last(carried, last)
        kept = [self.arrays[slot] for slot in self._kept_slots()] if keep else []
        return Result(output, states, trace, kept)

    def backward(
        self, kept: Sequence[Tensor], cotangents: Cotangents, *, need_x: bool, need_weights: bool
    ) -> Gradients:
        """The loop from the last step to the first, then what is gathered over all steps."""
        made, loop = self.loops.backward(need_x=need_x)
        outside = self.outside
        for slot, value in zip(self._kept_slots(), kept, strict=True):
            outside.put(slot, value)
        outside.put("d_output", cotangents.output)
        for name, value in zip(self.plan.forward.trace, cotangents.trace, strict=True):
            outside.put(f"d_trace.{name}", value)
        d_inputs = outside.empty("d_inputs", outside.width)
        if made.missing:
            d_inputs.zero_()
        for slot, units in (*made.kept.items(), *made.kept_after.items()):
            outside.empty(slot, units)
        carried = self._carry(cotangents.states)
        last = loop.run(self.call, self.arrays)
        d_x = None
        if need_x:
            d_x = outside.empty("d_x", self.sizes["input"])
            if "x" not in self.plan.backward.inputs.values:
                d_x.zero_()
        if made.inputs is not None:
            hoisted.run(outside, made.inputs)
        weights = []
        if need_weights:
            outside.sum_up(made.loop_sums)
            outside.sum_up(made.input_sums)
            weights = outside.gradients([*made.loop_outers, *made.input_outers])
        states = self._last(carried, last)
        return Gradients(d_x, states, weights)
