"""A pass that is written down once and carried out again and again, on other tensors.

What surrounds the loops of a small recurrence costs more than the loops. A pass is written down
with stand-ins for the tensors of a call: memory of the same shapes that nobody touches. An address
in the arguments of a program that lies in a stand-in, or near it, moves with the tensor that will
be in its place; all others are working memory of this thread, which stays. To carry the pass out is
then to make its results, to say where they and the call's tensors are, and to run a script.
"""

from __future__ import annotations

import ctypes
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cellwright.engines.cpu import lending, pages, threads
from cellwright.engines.cpu.memory import memory
from cellwright.engines.cpu.runtime import Addresses, Compiled
from cellwright.engines.cpu.slots import Packed, Slots
from cellwright.engines.cpu.threads import Task
from cellwright.engines.protocol import Call
from cellwright.ir import Node

if TYPE_CHECKING:
    from cellwright.engines.cpu.matrices import Product

NEAR = 1 << 12
"""Bytes around a stand-in, beside one more of its length on either side, that are its own too."""


class Part(NamedTuple):
    """An array inside of a block: the first byte, how many, shape and dtype."""

    begin: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class StandIns:
    """Stand-ins for tensors, in the order in which their addresses will be given.

    Attributes:
        tensors: first those of the call, then the results.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._begins: list[int] = []  # of their memory, in the order of addresses
        self._numbers: list[tuple[int, int]] = []  # end of that memory, which tensor
        self._held: list[Tensor] = []

    def add(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """One more."""
        elements = math.prod(shape)
        around = elements + NEAR // dtype.itemsize
        whole = torch.empty(2 * around + elements, dtype=dtype)
        made = whole[around : around + elements].view(tuple(shape))
        begin, end = whole.data_ptr(), whole.data_ptr() + whole.nbytes
        place = bisect_right(self._begins, begin)
        self._begins.insert(place, begin)
        self._numbers.insert(place, (end, len(self.tensors)))
        self.tensors.append(made)
        self._held.append(whole)
        return made

    def copy(self) -> StandIns:
        """The same ones, to which others can be added."""
        made = StandIns()
        for own, each in zip(vars(made).values(), vars(self).values(), strict=True):
            own.extend(each)
        return made

    def find(self, number: int) -> tuple[int, int] | None:
        """Which of them an address lies in or near, and its distance from the beginning."""
        place = bisect_right(self._begins, number) - 1
        if place < 0 or number >= self._numbers[place][0]:
            return None
        which = self._numbers[place][1]
        return which, number - self.tensors[which].data_ptr()


class Recorded(Slots):
    """As :class:`Slots`; programs that are started are written down as tasks of a script.

    Args:
        call: of stand-ins.
        stand_ins: they, to which results are added.

    Attributes:
        tasks: what has been written down.
        block: what is kept for the backward pass, in one piece; None if nothing was.
        parts: the arrays in it.
    """

    def __init__(self, call: Call, stand_ins: StandIns):
        self.stand_ins = stand_ins
        self.tasks: list[Task] = []
        self.block: Tensor | None = None
        self.parts: list[Part] = []
        super().__init__(call)

    # Memory ----------------------------------------------------------------------------------

    def empty(self, shape: Sequence[int]) -> Tensor:
        return self.stand_ins.add(shape, self.dtype)

    def zeros(self, shape: Sequence[int]) -> Tensor:
        made = self.empty(shape)
        self.clear(made)
        return made

    def copied(self, tensor: Tensor) -> Tensor:
        made = self.empty(tensor.shape)
        self.copy(made, tensor)
        return made

    def fresh(self, slot: str, node: Node) -> Tensor:
        made = self.empty((*self.lead, self.steps, self.rows, self.sizes[node.size]))
        return self.put_steps(slot, made)

    def fresh_together(self, nodes: Mapping[str, Node]) -> dict[str, Tensor]:
        rows = (self.steps, self.rows)
        kinds = [((*rows, self.sizes[n.size]), self.dtype_of(n)) for n in nodes.values()]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
        begins = [0, *accumulate((-(-n // lending.APART) + 1) * lending.APART for n in sizes)]
        self.block = self.empty((begins[-1] // self.width,))
        self.parts = [
            Part(begin, n, *kind) for begin, n, kind in zip(begins, sizes, kinds, strict=False)
        ]
        found = dict(zip(nodes, taken_apart(self.block, self.parts), strict=True))
        for slot, tensor in found.items():
            self.put_steps(slot, tensor)
        return found

    def copy(self, into: Tensor, source: Tensor) -> None:
        assert into.is_contiguous() and source.is_contiguous()
        self._note("copy", into.data_ptr(), source.data_ptr(), into.nbytes)

    def clear(self, tensor: Tensor) -> None:
        self._note("clear", tensor.data_ptr(), tensor.nbytes)

    def _note(self, kind: str, *numbers: int) -> None:
        self.tasks.append(Task((ctypes.c_int64 * len(numbers))(*numbers), kind))

    # Programs --------------------------------------------------------------------------------

    def start(
        self, program: Packed, at: Addresses, steps: int, rows: int, *, ring: bool = False
    ) -> None:
        compiled = program.compiled
        if program.address is None:
            program.address, packing = compiled.weights.task(program.weights, program.place)
            self.tasks += [] if packing is None else [packing]
        task = compiled.task(at, program.address, steps, rows, reverse=self.reverse, ring=ring)
        self.tasks.append(task)

    def start_sums(self, compiled: Compiled, steps: int, rows: int) -> None:
        self.tasks.append(compiled.task_of_sums(self.at, steps, rows, reverse=self.reverse))

    def start_product(self, product: Product) -> None:
        if product.values:
            self.tasks.append(product.task())


class Recording:
    """What has been written down, to be carried out.

    Args:
        slots: of the pass.
        given: stand-ins for the tensors of a call, which come first.
        results: the pass's.
        shapes: that they will have.
    """

    def __init__(
        self, slots: Recorded, given: StandIns, results: Sequence[Tensor],
        shapes: Sequence[Sequence[int]],
    ):  # fmt: skip
        tensors, first = slots.stand_ins.tensors, len(given.tensors)
        moves = []
        for task in slots.tasks:
            place = ctypes.addressof(task.arguments)
            for number, value in enumerate(task.arguments):
                found = slots.stand_ins.find(value)
                if found is not None:
                    moves.append((place + 8 * number, *found))
        script = threads.Script(slots.tasks, moves, len(tensors))
        self._bases, self._run = script.bases, script.run
        self._held = slots.kernels, script
        shape_of = {id(each): shape for each, shape in zip(results, shapes, strict=True)}
        self._makers = [
            _maker(each, shape_of.get(id(each), each.shape), lent=each is slots.block)
            for each in tensors[first:]
        ]
        order = {id(each): number for number, each in enumerate(tensors[first:])}
        places = [order[id(each)] for each in results]
        self._places = None if places == [*range(len(self._makers))] else places
        self._version = memory.version

    @property
    def holds(self) -> bool:
        """Whether the working memory is still that into which its addresses point."""
        return self._version == memory.version

    def run(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The results for these tensors."""
        whole = [each if each.is_contiguous() else each.contiguous() for each in given]
        made = [make() for make in self._makers]
        self._bases[:] = [*map(Tensor.data_ptr, whole), *map(Tensor.data_ptr, made)]
        self._run()
        return made if self._places is None else [made[number] for number in self._places]


def _maker(like: Tensor, shape: Sequence[int], *, lent: bool) -> Callable[[], Tensor]:
    """What makes tensors like this one, with that shape."""
    if lent and like.nbytes >= lending.FROM:
        return partial(lending.lender.take, tuple(shape), like.dtype)
    if like.nbytes >= pages.FROM:
        return partial(pages.empty, tuple(shape), like.dtype)
    strides = like.view(tuple(shape)).stride()
    return partial(pages.quick_empty, tuple(shape), strides, like.dtype)


def taken_apart(block: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """The arrays inside of a block."""
    whole = block.view(torch.uint8)
    return [
        whole[begin : begin + size].view(dtype).view(shape) for begin, size, shape, dtype in parts
    ]
