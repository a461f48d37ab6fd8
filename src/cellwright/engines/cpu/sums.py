"""Emits sums over rows and steps: the gradients of vector parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cellwright.engines.cpu.evaluation import Evaluation
from cellwright.engines.cpu.frame import Frame
from cellwright.engines.cpu.ops import Lanes, Value
from cellwright.engines.cpu.program import Program
from cellwright.ir import Node

SUM_ROWS = 64

SIDE_BY_SIDE, HELD = 4, 8
"""Vectors of units that are added up together, so that what is read of a row is a piece of memory
rather than a line; and vectors of sums in registers, from which on there are fewer."""


def emit_sums(program: Program, sums: Mapping[Node, Sequence[str]], size: str, double: bool) -> str:
    """Sums over all rows and steps, unit by unit: the gradients of vector parameters.

    Args:
        program: its sources say where values lie; it has no stages.
        sums: value -> slots of arrays (units): its sum is added to the first, and is what the
            others hold then.
        size: of all of these values, by name.
        double: float64.

    The generated function shares out the units; a unit's sum runs over the steps and rows from the
    last to the first, whoever computes it.
    """
    return _Sums(Frame(program, Lanes(double)), sums, program.sizes[size]).text()


class _Sums:
    def __init__(self, frame: Frame, sums: Mapping[Node, Sequence[str]], units: int):
        self.frame, self.sums, self.units = frame, sums, units
        for slots in sums.values():
            for slot in slots:
                frame.program.slot(slot)
        frame.load_arguments()

    def text(self) -> str:
        """Emit everything."""
        frame, e = self.frame, self.frame.e
        wide = min(SIDE_BY_SIDE, max(1, HELD // len(self.sums)))
        whole = self.units // (wide * e.lanes.count)  # blocks of so many vectors
        done = whole * wide
        rest = -(-self.units // e.lanes.count) - done
        with e.loop(e.i64(0), frame.argument("steps")) as i:
            frame.enter_step(i)
            # Some rows at a time, so that the lines of memory that they share stay near.
            with e.loop(frame.row_from, frame.row_to, SUM_ROWS) as row:
                for vectors, begin, count in ((wide, 0, whole), (1, done, rest)):
                    if count:
                        with e.loop(*frame.shared(count)) as block:
                            self._add_rows(row, block, vectors, begin, tail=begin == done)
        e.b.ret_void()
        return str(frame.module)

    def _add_rows(self, row: Value, block: Value, vectors: int, begin: int, *, tail: bool) -> None:
        """Go on with the sums of a block over some rows, in registers.

        Args:
            row: the first.
            block: number of the block.
            vectors: of a block.
            begin: vectors before the first block.
            tail: the last one's vector may have fewer units than lanes.
        """
        frame, e, b = self.frame, self.frame.e, self.frame.e.b
        rows = frame.at_most(b.sub(frame.row_to, row), SUM_ROWS)
        backwards = b.icmp_signed("!=", frame.argument("reverse"), e.i64(0))
        last = b.sub(frame.row_to, e.i64(1))
        first = b.mul(block, e.i64(vectors * e.lanes.count))
        units = [b.add(first, e.i64((begin + v) * e.lanes.count)) for v in range(vectors)]
        masks = [frame.mask(self.units, e.lanes.count, u) if tail else None for u in units]
        places = [
            ([e.at(frame.address(slot), unit) for slot in slots], mask)
            for unit, mask in zip(units, masks, strict=True)
            for slots in self.sums.values()
        ]
        held = [
            e.load(each[0]) if mask is None else e.masked_load(each[0], mask)
            for each, mask in places
        ]

        def add(r: Value, running: list[Value]) -> list[Value]:
            turn = b.add(row, r)
            here = b.select(backwards, turn, b.sub(last, turn))
            values = []
            for unit, mask in zip(units, masks, strict=True):
                evaluation = Evaluation(frame, here, unit, mask, frame.program.sources, {})
                values += [evaluation.value(each) for each in self.sums]
            return [b.fadd(total, each) for total, each in zip(running, values, strict=True)]

        for total, (into, mask) in zip(e.fold(rows, held, add), places, strict=True):
            for place in into:
                if mask is None:
                    e.store(total, place)
                else:
                    e.masked_store(total, place, mask)
