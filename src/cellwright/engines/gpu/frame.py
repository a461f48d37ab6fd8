"""What all kernels of a program share: formats, sizes, heads, slots, and addresses.

A tile has rows of the batch along its first axis and units of one size along its second. Tiles
are as wide as a power of two, 16 at least; what is not a unit is masked in every load, store,
product and sum. Nothing in memory is padded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from cellwright.engines.cpu.arrays import Array, Index, Kind
from cellwright.engines.cpu.program import Program
from cellwright.ir import INPUT, ONE, Matrix, Node, topological

LEAST = 16
"""Units and rows of the smallest tile that a product accepts."""

ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""The dtype of tensors -> the dtype in which everything is computed and summed."""

WORKING = ("carry.", "temporary.", "between.")
"""What the slots of working memory begin with; it holds numbers as they are computed."""

POSITIONS = {
    Index.NONE: "row",
    Index.TIME: "now",
    Index.BEFORE: "before",
    Index.EVEN: "even",
    Index.ODD: "odd",
}
"""The variable that holds the rows of an array, as its index moves with time."""


def name_of(dtype: torch.dtype) -> str:
    """A dtype as Triton calls it."""
    return f"tl.{str(dtype).removeprefix('torch.')}"


def padded(units: int) -> int:
    """The width of a tile that has room for so many units."""
    return max(LEAST, 1 << (units - 1).bit_length())


def slot_dtype(array: Array, dtype: torch.dtype) -> torch.dtype:
    """The dtype of an array, for tensors of ``dtype``."""
    if array.boolean:
        return torch.uint8
    return ARITHMETIC[dtype] if array.slot.startswith(WORKING) else dtype


@dataclass(frozen=True)
class Axis:
    """Units along one axis of a tile, as names in the kernel.

    Attributes:
        size: which units.
        extent: how many places there are.
        local: numbers of the units, within a head.
        units: numbers of the units among those of all heads.
        inside: which places are units; "" if all are.
    """

    size: str
    extent: int
    local: str
    units: str
    inside: str

    @property
    def mask(self) -> str:
        """Which places of a tile with rows are to be loaded and stored."""
        return f"in_rows & {self.inside}" if self.inside else "in_rows"


class Frame:
    """The surroundings of a program's kernels.

    Args:
        program: what is computed.
        dtype: of the tensors.
        heads: parts of all vectors that never meet, each with programs of its own.
        population: whether there are members, each with arrays and programs of its own.

    Attributes:
        slots: names of arrays -> their names in the kernels, filled in on the way.
        widths: names of arrays -> numbers in a row of theirs.
    """

    def __init__(self, program: Program, dtype: torch.dtype, heads: int, *, population: bool):
        self.program, self.dtype, self.heads = program, dtype, heads
        self.population = population
        self.arithmetic = ARITHMETIC[dtype]
        self.acc = name_of(self.arithmetic)
        self.slots: dict[str, str] = {}
        self.widths: dict[str, int] = {}

    def per_head(self, size: str) -> int:
        """Units of a size in one head."""
        return self.program.sizes[size] // (1 if size == ONE else self.heads)

    @property
    def distances(self) -> list[str]:
        """Names of the numbers that say how many rows lie between an array's members."""
        return [_distance(each) for each in self.slots.values()] if self.population else []

    def opening(self) -> list[str]:
        """The lines before all others: the rows of a program, and the arrays of its member."""
        lines, block = [], "tl.program_id(0)"
        if self.population:
            lines.append("blocks = (rows + BLOCK - 1) // BLOCK")
            lines.append(f"member = ({block} // blocks).to(tl.int64)")
            for name, each in self.slots.items():
                lines.append(f"{each} += member * {_distance(each)} * {self.widths[name]}")
            block = f"({block} % blocks)"
        lines.append(f"row = {block}.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]")
        return [*lines, "in_rows = row < rows"]

    def slot(self, name: str, width: int) -> str:
        """The name of an array in the kernels; ``width`` is how many numbers a row of it has."""
        assert self.widths.setdefault(name, width) == width, f"{name} has rows of two widths"
        if name not in self.slots:
            plain = "at_" + re.sub(r"\W", "_", name)
            while plain in self.slots.values():
                plain += "_"
            self.slots[name] = plain
        return self.slots[name]

    def rows(self, array: Array) -> str:
        """Where the rows of an array begin, with its offset."""
        place = POSITIONS[array.index]
        place = place if array.stride == 1 else f"{place} * {array.stride}"
        return f"{place} + {array.offset}" if array.offset else place

    def load(self, array: Array, axis: Axis | None) -> str:
        """The text that loads a tile; ``axis`` is None for a single number a row."""
        return self.converted(array, self.fetch(array, axis))

    def converted(self, array: Array, fetched: str) -> str:
        """What was fetched as it is computed with."""
        return f"{fetched} != 0" if array.boolean else f"{fetched}.to({self.acc})"

    def fetch(self, array: Array, axis: Axis | None) -> str:
        """The text that loads a tile as it lies in memory."""
        slot = self.slot(array.slot, array.stride)
        if array.kind is Kind.UNIT:
            return f"tl.load({slot} + tl.full([1, 1], {array.offset}, tl.int32))"
        if array.kind is Kind.UNITS:
            assert axis is not None
            place = f"{array.offset} + {axis.units}" if array.offset else axis.units
            mask = f", mask={axis.inside}, other=0" if axis.inside else ""
            return f"tl.load({slot} + {place}{mask})"
        units, mask = "", "in_rows"
        if axis is not None and array.kind is Kind.ROWS:
            units, mask = f" + {axis.units}", axis.mask
        if array.index is not Index.BEFORE:
            return f"tl.load({slot} + {self.rows(array)}{units}, mask={mask}, other=0)"
        # A state before the step: the one after the step before, or the initial one.
        stride = "" if array.stride == 1 else f" * {array.stride}"
        initial = f"{self.slot(array.initial, array.stride)} + row{stride}{units}"
        earlier = f"{slot} + {self.rows(array)}{units}"
        return (
            f"tl.where(is_first, tl.load({initial}, mask={mask} & is_first, other=0), "
            f"tl.load({earlier}, mask={mask} & is_later, other=0))"
        )

    def store(self, array: Array, axis: Axis | None, value: str) -> str:
        """The text that stores a tile."""
        units, mask = ("", "in_rows") if axis is None else (f" + {axis.units}", axis.mask)
        dtype = slot_dtype(array, self.dtype)
        if array.boolean:
            value = f"{value}.to(tl.uint8)"
        elif dtype == torch.bfloat16:
            value = f"bf16({value})"
        place = f"{self.slot(array.slot, array.stride)} + {self.rows(array)}{units}"
        return f"tl.store({place}, {value}, mask={mask})"

    def operand_of(self, product: Node) -> str:
        """A template for a tile that enters a product, in the product's precision."""
        precision = dict(product.attributes).get("precision", "fp32")
        if self.dtype == torch.bfloat16 or (
            precision == "bf16" and self.arithmetic == torch.float32
        ):
            return "bf16({})"
        if precision == "bf16":
            return "bf16({}).to(tl.float64)"
        return "{}.to(tl.float16)" if self.dtype == torch.float16 else "{}"

    def dot(self, operand: str, matrix: str, start: str | None) -> str:
        """The text of a product of two tiles, added to ``start``."""
        acc = "" if start is None else f", acc={start}"
        return f"tl.dot({operand}, {matrix}{acc}, input_precision=PRECISION, out_dtype={self.acc})"

    def weights(self, product: Node, k: Axis, n: Axis) -> str:
        """The text that loads a tile of a product's matrix, (operand's units, result's units)."""
        matrix = product.inputs[0]
        kind = matrix.matrix
        columns = self.program.sizes[kind.columns] // kind.blocks
        rows, across = (n, k) if product.op == "matvec" else (k, n)
        masks = [axis.inside for axis in (k, n) if axis.inside]
        place = across.local
        if kind.blocks > self.heads:
            # All blocks in one program: what lies off the diagonal is not in memory.
            block_rows = self.program.sizes[kind.rows] // kind.blocks
            place = f"{across.local} % {columns}"
            masks.append(f"({rows.local} // {block_rows} == {across.local} // {columns})")
        mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
        slot = self.slot(f"parameter.{matrix.attribute('name')}", columns)
        return f"tl.load({slot} + {rows.units}.to(tl.int64) * {columns} + {place}{mask})"

    def axis(
        self, size: str, extent: int, *, start: str = "", down: bool = False, mark: str = ""
    ) -> tuple[Axis, list[str]]:
        """An axis, and the lines that define its names.

        Args:
            size: which units.
            extent: how many places.
            start: the first unit within a head; "" for 0.
            down: along columns rather than rows.
            mark: what its names begin with.
        """
        mark += "down_" if down else ""
        local = f"{mark}{'local' if self.heads > 1 else 'unit'}_{size}"
        first = f"({start} + tl.arange(0, {extent}))" if start else f"tl.arange(0, {extent})"
        lines = [f"{local} = {first}{'[:, None]' if down else '[None, :]'}"]
        units, inside, own = local, "", self.per_head(size)
        if self.heads > 1:
            units = f"{mark}unit_{size}"
            lines.append(f"{units} = head * {own} + {local}")
        if own % extent:
            inside = f"in_{mark}{size}"
            lines.append(f"{inside} = {local} < {own}")
        return Axis(size, extent, local, units, inside), lines


def _distance(slot: str) -> str:
    """The name of the number that goes with an array of a population."""
    return slot.replace("at_", "by_", 1)


def independent_heads(heads: int, nodes: Iterable[Node]) -> int:
    """How many parts of the vectors never meet in a loop: the heads, or 1 if something joins them.

    Sums over units join them, and so would a matrix that is whole.
    """
    for each in topological(nodes):
        if each.op in ("sum", "mean"):
            return 1
        if isinstance(each.type, Matrix) and each.type.blocks != heads:
            return 1
        if not isinstance(each.type, Matrix) and each.size == INPUT:
            return 1
    return heads
