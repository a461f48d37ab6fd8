"""A call whose steps are computed in pieces, so that the layer above can begin with the first ones.

What a pass starts once for all steps of a span is written down piece by piece: the arguments of a
piece are those of the whole with the addresses of arrays of every step moved to its first step.
Pieces but the last to run have even numbers of steps, so what is kept of two steps in turn is
where the next piece reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cellwright.engines.cpu.arrays import Array, Index, Kind
from cellwright.engines.cpu.fronts import Parts, Task, once
from cellwright.engines.cpu.members import Arguments, OneCall, Stride
from cellwright.engines.cpu.program import Program
from cellwright.engines.cpu.runtime import Addresses, Compiled
from cellwright.engines.cpu.scripted import Scripted
from cellwright.engines.cpu.slots import Packed
from cellwright.engines.protocol import Call

if TYPE_CHECKING:
    from cellwright.engines.cpu.matrices import Product


class Around(OneCall):
    """Programs that run once: before all pieces of a layer, or behind them.

    Args:
        number: of the layer; each has working memory of its own.
    """

    def __init__(self, number: int):
        super().__init__(f"layer {number}")
        self.tasks: list[Task] = []
        self.given: list[bytes] = []

    @property
    def count(self) -> int:
        return len(self.tasks)

    def add(
        self, program: int, rows: int, arguments: Arguments, count: int,
        strides: Mapping[int, Stride], work: int,
    ) -> None:  # fmt: skip
        self.tasks.append(once(program, rows, count, work))
        self.given.append(bytes(arguments)[: 8 * count])

    def clear(self) -> None:
        """Forget what has run."""
        self.tasks, self.given, self.held = [], [], []


class Layer:
    """The programs of one layer of a stack.

    Args:
        number: of the layer in the order of the pass.

    Attributes:
        before, after: programs that run once.
    """

    def __init__(self, number: int):
        self.before, self.after = Around(number), Around(number)
        self._inside: list[Task] = []
        self._given: list[bytes] = []

    def add(self, task: Task, arguments: Arguments) -> None:
        """Run a program in every piece, behind those that have been added.

        Args:
            task: the program.
            arguments: of all steps together; they are copied.
        """
        self._inside.append(task)
        self._given.append(bytes(arguments)[: 8 * task.source.shape[1]])

    def written(self) -> tuple[Parts, list[bytes]]:
        """Everything, and the arguments that each program is given."""
        parts = tuple(self.before.tasks), tuple(self._inside), tuple(self.after.tasks)
        return parts, [*self.before.given, *self._given, *self.after.given]

    def clear(self) -> None:
        """Forget what has run."""
        self.before.clear()
        self.after.clear()
        self._inside, self._given = [], []


class Piecewise(Scripted):
    """As :class:`Scripted`; what is started by step runs piece by piece.

    Args:
        call: one layer's recurrence.
        layer: where its programs are written.
        piece: steps of a piece, an even number.
        backward: pieces are taken from the last to the first.
    """

    def __init__(self, call: Call, layer: Layer, piece: int, *, backward: bool):
        assert piece % 2 == 0 and not call.reverse
        self._layer, self._piece, self._backward = layer, piece, backward
        super().__init__(call, layer.before)

    def start_by_step(
        self, program: Packed, at: Addresses, steps: int, rows: int, *, ring: bool = False
    ) -> None:
        compiled, script = program.compiled, self.script
        if program.address is None:
            program.address = compiled.weights.pack_in(script, program.weights, program.place)
        arguments = compiled.arguments_in(
            script, at, self.strides, program.address, steps, rows, ring=ring
        )
        # A program without a loop sees the rows of all steps as those of one.
        count = steps if compiled.program.looped else rows // self.rows
        cut = self._piece, self._backward
        self._layer.add(in_pieces(compiled, count, self.rows, *cut, ring=ring), arguments)

    def start_sums(self, compiled: Compiled, steps: int, rows: int) -> None:
        compiled.add_to(self._layer.after, self.at, self.strides, 0, steps, rows)

    def start_product(self, product: Product) -> None:
        product.add_to(self._layer.after)


@lru_cache(maxsize=1024)
def in_pieces(
    compiled: Compiled, steps: int, rows: int, piece: int, backward: bool, *, ring: bool = False
) -> Task:
    """A program in pieces, whose arguments are given as for all steps together.

    Args:
        compiled: the program; one without a loop sees the rows of all steps as those of one.
        steps, rows: of the sequence, and of the batch.
        piece: steps of a piece.
        backward: from the last piece to the first.
        ring: only two steps of each state are kept.
    """
    if backward:
        ends = np.arange(steps, 0, -piece)
        begins = np.maximum(ends - piece, 0)
    else:
        begins = np.arange(0, steps, piece)
        ends = np.minimum(begins + piece, steps)
    program, counts = compiled.program, ends - begins
    slots = program.slots
    source = np.tile(np.arange(len(slots)), (len(begins), 1))
    offset = np.zeros_like(source)
    for array in program.arrays():
        place = slots[array.slot]
        step = rows * array.stride * (1 if array.boolean else compiled.width)
        kept_twice = ring and array.slot.startswith("state.")
        if _moves(array, program) and not kept_twice:
            offset[:, place] = begins * step
        if array.index is Index.BEFORE:
            # Inside of the sequence, what the piece before has left is the state to begin with.
            initial, inside = slots[array.initial], begins > 0
            source[inside, initial] = place
            offset[inside, initial] = step if kept_twice else (begins[inside] - 1) * step
    changing = "steps" if program.looped else "rows"
    of_one = 1 if program.looped else rows
    offset[:, slots[changing]] = (counts - steps) * of_one
    own_rows = [rows] * len(begins) if program.looped else [*map(int, counts * rows)]
    return Task(compiled.address, own_rows, source, offset, rows * compiled.work * steps)


def _moves(array: Array, program: Program) -> bool:
    """Whether an array lies elsewhere at every step."""
    if program.looped:
        return array.index in (Index.TIME, Index.BEFORE)
    assert array.index in (Index.NONE, Index.TIME, Index.OWN), array
    by_row = array.kind in (Kind.ROWS, Kind.ROW) and array.index is not Index.OWN
    return by_row and array.slot not in program.temporaries
