"""Emits sums over rows and steps: the gradients of vector parameters."""

from __future__ import annotations

from collections.abc import Mapping

from cellwright.engines.cpu.evaluation import Evaluation
from cellwright.engines.cpu.frame import Frame
from cellwright.engines.cpu.ops import Lanes, Value
from cellwright.engines.cpu.program import Program
from cellwright.ir import Node

SUM_ROWS = 64


def emit_sums(program: Program, sums: Mapping[Node, str], size: str, double: bool) -> str:
    """Sums over all rows and steps, unit by unit: the gradients of vector parameters.

    Args:
        program: its sources say where values lie; it has no stages.
        sums: value -> slot of the array (units) that its sum is added to.
        size: of all of these values, by name.
        double: float64.

    The generated function shares out the units; a unit's sum runs over the steps and rows from the
    last to the first, whoever computes it.
    """
    return _Sums(Frame(program, Lanes(double)), sums, program.sizes[size]).text()


class _Sums:
    def __init__(self, frame: Frame, sums: Mapping[Node, str], units: int):
        self.frame, self.sums, self.units = frame, sums, units
        for slot in sums.values():
            frame.program.slot(slot)
        frame.load_arguments()

    def text(self) -> str:
        """Emit everything."""
        frame, e = self.frame, self.frame.e
        first, end = frame.shared(-(-self.units // e.lanes.count))
        with e.loop(e.i64(0), frame.argument("steps")) as i:
            frame.enter_step(i)
            # Some rows at a time, so that the lines of memory that they share stay near.
            with (
                e.loop(frame.row_from, frame.row_to, SUM_ROWS) as row,
                e.loop(first, end) as block,
            ):
                self._add_rows(row, block)
        e.b.ret_void()
        return str(frame.module)

    def _places(self, block: Value) -> tuple[Value, Value | None, list[Value]]:
        """First unit, mask, and the addresses of the sums of a block."""
        e = self.frame.e
        unit = e.b.mul(block, e.i64(e.lanes.count))
        mask = self.frame.mask(self.units, e.lanes.count, unit)
        return unit, mask, [e.at(self.frame.address(slot), unit) for slot in self.sums.values()]

    def _store(self, value: Value, place: Value, mask: Value | None) -> None:
        if mask is None:
            self.frame.e.store(value, place)
        else:
            self.frame.e.masked_store(value, place, mask)

    def _add_rows(self, row: Value, block: Value) -> None:
        """Go on with the sums of a block over some rows, in registers."""
        frame, e, b = self.frame, self.frame.e, self.frame.e.b
        rows = frame.at_most(b.sub(frame.row_to, row), SUM_ROWS)
        backwards = b.icmp_signed("!=", frame.argument("reverse"), e.i64(0))
        last = b.sub(frame.row_to, e.i64(1))
        unit, mask, places = self._places(block)
        held = [e.load(p) if mask is None else e.masked_load(p, mask) for p in places]

        def add(r: Value, running: list[Value]) -> list[Value]:
            turn = b.add(row, r)
            here = b.select(backwards, turn, b.sub(last, turn))
            evaluation = Evaluation(frame, here, unit, mask, frame.program.sources, {})
            return [
                b.fadd(total, evaluation.value(each))
                for total, each in zip(running, self.sums, strict=True)
            ]

        for total, place in zip(e.fold(rows, held, add), places, strict=True):
            self._store(total, place, mask)
