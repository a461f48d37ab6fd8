"""Emits the code of a loop: the stages of a plan over rows, units and time.

The generated function, in pseudo-code (``run(arguments, first_row, end_row, share, shares)``):

    for i in 0 .. T-1 (or T-1 .. 0 for gradients), or for 96 rows if all steps are one:
        for stage (those without products, where no units are shared out, for 4 rows at a time):
            where factors are bfloat16 numbers: for row: operands as words
            for each reduction: for row: total over units, kept for the row
            for each block of units (shared out where shares > 1):
                for up to 48 rows:
                    micro-kernels: weights x operands -> tile
                    for row, for vector of units: the equations, on the tile; store
            or, without products: for row, for vector of units: the equations; store
            barrier (where shares > 1, and something follows)
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from llvmlite import ir

from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources
from cellwright.engines.cpu.evaluation import Evaluation
from cellwright.engines.cpu.evaluation import Tiles as TileValues
from cellwright.engines.cpu.frame import TILE_ROWS, Frame
from cellwright.engines.cpu.ops import I1, I8, I32, I64, Lanes, Value
from cellwright.engines.cpu.product import LINE
from cellwright.engines.cpu.program import VECTOR, Program, weights_slot
from cellwright.engines.cpu.targets import Group, Panels, find_targets, group
from cellwright.engines.cpu.tiles import Tiles
from cellwright.engines.cpu.waiting import BARRIER
from cellwright.ir import ONE, Node, topological
from cellwright.plan import Stage

NEAR_ROWS = 4
"""Rows that go through stages without products before the next ones do: few enough to stay in the
processor's nearest cache, and enough that their sums do not wait for each other."""

TOGETHER = 96
"""Rows that go through all stages before the next, where they are those of all steps: what one
stage writes is still near when the following reads it."""


def emit(program: Program, double: bool) -> str:
    """The module's text; fills in the program's groups, slots and temporaries."""
    lanes = Lanes(double)
    program.plan_temporaries(lanes.count)
    _find_groups(program, lanes)
    return _Body(Frame(program, lanes)).text()


def _find_groups(program: Program, lanes: Lanes) -> None:
    """Group the products of every stage; each group has an argument for its weights."""
    uses: dict[Node, int] = {}
    for stage in program.stages:
        for each in stage.nodes:
            for source in each.inputs:
                uses[source] = uses.get(source, 0) + 1

    order = {each: index for index, each in enumerate(topological(program.stores))}

    def position(product: Node) -> tuple[bool, str, int]:
        """The place of a term in its chain: x first, then by memory, so that neighbours meet.

        Going forward the order must not depend on what is stored: a state may lie in the output's
        place, and a vector of the cell in memory of its own, as traced or as saved. There it is
        states, by their names, and then vectors, as the equations have them.
        """
        operand = product.inputs[1]
        if operand in program.order:
            return program.order[operand]
        if operand in program.sources:
            array = program.sources[operand]
            name = f"state.{operand.attribute('name')}" if operand.op == "state" else array.slot
            return operand.op != "input", name, array.offset
        if not program.backward:
            return True, VECTOR, order[operand]
        array = program.stores[operand][0]
        return True, array.slot, array.offset

    for index, stage in enumerate(program.stages):
        targets = find_targets(stage, uses, set(program.stores), position)
        program.groups.append(group(targets, program.sizes, lanes.count, position))
        for number in range(len(program.groups[-1])):
            program.slot(weights_slot(index, number))
    program.plan_words()


class _Body:
    def __init__(self, frame: Frame):
        self.frame, self.program = frame, frame.program
        self.e, self.lanes = frame.e, frame.lanes
        frame.load_arguments()
        self.tiles = Tiles(frame)

    def text(self) -> str:
        """Emit everything."""
        e = self.e
        with e.loop(e.i64(0), self.frame.argument("steps")) as i:
            self.frame.enter_step(i)
            if self.program.looped:
                self._prefetch_numbers()
            if self.program.looped or len(self.program.stages) == 1:
                following = e.b.add(i, e.i64(1))
                self._stages(e.b.icmp_signed("<", following, self.frame.argument("steps")))
            else:
                with self.frame.some_rows(TOGETHER):
                    self._stages(ir.Constant(I1, 1))
        e.b.ret_void()
        return str(self.frame.module)

    def _prefetch_numbers(self) -> None:
        """Bring near the single numbers of rows that the following step reads."""
        e, frame = self.e, self.frame
        arrays = [
            each
            for each in dict.fromkeys(self.program.sources.values())
            if each.kind is Kind.ROW and each.index is Index.TIME
        ]
        if arrays:
            with e.loop(frame.row_from, frame.row_to, LINE // self.lanes.bytes) as row:
                for each in arrays:
                    frame.prefetch(each, e.at(frame.base(each), frame.offset(each, row)))

    def _stages(self, more: Value) -> None:
        """All stages; behind the last one threads wait for each other if there is ``more``."""
        stages = list(enumerate(self.program.stages))
        for products, found in groupby(stages, key=lambda each: bool(each[1].products)):
            run = list(found)
            if products or len(run) == 1:
                self._in_turn(run, more)
                continue
            alone = self.e.b.icmp_signed("==", self.frame.shares, self.e.i64(1))
            with self.e.b.if_else(alone) as (whole_rows, shares_of_rows):
                with whole_rows, self.frame.few_rows(NEAR_ROWS):
                    for index, stage in run:
                        self._stage(index, stage, self._done_before(index))
                with shares_of_rows:
                    self._in_turn(run, more)

    def _in_turn(self, run: Iterable[tuple[int, Stage]], more: Value) -> None:
        """Stages one after the other, each for all rows."""
        for index, stage in run:
            self._stage(index, stage, self._done_before(index))
            last = index + 1 == len(self.program.stages)
            self._barrier(more if last else ir.Constant(I1, 1))

    def _done_before(self, index: int) -> Sources:
        """What lies in memory before a stage, and where."""
        done: Sources = dict(self.program.sources)
        for stage in self.program.stages[:index]:
            for each in stage.nodes:
                if each in self.program.stores:
                    done[each] = self.program.stores[each][0]
        return done

    def _barrier(self, needed: Value) -> None:
        e, b = self.e, self.e.b
        with b.if_then(b.and_(needed, b.icmp_signed(">", self.frame.shares, e.i64(1)))):
            found = self.frame.module.globals.get(BARRIER)
            if found is None:
                kind = ir.FunctionType(ir.VoidType(), [I64, I64])
                found = ir.Function(self.frame.module, kind, BARRIER)
            b.call(found, [self.frame.argument("barrier"), self.frame.shares])

    def _stage(self, index: int, stage: Stage, done: Sources) -> None:
        self.frame.stage = index
        groups = self.program.groups[index]
        by_size: dict[int, list[Node]] = {}
        for each in stage.reductions:
            by_size.setdefault(self.program.sizes[each.inputs[0].size], []).append(each)
        for units, together in by_size.items():
            self._reduce(together, units, done)
        here: Sources = dict(done)
        for each in stage.reductions:
            here[each] = self.program.stores[each][0]
        if self.program.words[index]:
            self.tiles.convert(index, here)
        wanted = [n for n in stage.nodes if n in self.program.stores and n not in stage.reductions]
        single = [n for n in wanted if n.size == ONE]
        if single:
            self._rows_only(single, here)
            here |= {each: self.program.stores[each][0] for each in single}
        sizes = dict.fromkeys([g.size for g in groups] + [n.size for n in wanted])
        for size in sizes:
            roots = [n for n in wanted if n.size == size]
            members = [(number, g) for number, g in enumerate(groups) if g.size == size]
            if not roots or size == ONE:
                continue
            for panels in members[0][1].panels if members else ():
                self._blocks(index, size, panels, members, roots, here)
            if not members:
                self._units(size, roots, here)

    def _reduce(self, reductions: list[Node], units: int, done: Sources) -> None:
        """Sums over units: lane by lane through the row, then the lanes in a fixed tree."""
        e, b, lanes = self.e, self.e.b, self.lanes
        with e.loop(self.frame.row_from, self.frame.row_to) as row:
            totals = self._lanes_totals([each.inputs[0] for each in reductions], units, row, done)
            for each, total in zip(reductions, totals, strict=True):
                if each.op == "mean":
                    total = b.fmul(total, ir.Constant(lanes.element, 1.0 / units))
                for array in self.program.stores[each]:
                    e.store(total, e.at(self.frame.base(array), self.frame.offset(array, row)))

    def _lanes_totals(
        self, operands: list[Node], units: int, row: Value, done: Sources
    ) -> list[Value]:
        e, b, lanes = self.e, self.e.b, self.lanes

        def add(vector: Value, running: list[Value]) -> list[Value]:
            unit = b.mul(vector, e.i64(lanes.count))
            mask = self.frame.mask(units, lanes.count, unit)
            evaluation = Evaluation(self.frame, row, unit, mask, done, {})
            added = []
            for operand, total in zip(operands, running, strict=True):
                value = evaluation.value(operand)
                if mask is not None:
                    value = b.select(mask, value, e.splat(0.0))
                added.append(b.fadd(total, value))
            return added

        values = e.fold(e.i64(-(-units // lanes.count)), [e.splat(0.0)] * len(operands), add)
        width = lanes.count
        while width > 1:
            width //= 2
            order = [lane + width if lane < width else lane for lane in range(lanes.count)]
            upper = ir.Constant(ir.VectorType(I32, lanes.count), order)
            values = [b.fadd(each, b.shuffle_vector(each, each, upper)) for each in values]
        return [b.extract_element(each, ir.Constant(I32, 0)) for each in values]

    def _rows_only(self, roots: Iterable[Node], here: Sources) -> None:
        """Values with a single number a row."""
        e = self.e
        with e.loop(self.frame.row_from, self.frame.row_to) as row:
            evaluation = Evaluation(self.frame, row, e.i64(0), None, here, {})
            for each in roots:
                value = e.b.extract_element(evaluation.value(each), ir.Constant(I32, 0))
                for array in self.program.stores[each]:
                    offset = self.frame.offset(array, row)
                    if array.boolean:
                        address = e.b.gep(self.frame.base(array), [offset], source_etype=I8)
                        e.b.store(e.b.zext(value, I8), address, align=1)
                    else:
                        e.store(value, e.at(self.frame.base(array), offset))

    def _units(self, size: str, roots: list[Node], here: Sources) -> None:
        """Equations without products, row by row: memory is read in its order."""
        e, b, lanes = self.e, self.e.b, self.lanes
        units = self.program.sizes[size]
        first, end = self.frame.shared(-(-units // lanes.count))
        with e.loop(self.frame.row_from, self.frame.row_to) as row, e.loop(first, end) as block:
            unit = b.mul(block, e.i64(lanes.count))
            mask = self.frame.mask(units, lanes.count, unit)
            self._equations(roots, row, unit, mask, here, {})

    def _blocks(
        self,
        index: int,
        size: str,
        panels: Panels,
        members: list[tuple[int, Group]],
        roots: list[Node],
        here: Sources,
    ) -> None:
        """Blocks of units: products into tiles, then the equations on them."""
        e, b = self.e, self.e.b
        row_from, row_to = self.frame.row_from, self.frame.row_to
        first, end = self.frame.shared(panels.count)
        alone = b.icmp_signed("==", b.sub(row_to, row_from), e.i64(1))
        stride = b.select(alone, e.i64(2), e.i64(1))
        with e.loop(first, end, stride) as block, e.loop(row_from, row_to, TILE_ROWS) as row:
            rows = self.frame.at_most(b.sub(row_to, row), TILE_ROWS)
            paired = b.icmp_signed("<", b.add(block, e.i64(1)), b.select(alone, end, e.i64(0)))
            for position, (number, group_) in enumerate(members):
                self.tiles.fill(
                    index, number, group_, panels, block, row, rows, paired, position, here
                )
            # A single row's tile has two rows: its results for this block and for the next.
            with e.loop(e.i64(0), b.select(paired, e.i64(2), rows)) as r:
                here_row = b.select(paired, row, b.add(row, r))
                here_block = b.select(paired, b.add(block, r), block)
                self._prefetch_operands(members, here, here_row, panels, here_block)
                for part in range(panels.blocks):
                    unit = self.tiles.unit(panels, here_block, part)
                    tiles = self.tiles.values(members, panels, r, part)
                    mask = self.tiles.mask(size, panels, unit)
                    self._equations(roots, here_row, unit, mask, here, tiles)

    def _prefetch_operands(
        self, members: list[tuple[int, Group]], here: Sources, row: Value, panels: Panels,
        block: Value,
    ) -> None:  # fmt: skip
        """Bring near a part of a row that the products of the following step read; no state."""
        e, b, lanes = self.e, self.e.b, self.lanes
        arrays = {here[each]: each.size for _, g in members for each in g.operands
                  if each in self.program.sources and each not in self.program.stores}  # fmt: skip
        block = b.add(block, e.i64(panels.before))
        for array, size in arrays.items():
            lines = -(-self.program.sizes[size] * lanes.bytes // LINE)
            each_block = -(-lines // max(sum(run.count for run in members[0][1].panels), 1))
            first = b.mul(block, e.i64(each_block * LINE // lanes.bytes))
            place = e.at(self.frame.base(array), b.add(self.frame.offset(array, row), first))
            for line in range(each_block):
                self.frame.prefetch(array, e.at(place, e.i64(line * LINE // lanes.bytes)))

    def _equations(
        self, roots: list[Node], row: Value, unit: Value, mask: Value | None, here: Sources,
        tiles: TileValues,
    ) -> None:  # fmt: skip
        e, b = self.e, self.e.b
        evaluation = Evaluation(self.frame, row, unit, mask, here, tiles)
        values = [(each, evaluation.value(each)) for each in roots]
        for each, value in values:
            for array in self.program.stores[each]:
                place = e.at(self.frame.base(array), b.add(self.frame.offset(array, row), unit))
                if array.boolean:
                    self._store_boolean(value, array, row, unit, mask)
                    continue
                self.frame.prefetch(array, place, write=True)
                if mask is None:
                    e.store(value, place)
                else:
                    e.masked_store(value, place, mask)

    def _store_boolean(
        self, value: Value, array: Array, row: Value, unit: Value, mask: Value | None
    ) -> None:
        e, b = self.e, self.e.b
        place = b.add(self.frame.offset(array, row), unit)
        address = b.gep(self.frame.base(array), [place], source_etype=I8)
        bytes_ = b.zext(value, ir.VectorType(I8, self.lanes.count))
        full = ir.Constant(self.lanes.mask, [1] * self.lanes.count)
        e.masked_store_bytes(bytes_, address, full if mask is None else mask)
