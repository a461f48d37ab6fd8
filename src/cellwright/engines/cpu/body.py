"""Emits the code of a loop: the stages of a plan over rows, units and time.

The generated function, in pseudo-code (``run(arguments, first_row, end_row, share, shares)``):

    for i in 0 .. T-1 (or T-1 .. 0 for gradients):
        for stage:
            for each reduction: for row: total over units, kept for the row
            for each block of units (shared out where shares > 1):
                for up to 48 rows:
                    micro-kernels: weights x operands -> tile
                    for row, for vector of units: the equations, on the tile; store
            barrier (where shares > 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llvmlite import ir

from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources, Stores
from cellwright.engines.cpu.functions import OPERATIONS
from cellwright.engines.cpu.ops import I8, I32, I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.product import LINE, ROW_BLOCKS, call_by_rows, declare_pair
from cellwright.engines.cpu.targets import Group, Target, find_targets, group
from cellwright.ir import ONE, Node
from cellwright.plan import Stage

NUMBERS = ("steps", "rows", "reverse", "ring", "barrier")
"""Arguments of every program: extents and switches of its loop."""

TILE_ROWS = 48
SUM_ROWS = 64
ENTRY = "run"


@dataclass
class Program:
    """A loop to be emitted, and what its caller has to provide.

    Attributes:
        stages: the body.
        sizes: numbers of units by name.
        sources: leaves, and stored values, with their arrays.
        stores: values that are written to arrays when they have been computed.
        backward: run through the steps from the last to the first.
        groups: the products of each stage, filled in by :func:`emit`.
        slots: argument name -> its place, filled in by :func:`emit`.
        temporaries: arrays (rows x stride) that the caller allocates: slot -> stride.
    """

    stages: Sequence[Stage]
    sizes: Mapping[str, int]
    sources: Sources
    stores: Stores
    backward: bool = False
    groups: list[list[Group]] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    temporaries: dict[str, int] = field(default_factory=dict)

    def slot(self, name: str) -> int:
        """The place of an argument, new or known."""
        return self.slots.setdefault(name, len(self.slots))


def weights_slot(stage: int, number: int) -> str:
    """Name of the argument with the packed weights of a group."""
    return f"weights.{stage}.{number}"


def emit(program: Program, double: bool) -> str:
    """The module's text; fills in the program's groups, slots and temporaries."""
    return _Body(program, Lanes(double)).text()


class _Body:
    def __init__(self, program: Program, lanes: Lanes):
        self.program = program
        self.lanes = lanes
        for name in NUMBERS:
            program.slot(name)
        self._plan_temporaries()
        self.uses: dict[Node, int] = {}
        for stage in program.stages:
            for each in stage.nodes:
                for source in each.inputs:
                    self.uses[source] = self.uses.get(source, 0) + 1
        self.module = ir.Module("cellwright")
        arguments = [POINTER, I64, I64, I64, I64]
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), ENTRY)
        self.e = Emitter(
            self.module, ir.IRBuilder(self.function.append_basic_block("entry")), lanes
        )
        self.loaded: dict[str, Value] = {}
        self.scalars: dict[Node, Array] = {}

    def _plan_temporaries(self) -> None:
        """Give an array to every value that a later stage reads and that has none yet."""
        program = self.program
        for stage in program.stages:
            for each in (*stage.stored, *stage.reductions):
                if each in program.stores:
                    continue
                size = program.sizes[each.size]
                name = f"temporary.{len(program.temporaries)}"
                scalar = each.size == ONE
                stride = 1 if scalar else -(-size // self.lanes.count) * self.lanes.count
                program.temporaries[name] = stride
                kind = Kind.ROW if scalar else Kind.ROWS
                array = Array(name, kind, stride=stride, boolean=each.vector.boolean)
                program.stores[each] = [array]

    # Arguments -----------------------------------------------------------------------------

    def argument(self, name: str) -> Value:
        """An argument as a whole number; all are loaded at the function's start."""
        return self.loaded[name]

    def text(self) -> str:
        """Emit everything."""
        program, e = self.program, self.e
        for index, stage in enumerate(program.stages):
            targets = find_targets(stage, self.uses, set(program.stores), self._position)
            program.groups.append(group(targets, program.sizes, self.lanes.count))
            for number in range(len(program.groups[-1])):
                program.slot(weights_slot(index, number))
        stored = (array for arrays in program.stores.values() for array in arrays)
        self.arrays = [*program.sources.values(), *stored]
        for array in self.arrays:
            program.slot(array.slot)
            if array.initial:
                program.slot(array.initial)
        base, self.row_from, self.row_to, self.share, self.shares = self.function.args
        for name, place in program.slots.items():
            address = e.b.gep(base, [e.i64(place)], source_etype=I64)
            self.loaded[name] = e.load(address, I64, 8)
        widest = max((g.vectors for gs in program.groups for g in gs), default=1)
        most = max((len(gs) for gs in program.groups), default=0)
        self.tile_stride = widest * self.lanes.count
        self.tiles = [e.scratch(TILE_ROWS * self.tile_stride) for _ in range(most)]
        with e.loop(e.i64(0), self.argument("steps")) as i:
            self._step(i)
        e.b.ret_void()
        return str(self.module)

    def _position(self, product: Node) -> tuple[bool, str, int]:
        """The place of a term in its chain: x first, then by memory, so that neighbours meet."""
        operand = product.inputs[1]
        array = self.program.sources.get(operand) or self.program.stores[operand][0]
        # A state's name, not its slot, which may be the output's: the order must not change.
        slot = f"state.{operand.attribute('name')}" if operand.op == "state" else array.slot
        return operand.op != "input", slot, array.offset

    # One step ------------------------------------------------------------------------------

    def _step(self, i: Value) -> None:
        e, b = self.e, self.e.b
        last = b.sub(self.argument("steps"), e.i64(1))
        position = b.sub(last, i) if self.program.backward else i
        backwards = b.icmp_signed("!=", self.argument("reverse"), e.i64(0))
        self.t = b.select(backwards, b.sub(last, position), position)
        earlier = b.select(backwards, b.add(self.t, e.i64(1)), b.sub(self.t, e.i64(1)))
        self.first = b.icmp_signed("==", position, e.i64(0))
        self.before = earlier
        self.parity = b.and_(i, e.i64(1))
        self.bases: dict[Array, Value] = {}
        for array in self.arrays:
            self._base(array)
        done: Sources = dict(self.program.sources)
        for index, stage in enumerate(self.program.stages):
            self._stage(index, stage, done)
            for each in stage.nodes:
                if each in self.program.stores:
                    done[each] = self.program.stores[each][0]
            self._barrier()

    def _base(self, array: Array) -> Value:
        """Address of an array's first row at this step."""
        if array not in self.bases:
            b = self.e.b
            start = b.inttoptr(self.argument(array.slot), POINTER)
            rows = b.mul(self.argument("rows"), self.e.i64(array.stride))
            element = I8 if array.boolean else self.lanes.element

            def moved(base: Value, step: Value) -> Value:
                return b.gep(base, [b.mul(step, rows)], source_etype=element)

            if array.index is Index.TIME:
                start = moved(start, b.and_(self.t, self._ring(array)))
            elif array.index is Index.BEFORE:
                initial = b.inttoptr(self.argument(array.initial), POINTER)
                inside = moved(start, b.and_(self.before, self._ring(array)))
                start = b.select(self.first, initial, inside)
            elif array.index is not Index.NONE:
                parity = self.parity
                if array.index is Index.ODD:
                    parity = b.xor(parity, self.e.i64(1))
                start = moved(start, parity)
            self.bases[array] = start
        return self.bases[array]

    def _ring(self, array: Array) -> Value:
        """All ones, or 1 for states of which only two steps are kept."""
        if array.slot.startswith("state."):
            return self.argument("ring")
        return self.e.i64(-1)

    def _barrier(self) -> None:
        e, b = self.e, self.e.b
        with b.if_then(b.icmp_signed(">", self.shares, e.i64(1))):
            name = "cellwright_barrier"
            found = self.module.globals.get(name)
            if found is None:
                kind = ir.FunctionType(ir.VoidType(), [I64, I64])
                found = ir.Function(self.module, kind, name)
            b.call(found, [self.argument("barrier"), self.shares])

    # One stage -----------------------------------------------------------------------------

    def _stage(self, index: int, stage: Stage, done: Sources) -> None:
        groups = self.program.groups[index]
        for each in stage.reductions:
            self._reduce(each, done)
        here: Sources = dict(done)
        for each in stage.reductions:
            here[each] = self.program.stores[each][0]
        wanted = [n for n in stage.nodes if n in self.program.stores and n not in stage.reductions]
        sizes = dict.fromkeys([g.size for g in groups] + [n.size for n in wanted])
        for size in sizes:
            roots = [n for n in wanted if n.size == size]
            members = [(number, g) for number, g in enumerate(groups) if g.size == size]
            if size == ONE:
                self._rows_only(roots, here)
            elif roots:
                self._blocks(index, size, members, roots, here)

    def _reduce(self, each: Node, done: Sources) -> None:
        """Sum over units: lane by lane through the row, then the lanes in a fixed tree."""
        e, b, lanes = self.e, self.e.b, self.lanes
        (operand,) = each.inputs
        size = self.program.sizes[operand.size]
        into = self.program.stores[each]
        with e.loop(self.row_from, self.row_to) as row:
            total = self._lanes_total(operand, size, row, done)
            if each.op == "mean":
                total = b.fmul(total, ir.Constant(lanes.element, 1.0 / size))
            for array in into:
                e.store(total, e.at(self._base(array), self._row_offset(array, row)))

    def _lanes_total(self, operand: Node, size: int, row: Value, done: Sources) -> Value:
        e, b, lanes = self.e, self.e.b, self.lanes
        before = b.block
        head, body, end = (b.append_basic_block(n) for n in ("sum", "sum_body", "sum_end"))
        b.branch(head)
        b.position_at_end(head)
        unit = b.phi(I64)
        running = b.phi(lanes.vector)
        unit.add_incoming(e.i64(0), before)
        running.add_incoming(e.splat(0.0), before)
        b.cbranch(b.icmp_signed("<", unit, e.i64(size)), body, end)
        b.position_at_end(body)
        mask = e.lanes_below(b.sub(e.i64(size), unit)) if size % lanes.count else None
        value = _Evaluation(self, row, unit, mask, done, {}).value(operand)
        if mask is not None:
            value = b.select(mask, value, e.splat(0.0))
        running.add_incoming(b.fadd(running, value), b.block)
        unit.add_incoming(b.add(unit, e.i64(lanes.count)), b.block)
        b.branch(head)
        b.position_at_end(end)
        value, width = running, lanes.count
        while width > 1:
            width //= 2
            order = [lane + width if lane < width else lane for lane in range(lanes.count)]
            mask_constant = ir.Constant(ir.VectorType(I32, lanes.count), order)
            value = b.fadd(value, b.shuffle_vector(value, value, mask_constant))
        return b.extract_element(value, ir.Constant(I32, 0))

    def _rows_only(self, roots: Iterable[Node], here: Sources) -> None:
        """Values with a single number a row."""
        e = self.e
        with e.loop(self.row_from, self.row_to) as row:
            evaluation = _Evaluation(self, row, e.i64(0), None, here, {})
            for each in roots:
                value = e.b.extract_element(evaluation.value(each), ir.Constant(I32, 0))
                for array in self.program.stores[each]:
                    offset = self._row_offset(array, row)
                    if array.boolean:
                        address = e.b.gep(self._base(array), [offset], source_etype=I8)
                        e.b.store(e.b.zext(value, I8), address, align=1)
                    else:
                        e.store(value, e.at(self._base(array), offset))

    def _blocks(
        self,
        index: int,
        size: str,
        members: list[tuple[int, Group]],
        roots: list[Node],
        here: Sources,
    ) -> None:
        """Blocks of units: products into tiles, then the equations on them."""
        e, b, lanes = self.e, self.e.b, self.lanes
        units = self.program.sizes[size]
        per_row = members[0][1].blocks if members else 1
        step = per_row * lanes.count
        count = -(-units // step)
        first = b.sdiv(b.mul(self.share, e.i64(count)), self.shares)
        following = b.add(self.share, e.i64(1))
        end = b.sdiv(b.mul(following, e.i64(count)), self.shares)
        alone = b.icmp_signed("==", b.sub(self.row_to, self.row_from), e.i64(1))
        stride = b.select(alone, e.i64(2), e.i64(1)) if members else e.i64(1)
        with (
            e.loop(first, end, stride) as block,
            e.loop(self.row_from, self.row_to, TILE_ROWS) as row,
        ):
            left = b.sub(self.row_to, row)
            limit = e.i64(TILE_ROWS)
            rows = b.select(b.icmp_signed("<", left, limit), left, limit)
            paired = b.icmp_signed("<", b.add(block, e.i64(1)), b.select(alone, end, e.i64(0)))
            for position, (number, members_group) in enumerate(members):
                self._products(
                    index, number, members_group, block, row, rows, paired, position, here
                )
            # A single row's tile has two rows: its results for this block and for the next.
            lines = b.select(paired, e.i64(2), rows) if members else rows
            with e.loop(e.i64(0), lines) as r:
                here_row = b.select(paired, row, b.add(row, r)) if members else b.add(row, r)
                here_block = b.select(paired, b.add(block, r), block) if members else block
                for part in range(per_row):
                    unit = b.add(b.mul(here_block, e.i64(step)), e.i64(part * lanes.count))
                    tiles = self._tile_values(members, r, part)
                    ragged = bool(units % step)
                    mask = e.lanes_below(b.sub(e.i64(units), unit)) if ragged else None
                    self._equations(roots, here_row, unit, mask, here, tiles)

    def _tile_values(
        self, members: list[tuple[int, Group]], r: Value, part: int
    ) -> dict[Node, tuple[Value, Target]]:
        """Addresses of the sums of one row and vector of units."""
        e, b = self.e, self.e.b
        found = {}
        for position, (_, each) in enumerate(members):
            for number, target in enumerate(each.targets):
                column = (number * each.blocks + part) * self.lanes.count
                offset = b.add(b.mul(r, e.i64(self.tile_stride)), e.i64(column))
                found[target.root] = (e.at(self.tiles[position], offset), target)
        return found

    def _equations(
        self, roots: list[Node], row: Value, unit: Value, mask: Value | None, here: Sources,
        tiles: dict[Node, tuple[Value, Target]],
    ) -> None:  # fmt: skip
        e, b = self.e, self.e.b
        evaluation = _Evaluation(self, row, unit, mask, here, tiles)
        values = [(each, evaluation.value(each)) for each in roots]
        for each, value in values:
            for array in self.program.stores[each]:
                place = e.at(self._base(array), b.add(self._row_offset(array, row), unit))
                if array.boolean:
                    self._store_boolean(value, array, row, unit, mask)
                elif mask is None:
                    e.store(value, place)
                else:
                    e.masked_store(value, place, mask)

    def _store_boolean(
        self, value: Value, array: Array, row: Value, unit: Value, mask: Value | None
    ) -> None:
        e, b = self.e, self.e.b
        place = b.add(self._row_offset(array, row), unit)
        address = b.gep(self._base(array), [place], source_etype=I8)
        bytes_ = b.zext(value, ir.VectorType(I8, self.lanes.count))
        full = ir.Constant(self.lanes.mask, [1] * self.lanes.count)
        e.masked_store_bytes(bytes_, address, full if mask is None else mask)

    def _row_offset(self, array: Array, row: Value) -> Value:
        b = self.e.b
        return b.add(b.mul(row, self.e.i64(array.stride)), self.e.i64(array.offset))

    def _products(
        self, index: int, number: int, members: Group, block: Value, row: Value, rows: Value,
        paired: Value, position: int, here: Sources,
    ) -> None:  # fmt: skip
        """Run the micro-kernels of a group for some rows of one block of units."""
        e, b, lanes = self.e, self.e.b, self.lanes
        width = members.vectors * lanes.count
        operands = merged_operands(members, here, self.program.sizes)
        depth = sum(k for _, k in operands)
        packed = b.inttoptr(self.argument(weights_slot(index, number)), POINTER)
        panel = e.at(packed, b.mul(block, e.i64(depth * width)))
        started = any(target.start is not None for target in members.targets)
        if started:
            self._start(members, block, row, rows, paired, position, here)
        with b.if_else(paired) as (one_row, many_rows):
            with one_row:
                done = 0
                following = e.at(panel, e.i64(depth * width))
                for operand, (array, k) in enumerate(operands):
                    begin = e.i64(done * width)
                    b.call(declare_pair(self.module, members.vectors, self.lanes.double), [
                        e.i64(k), e.at(self._base(array), self._row_offset(array, row)),
                        e.at(panel, begin), e.at(following, begin), self.tiles[position],
                        e.i64(self.tile_stride), ir.Constant(I32, 1 if operand or started else 0),
                    ])  # fmt: skip
                    done += k
            with many_rows:
                self._row_blocks(members, operands, panel, row, rows, position, started)

    def _start(
        self, members: Group, block: Value, row: Value, rows: Value, paired: Value, position: int,
        here: Sources,
    ) -> None:  # fmt: skip
        """Fill a tile with what its chains begin with."""
        e, b, lanes = self.e, self.e.b, self.lanes
        units = self.program.sizes[members.size]
        step = members.blocks * lanes.count
        with e.loop(e.i64(0), b.select(paired, e.i64(2), rows)) as r:
            here_row = b.select(paired, row, b.add(row, r))
            first = b.mul(b.select(paired, b.add(block, r), block), e.i64(step))
            for number, target in enumerate(members.targets):
                for part in range(members.blocks):
                    unit = b.add(first, e.i64(part * lanes.count))
                    ragged = bool(units % step)
                    mask = e.lanes_below(b.sub(e.i64(units), unit)) if ragged else None
                    value = e.splat(0.0)
                    if target.start is not None:
                        evaluation = _Evaluation(self, here_row, unit, mask, here, {})
                        value = evaluation.value(target.start)
                    column = (number * members.blocks + part) * lanes.count
                    offset = b.add(b.mul(r, e.i64(self.tile_stride)), e.i64(column))
                    e.store(value, e.at(self.tiles[position], offset))

    def _row_blocks(
        self, members: Group, operands: list[tuple[Array, int]], panel: Value, row: Value,
        rows: Value, position: int, started: bool,
    ) -> None:  # fmt: skip
        e, b = self.e, self.e.b
        width = members.vectors * self.lanes.count
        line = LINE // self.lanes.bytes
        depth = sum(k for _, k in operands)
        # While the rows of this panel are worked on, the next one is brought near.
        following = e.at(panel, e.i64(depth * width))
        start: Value = e.i64(0)
        for count in ROW_BLOCKS:
            stop = b.add(start, b.mul(b.sdiv(b.sub(rows, start), e.i64(count)), e.i64(count)))
            with e.loop(start, stop, count) as r:
                passed = b.mul(b.sdiv(r, e.i64(ROW_BLOCKS[0])), e.i64(depth * line))
                tile = e.at(self.tiles[position], b.mul(r, e.i64(self.tile_stride)))
                done = 0
                for operand, (array, k) in enumerate(operands):
                    offset = self._row_offset(array, b.add(row, r))
                    call_by_rows(e, count, members.vectors, [
                        e.i64(k), e.at(self._base(array), offset), e.i64(array.stride), e.i64(1),
                        e.at(panel, e.i64(done * width)), e.i64(width),
                        tile, e.i64(self.tile_stride),
                        ir.Constant(I32, 1 if operand or started else 0),
                        e.at(following, b.add(passed, e.i64(done * line))),
                    ])  # fmt: skip
                    done += k
            start = stop


def merged_operands(
    members: Group, here: Sources, sizes: Mapping[str, int]
) -> list[tuple[Array, int]]:
    """Arrays and widths of a group's operands; neighbours in memory count as one."""
    merged: list[tuple[Array, int]] = []
    for operand in members.operands:
        array, k = here[operand], sizes[operand.size]
        if merged:
            last, width = merged[-1]
            same = (last.slot, last.index, last.stride) == (array.slot, array.index, array.stride)
            if same and array.offset == last.offset + width:
                merged[-1] = (last, width + k)
                continue
        merged.append((array, k))
    return merged


class _Evaluation:
    """Values of nodes for one row and one vector of units."""

    def __init__(
        self, body: _Body, row: Value, unit: Value, mask: Value | None, here: Sources,
        tiles: Mapping[Node, tuple[Value, Target]],
    ):  # fmt: skip
        self.body, self.row, self.unit, self.mask = body, row, unit, mask
        self.here, self.tiles = here, tiles
        self.known: dict[Node, Value] = {}

    def value(self, root: Node) -> Value:
        """The value of a node, computing what it needs."""
        for each in self._needed(root):
            if each not in self.known:
                self.known[each] = self._compute(each)
        return self.known[root]

    def _needed(self, root: Node) -> list[Node]:
        """What has to be computed or loaded, in order; nothing behind what is at hand."""
        order: list[Node] = []
        seen: set[Node] = set(self.known)
        stack = [(root, False)]
        while stack:
            each, ready = stack.pop()
            if ready:
                order.append(each)
            elif each not in seen:
                seen.add(each)
                stack.append((each, True))
                stack.extend((source, False) for source in reversed(self._reads(each)))
        return order

    def _reads(self, each: Node) -> Sequence[Node]:
        if each in self.tiles:
            return self.tiles[each][1].rest
        return () if each in self.here else each.inputs

    def _compute(self, each: Node) -> Value:
        e = self.body.e
        if each in self.tiles:
            address, target = self.tiles[each]
            value = e.load(address)
            for part in target.rest:
                value = e.b.fadd(value, self.known[part])
            return value
        if each in self.here:
            return self._load(self.here[each])
        if each.op == "constant":
            return e.splat(each.attribute("value"))
        if each.op == "reciprocal_size":
            return e.splat(1.0 / self.body.program.sizes[each.attribute("size")])
        assert each.inputs, f"{each!r} is read but has no place in memory"
        return OPERATIONS[each.op](e, *(self.known[source] for source in each.inputs))

    def _load(self, array: Array) -> Value:
        e, b, body = self.body.e, self.body.e.b, self.body
        base = body._base(array)
        by_row = array.kind in (Kind.ROWS, Kind.ROW)
        offset = body._row_offset(array, self.row) if by_row else e.i64(array.offset)
        if array.kind in (Kind.ROW, Kind.UNIT):
            if array.boolean:
                address = b.gep(base, [offset], source_etype=I8)
                byte = e.load(address, I8, 1)
                return e.broadcast(b.icmp_unsigned("!=", byte, ir.Constant(I8, 0)))
            return e.broadcast(e.load(e.at(base, offset), body.lanes.element))
        place = b.add(offset, self.unit)
        if array.boolean:
            address = b.gep(base, [place], source_etype=I8)
            full = ir.Constant(body.lanes.mask, [1] * body.lanes.count)
            bytes_ = e.masked_load_bytes(address, self.mask if self.mask is not None else full)
            zero = ir.Constant(ir.VectorType(I8, body.lanes.count), [0] * body.lanes.count)
            return b.icmp_unsigned("!=", bytes_, zero)
        if self.mask is None:
            return e.load(e.at(base, place))
        return e.masked_load(e.at(base, place), self.mask)


def emit_sums(program: Program, sums: Mapping[Node, str], size: str, double: bool) -> str:
    """Sums over all rows and steps, unit by unit: the gradients of vector parameters.

    Args:
        program: its sources say where values lie; it has no stages.
        sums: value -> slot of the array (units) that its sum is written to.
        size: of all of these values, by name.
        double: float64.

    The generated function shares out the units; a unit's sum runs over the steps and rows in
    order, whoever computes it.
    """
    body = _Body(program, Lanes(double))
    e, b, lanes = body.e, body.e.b, body.lanes
    for array in program.sources.values():
        program.slot(array.slot)
        if array.initial:
            program.slot(array.initial)
    for slot in sums.values():
        program.slot(slot)
    base, body.row_from, body.row_to, body.share, body.shares = body.function.args
    for name, place in program.slots.items():
        body.loaded[name] = e.load(e.b.gep(base, [e.i64(place)], source_etype=I64), I64, 8)
    units = program.sizes[size]
    count = -(-units // lanes.count)
    first = b.sdiv(b.mul(body.share, e.i64(count)), body.shares)
    end = b.sdiv(b.mul(b.add(body.share, e.i64(1)), e.i64(count)), body.shares)

    def parts(block: Value) -> tuple[Value, Value | None, list[tuple[Node, Value]]]:
        unit = b.mul(block, e.i64(lanes.count))
        mask = e.lanes_below(b.sub(e.i64(units), unit)) if units % lanes.count else None
        places = [
            (each, e.at(b.inttoptr(body.argument(slot), POINTER), unit))
            for each, slot in sums.items()
        ]
        return unit, mask, places

    def store(value: Value, place: Value, mask: Value | None) -> None:
        if mask is None:
            e.store(value, place)
        else:
            e.masked_store(value, place, mask)

    with e.loop(first, end) as block:
        _, mask, places = parts(block)
        for _, place in places:
            store(e.splat(0.0), place, mask)
    with e.loop(e.i64(0), body.argument("steps")) as i:
        last = b.sub(body.argument("steps"), e.i64(1))
        backwards = b.icmp_signed("!=", body.argument("reverse"), e.i64(0))
        body.t = b.select(backwards, b.sub(last, i), i)
        body.before = b.select(backwards, b.add(body.t, e.i64(1)), b.sub(body.t, e.i64(1)))
        body.first = b.icmp_signed("==", i, e.i64(0))
        body.parity = e.i64(0)
        body.bases = {}
        for array in program.sources.values():
            body._base(array)
        # Some rows at a time, so that the lines of memory that they share stay near.
        with e.loop(body.row_from, body.row_to, SUM_ROWS) as row_from, e.loop(first, end) as block:
            left = b.sub(body.row_to, row_from)
            limit = e.i64(SUM_ROWS)
            rows = b.select(b.icmp_signed("<", left, limit), left, limit)
            unit, mask, places = parts(block)
            held = [e.load(p) if mask is None else e.masked_load(p, mask) for _, p in places]
            before = b.block
            head, inside, after = (
                b.append_basic_block(n) for n in ("rows", "rows_body", "rows_end")
            )
            b.branch(head)
            b.position_at_end(head)
            r = b.phi(I64)
            r.add_incoming(e.i64(0), before)
            running = [b.phi(lanes.vector) for _ in places]
            for phi, value in zip(running, held, strict=True):
                phi.add_incoming(value, before)
            b.cbranch(b.icmp_signed("<", r, rows), inside, after)
            b.position_at_end(inside)
            evaluation = _Evaluation(body, b.add(row_from, r), unit, mask, program.sources, {})
            added = [
                b.fadd(phi, evaluation.value(each))
                for phi, (each, _) in zip(running, places, strict=True)
            ]
            for phi, value in zip(running, added, strict=True):
                phi.add_incoming(value, b.block)
            r.add_incoming(b.add(r, e.i64(1)), b.block)
            b.branch(head)
            b.position_at_end(after)
            for phi, (_, place) in zip(running, places, strict=True):
                store(phi, place, mask)
    b.ret_void()
    return str(body.module)
