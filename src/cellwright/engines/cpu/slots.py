"""Where a call's tensors are, by the names of the programs' slots, and how programs are started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.jobs import Job
from cellwright.engines.cpu.kernels import kernels
from cellwright.engines.cpu.lending import lender
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.pages import empty
from cellwright.engines.cpu.runtime import Addresses, Compiled
from cellwright.engines.cpu.spans import Span
from cellwright.engines.protocol import Call
from cellwright.ir import Node

if TYPE_CHECKING:
    from cellwright.engines.cpu.matrices import Product
    from cellwright.engines.cpu.members import Stride


class Slots:
    """One call: its tensors as addresses, its working memory; programs run as they are started.

    Arrays of every step are seen through a window: ``at`` has the address of the first step of
    the span that was entered last. :class:`~cellwright.engines.cpu.scripted.Scripted` has the same
    methods for calls whose programs are written down first, populations among them.

    Attributes:
        lead: the axis of a population's members, which its tensors have in front.
        team: threads that share the rows.
        at: addresses by slot.
        initial: the states before the first step.
        masks: those that are the same at every step.
    """

    lead: tuple[int, ...] = ()

    def __init__(self, call: Call):
        self.call = call
        self.dtype = call.x.dtype
        self.double = self.dtype == torch.float64
        self.width = 8 if self.double else 4
        self.kernels = kernels(call.signature.text, self.double, jit.features_limit())
        self.plan = self.kernels.signature.plan
        self.steps, self.rows = call.x.shape[-3], call.x.shape[-2]
        self.reverse, self.save = call.reverse, call.signature.options.save
        self.sizes = call.signature.size
        self.names = [each.name for each in self.plan.graph.states]
        self.at: dict[str, int] = {}
        self._held: dict[str, Tensor] = {}  # what the addresses point into
        self._by_step: dict[str, Tensor] = {}  # arrays of every step
        self._scattered: dict[str, Tensor] = {}  # arrays of every step to be copied for a span
        self._copied: list[Tensor] = []
        self.weights = [each if each.is_contiguous() else self.whole(each) for each in call.weights]
        self._place_parameters()
        self.put_steps("x", call.x)
        self.initial = {
            name: self.put(f"initial.{name}", state)
            for name, state in zip(self.names, call.states, strict=True)
        }
        self.masks: dict[str, Tensor] = {}
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            rows = (self.rows, self.sizes[spec.size])
            if spec.per_step:
                self.put_steps(f"stream.{spec.name}", mask.expand(*self.lead, self.steps, *rows))
            else:
                whole = self.put(f"stream.{spec.name}", mask.expand(*self.lead, *rows))
                self.masks[spec.name] = whole

    @property
    def team(self) -> int:
        return threads.count()

    # Memory ----------------------------------------------------------------------------------

    def _place_parameters(self) -> None:
        bases = [each.data_ptr() for each in self.weights]
        for slot, tensor, skipped in self.kernels.places:
            self.at[slot] = bases[tensor] + skipped

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor, copied if its numbers do not lie one after the other."""
        return tensor.contiguous()

    def point(self, slot: str, tensor: Tensor, skipped: int = 0) -> None:
        """Let a slot be what lies so many bytes behind a tensor's beginning."""
        self.at[slot] = tensor.data_ptr() + skipped

    def point_at_step(self, slot: str, source: str, step: int) -> None:
        """Let a slot be one step of an array of every step."""
        self.at[slot] = self.address(source, step)

    def put(self, slot: str, tensor: Tensor) -> Tensor:
        """Let a slot be a tensor's numbers, copied if need be."""
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        self._held[slot] = tensor
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
        dtype = torch.bool if node.vector.boolean else self.dtype
        shape = (*self.lead, self.steps, self.rows, self.sizes[node.size])
        return self.put_steps(slot, empty(shape, dtype))

    def fresh_together(self, nodes: Mapping[str, Node]) -> dict[str, Tensor]:
        """Let slots be new memory for what nobody but the backward pass will see."""
        rows = (self.steps, self.rows)
        kinds = [((*rows, self.sizes[n.size]), self.dtype_of(n)) for n in nodes.values()]
        found = dict(zip(nodes, lender.take_together(kinds), strict=True))
        for slot, tensor in found.items():
            self.put_steps(slot, tensor)
        return found

    def empty(self, shape: Sequence[int]) -> Tensor:
        """New memory for a result, with anything in it."""
        return empty(tuple(shape), self.dtype)

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """New memory for a result, with zeros in it."""
        return torch.zeros(tuple(shape), dtype=self.dtype)

    def copied(self, tensor: Tensor) -> Tensor:
        """A result with these numbers."""
        return tensor.clone()

    def copy(self, into: Tensor, source: Tensor) -> None:
        """Copy numbers to memory of the same shape."""
        into.copy_(source)

    def clear(self, tensor: Tensor) -> None:
        """Set numbers to zero."""
        tensor.zero_()

    def take(self, name: str, elements: int, dtype: torch.dtype | None = None) -> Tensor:
        """Working memory, with anything in it."""
        return memory.take(name, elements, dtype or self.dtype)

    def work(self, slot: str, elements: int, dtype: torch.dtype | None = None) -> Tensor:
        """Let a slot be working memory."""
        tensor = self.take(slot, elements, dtype)
        self.at[slot] = tensor.data_ptr()
        return tensor

    def work_rows(self, slot: str, node: Node, rows: int) -> Tensor:
        """Working memory for so many rows of a value."""
        units = self.sizes[node.size]
        whole = self.work(slot, rows * units, self.dtype_of(node))
        return whole[: rows * units].view(rows, units)

    def pair(self, slot: str, units: int) -> Tensor:
        """Let a slot be memory for a state at two steps."""
        elements = 2 * self.rows * units
        return self.work(slot, elements)[:elements].view(2, self.rows, units)

    def dtype_of(self, node: Node) -> torch.dtype:
        """Of the tensor that holds a value."""
        return torch.bool if node.vector.boolean else self.dtype

    def bytes_of(self, nodes: Iterable[Node]) -> int:
        """Of one row of some values."""
        return sum(self.sizes[n.size] * (1 if n.vector.boolean else self.width) for n in nodes)

    def repeat_masks(self, steps: int) -> None:
        """Masks that are the same at every step, for programs that see all rows at once."""
        for name, mask in self.masks.items():
            every = mask.unsqueeze(-3).expand(*self.lead, steps, *mask.shape[-2:])
            self.put(f"stream_rows.{name}", every)

    # Spans -----------------------------------------------------------------------------------

    def start_of(self, span: Span) -> int:
        """The first step of a span in the sequence's own count."""
        return self.steps - span.stop if self.reverse else span.first

    def enter(self, span: Span) -> int:
        """Let arrays of every step begin with the steps of a span; returns their number."""
        count, start = span.stop - span.first, self.start_of(span)
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
        return tensor.data_ptr() + step * self.rows * tensor.shape[-1] * tensor.element_size()

    # Programs --------------------------------------------------------------------------------

    def start(
        self, program: Packed, at: Addresses, steps: int, rows: int, *, ring: bool = False
    ) -> None:
        """Run a program.

        Args:
            program: it, and its weights.
            at: addresses of its arrays.
            steps, rows: extents of its loop.
            ring: only two steps of each state are kept.
        """
        program.run(at, steps, rows, reverse=self.reverse, ring=ring)

    def start_by_step(
        self, program: Packed, at: Addresses, steps: int, rows: int, *, ring: bool = False
    ) -> None:
        """The same for a program that may run as soon as its first steps can.

        Of x, or of the gradient of the output, it reads at each step no more than that step.
        """
        self.start(program, at, steps, rows, ring=ring)

    def start_sums(self, compiled: Compiled, steps: int, rows: int) -> None:
        """Run a program of sums."""
        compiled.run_sums(self.at, steps, rows, reverse=self.reverse)

    def start_product(self, product: Product) -> None:
        """Carry out the products for gradients of matrices."""
        product.run()

    def moves(self, job: Job, gradient: Tensor) -> Mapping[str, Stride]:
        """How the addresses of such a product move from member to member."""
        return {}

    # Members ---------------------------------------------------------------------------------

    def by_member(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The tensors of each member."""
        return [tensors]

    def joined(self, values: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Each member's value, of that shape, as one tensor."""
        return values[0]


class Packed:
    """A compiled program and its weights, which are put in order when it first runs.

    Args:
        compiled: the program.
        weights: of the call.
        place: name of the working memory for them.
    """

    def __init__(self, compiled: Compiled, weights: Sequence[Tensor], place: str):
        self.compiled, self.weights, self.place = compiled, weights, place
        self.address: int | None = None

    def run(self, at: Addresses, steps: int, rows: int, *, reverse: bool, ring: bool) -> None:
        """As :meth:`Compiled.run`."""
        if self.address is None:
            self.address = self.compiled.weights.pack(self.weights, self.place)
        self.compiled.run(at, self.address, steps, rows, reverse=reverse, ring=ring)
