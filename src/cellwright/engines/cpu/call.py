"""One call of the CPU engine: its tensors, and the addresses that programs are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, once
from cellwright.engines.cpu.kernels import kernels
from cellwright.engines.cpu.lending import lender
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.runtime import Compiled
from cellwright.engines.cpu.spans import Span
from cellwright.engines.protocol import Call
from cellwright.ir import Node


class BoundCall:
    """A call's tensors as addresses, by the names of the programs' slots.

    Arrays of every step are seen through a window: ``at`` has the address of the first step of
    the span that was entered last.
    """

    def __init__(self, call: Call):
        self.call = call
        self.dtype = call.x.dtype
        self.double = self.dtype == torch.float64
        self.width = 8 if self.double else 4
        self.kernels = kernels(call.signature.text, self.double, jit.features_limit())
        self.plan = self.kernels.signature.plan
        self.steps, self.rows = call.x.shape[0], call.x.shape[1]
        self.reverse = call.reverse
        self.sizes = call.signature.size
        self.save = call.signature.options.save
        self.names = [each.name for each in self.plan.graph.states]
        self.at: dict[str, int] = {}
        self._held: list[Tensor] = []  # what the addresses point into
        self._by_step: dict[str, Tensor] = {}  # arrays of every step
        self._scattered: dict[str, Tensor] = {}  # arrays of every step to be copied for a span
        self._copied: list[Tensor] = []
        self.weights = [
            each if each.is_contiguous() else each.contiguous() for each in call.weights
        ]
        bases = [each.data_ptr() for each in self.weights]
        for slot, tensor, skipped in self.kernels.places:
            self.at[slot] = bases[tensor] + skipped
        self.put_steps("x", call.x)
        for name, state in zip(self.names, call.states, strict=True):
            self.put(f"initial.{name}", state)
        self.masks: dict[str, Tensor] = {}  # those that are the same at every step
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            if spec.per_step:
                whole = mask.expand(self.steps, self.rows, self.sizes[spec.size])
                self.put_steps(f"stream.{spec.name}", whole)
            else:
                whole = mask.expand(self.rows, self.sizes[spec.size])
                self.masks[spec.name] = self.put(f"stream.{spec.name}", whole)
        self.once: dict[str, Tensor] = {}
        if self.plan.forward.once:
            self._compute_once()

    # Memory ----------------------------------------------------------------------------------

    def put(self, slot: str, tensor: Tensor) -> Tensor:
        """Let a slot be a tensor's numbers, copied if they do not lie one after the other."""
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        self._held.append(tensor)
        self.at[slot] = tensor.data_ptr()
        return tensor

    def put_steps(self, slot: str, tensor: Tensor) -> Tensor:
        """Let a slot be what a tensor (T, B, ...) holds for the steps of a span."""
        if tensor.is_contiguous():
            self._by_step[slot] = tensor
            self.at[slot] = tensor.data_ptr()
        else:
            self._scattered[slot] = tensor
        return tensor

    def fresh(self, slot: str, node: Node) -> Tensor:
        """Let a slot be new memory for a value of every step."""
        shape = (self.steps, self.rows, self.sizes[node.size])
        return self.put_steps(slot, empty(shape, self.dtype_of(node)))

    def kept(self, slot: str, node: Node) -> Tensor:
        """The same, for what nobody but the backward pass will see."""
        shape = (self.steps, self.rows, self.sizes[node.size])
        return self.put_steps(slot, lender.take(shape, self.dtype_of(node)))

    def work(self, slot: str, elements: int, dtype: torch.dtype | None = None) -> Tensor:
        """Let a slot be working memory, with anything in it."""
        tensor = memory.take(slot, elements, dtype or self.dtype)
        self.at[slot] = tensor.data_ptr()
        return tensor

    def work_rows(self, slot: str, node: Node, rows: int) -> Tensor:
        """Working memory for so many rows of a value."""
        units = self.sizes[node.size]
        whole = self.work(slot, rows * units, self.dtype_of(node))
        return whole[: rows * units].view(rows, units)

    def dtype_of(self, node: Node) -> torch.dtype:
        """Of the tensor that holds a value."""
        return torch.bool if node.vector.boolean else self.dtype

    def bytes_of(self, nodes: Iterable[Node]) -> int:
        """Of one row of some values."""
        return sum(self.sizes[n.size] * (1 if n.vector.boolean else self.width) for n in nodes)

    # Spans -----------------------------------------------------------------------------------

    def start(self, span: Span) -> int:
        """The first step of a span in the sequence's own count."""
        return self.steps - span.stop if self.reverse else span.first

    def enter(self, span: Span) -> int:
        """Let arrays of every step begin with the steps of a span; returns their number."""
        count, start = span.stop - span.first, self.start(span)
        if count < self.steps:
            for slot in self._by_step:
                self.at[slot] = self.address(slot, start)
        self._copied.clear()
        for slot, tensor in self._scattered.items():
            self._copied.append(tensor[start : start + count].contiguous())
            self.at[slot] = self._copied[-1].data_ptr()
        return count

    def address(self, slot: str, step: int) -> int:
        """Where an array of every step has that step."""
        tensor = self._by_step[slot]
        return tensor.data_ptr() + step * (tensor.nbytes // self.steps)

    def repeat_masks(self, steps: int) -> None:
        """Masks that are the same at every step, for programs that see all rows at once."""
        for name, mask in self.masks.items():
            self.put(f"stream_rows.{name}", mask.repeat(steps, 1))

    # Values of parameters alone -----------------------------------------------------------------

    def _compute_once(self) -> None:
        signature = self.kernels.signature
        values = once.values(signature, self.weights)
        for name, value in zip(self.plan.forward.once, values, strict=True):
            self.once[name] = self.put(f"value.{name}", value)

    def differentiate_once(self, totals: dict[str, Tensor]) -> None:
        """Carry the gradients of such values on to the parameters behind them."""
        signature = self.kernels.signature
        given = {
            name: totals.get(name, torch.zeros_like(self.once[name]))
            for name in once.arriving(signature)
        }
        found = once.gradients(signature, self.weights, given)
        for name, value in zip(once.parameters(signature), found, strict=True):
            totals[name] = totals[name] + value if name in totals else value


class Packed:
    """A compiled program and its weights, which are put in order when it first runs.

    Args:
        compiled: the program.
        weights: of the call.
        place: name of the working memory for them.
    """

    def __init__(self, compiled: Compiled, weights: Sequence[Tensor], place: str):
        self._compiled, self._weights, self._place = compiled, weights, place
        self._address: int | None = None

    def run(
        self, at: dict[str, int], steps: int, rows: int, *, reverse: bool = False,
        ring: bool = False,
    ) -> None:  # fmt: skip
        """As :meth:`Compiled.run`."""
        if self._address is None:
            self._address = self._compiled.pack(self._weights, self._place)
        self._compiled.run(at, self._address, steps, rows, reverse=reverse, ring=ring)
