"""The CPU engine: compiles a layer's programs once and runs them on torch's tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import (
    bfloat,
    jit,
    lanes,
    population,
    repeated,
    spatial,
    spatial_backward,
    training,
    wavefront,
)
from cellwright.engines.cpu.backward_pass import BackwardPass
from cellwright.engines.cpu.forward_pass import ForwardPass
from cellwright.engines.cpu.kernels import NO_BF16, kernels
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.slots import Slots
from cellwright.engines.cpu.spatial_kernels import BACKEND
from cellwright.engines.cpu.streaming import Stream
from cellwright.engines.cpu.turns import complete
from cellwright.engines.protocol import (
    Call,
    Cotangents,
    Engine,
    Gradients,
    Result,
    SideBySide,
    Training,
)
from cellwright.engines.signature import Signature


class CpuEngine(Engine):
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

    def side_by_side(self, signature: Signature, x: Tensor, *, keep: bool) -> SideBySide | None:
        """How both directions of a layer run at the same time; None where that is no faster."""
        return lanes if lanes.are_faster(signature, x, keep=keep) else None

    def stacked(
        self, signatures: Sequence[Signature], x: Tensor, *, keep: bool
    ) -> SideBySide | None:
        """How the layers of a stack run at the same time; None where that is no faster."""
        return wavefront if wavefront.are_faster(signatures, x, keep=keep) else None

    def forward(self, call: Call, *, keep: bool) -> Result:
        """Run the forward programs."""
        try:
            if call.signature.spatial:
                return spatial.forward(call, BACKEND, keep=keep)
            if call.population is not None:
                return population.forward(call, keep=keep)
            run = None if keep else repeated.ready(call)
            if run is not None:
                return run(call)
            return complete(ForwardPass(Slots(call), keep=keep).turns())
        finally:
            memory.release()

    def training(self, call: Call, *, stacked: bool) -> Training | None:
        """Calls like this one, where they come again."""
        try:
            return training.ready(call, self, stacked)
        finally:
            memory.release()

    def backward(
        self,
        call: Call,
        kept: Sequence[Tensor],
        cotangents: Cotangents,
        *,
        need_x: bool,
        need_weights: bool = True,
    ) -> Gradients:
        """Run the backward programs."""
        needs = {"need_x": need_x, "need_weights": need_weights}
        try:
            if call.signature.spatial:
                return spatial_backward.backward(call, BACKEND, kept, cotangents, need_x=need_x)
            if call.population is not None:
                return population.backward(call, kept, cotangents, **needs)
            return complete(BackwardPass(Slots(call), kept, cotangents, **needs).turns())
        finally:
            memory.release()

    def stream(
        self,
        signatures: Sequence[Signature],
        weights: Sequence[Sequence[Tensor]],
        lead: Sequence[int],
        sizes: Sequence[int],
        watched: Sequence[Tensor],
    ) -> Stream | None:
        """Prepared single steps, or None where a step is more than one program."""
        double = weights[0][0].dtype == torch.float64
        limit = jit.features_limit()
        if not all(kernels(each.text, double, limit).can_step for each in signatures):
            return None
        return Stream(signatures, weights, lead, sizes, watched)
