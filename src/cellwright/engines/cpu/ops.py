"""A thin layer over llvmlite's builder: vectors of lanes, loops, masked memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
Value = Any  # an llvmlite value


class Lanes:
    """Vectors of one number format.

    Sixteen lanes for float32 and eight for float64, on every processor: where registers are
    narrower LLVM takes two, and every sum still runs in the same order.
    """

    def __init__(self, double: bool):
        self.double = double
        self.element: ir.Type = ir.DoubleType() if double else ir.FloatType()
        self.bytes = 8 if double else 4
        self.count = 8 if double else 16
        self.vector = ir.VectorType(self.element, self.count)
        self.integer = I64 if double else I32
        self.integers = ir.VectorType(self.integer, self.count)
        self.mask = ir.VectorType(I1, self.count)
        self.suffix = f"v{self.count}f{64 if double else 32}"


class Emitter:
    """Builds one function."""

    def __init__(self, module: ir.Module, builder: ir.IRBuilder, lanes: Lanes):
        self.module = module
        self.b = builder
        self.lanes = lanes

    # Numbers -------------------------------------------------------------------------------

    def i64(self, number: int) -> Value:
        """A whole number."""
        return ir.Constant(I64, number)

    def splat(self, number: float) -> Value:
        """The same number in every lane."""
        return ir.Constant(self.lanes.vector, [float(number)] * self.lanes.count)

    def integers(self, number: int) -> Value:
        """The same whole number in every lane."""
        return ir.Constant(self.lanes.integers, [number] * self.lanes.count)

    def broadcast(self, scalar: Value) -> Value:
        """A scalar in every lane."""
        kind = ir.VectorType(scalar.type, self.lanes.count)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes.count), [0] * self.lanes.count)
        return self.b.shuffle_vector(first, undefined, zeros)

    # Calls -----------------------------------------------------------------------------------

    def intrinsic(self, name: str, kind: ir.Type, arguments: Sequence[Value]) -> Value:
        """Call an intrinsic of LLVM by its full name."""
        function = self.module.globals.get(name)
        if function is None:
            signature = ir.FunctionType(kind, [each.type for each in arguments])
            function = ir.Function(self.module, signature, name)
        return self.b.call(function, arguments)

    def vector_call(self, name: str, *arguments: Value) -> Value:
        """Call an intrinsic that works lane by lane, such as ``llvm.fma``."""
        return self.intrinsic(f"{name}.{self.lanes.suffix}", self.lanes.vector, arguments)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c with one rounding."""
        return self.vector_call("llvm.fma", a, b, c)

    def scaled(self, value: Value, n: Value) -> Value:
        """value * 2^n for whole n, rounded once; an instruction of AVX-512."""
        kind, bits = ("pd", I8) if self.lanes.double else ("ps", ir.IntType(16))
        every, as_usual = ir.Constant(bits, -1), ir.Constant(I32, 4)
        arguments = [value, n, value, every, as_usual]
        name = f"llvm.x86.avx512.mask.scalef.{kind}.512"
        return self.intrinsic(name, self.lanes.vector, arguments)

    # Memory ----------------------------------------------------------------------------------

    def at(self, base: Value, index: Value) -> Value:
        """Address of element ``index``."""
        return self.b.gep(base, [index], source_etype=self.lanes.element)

    def load(self, address: Value, kind: ir.Type | None = None, align: int | None = None) -> Value:
        """Load a value; vectors may lie at any element."""
        return self.b.load(address, align=align or self.lanes.bytes, typ=kind or self.lanes.vector)

    def store(self, value: Value, address: Value) -> None:
        """Store a value at any element."""
        self.b.store(value, address, align=self.lanes.bytes)

    def lanes_below(self, count: Value) -> Value:
        """Mask of the lanes whose number is less than ``count``."""
        order = ir.Constant(ir.VectorType(I64, self.lanes.count), list(range(self.lanes.count)))
        return self.b.icmp_signed("<", order, self.broadcast(count))

    def masked_load(self, address: Value, mask: Value) -> Value:
        """Load the lanes of ``mask``; zero elsewhere."""
        name = f"llvm.masked.load.{self.lanes.suffix}.p0"
        return self._masked(
            name, self.lanes.vector, [address, mask, self.splat(0.0)], self.lanes.bytes
        )

    def masked_load_bytes(self, address: Value, mask: Value) -> Value:
        """Load bytes in the lanes of ``mask``; zero elsewhere."""
        kind = ir.VectorType(I8, self.lanes.count)
        zero = ir.Constant(kind, [0] * self.lanes.count)
        return self._masked(
            f"llvm.masked.load.v{self.lanes.count}i8.p0", kind, [address, mask, zero], 1
        )

    def masked_store(self, value: Value, address: Value, mask: Value) -> None:
        """Store the lanes of ``mask``."""
        name = f"llvm.masked.store.{self.lanes.suffix}.p0"
        self._masked(name, ir.VoidType(), [value, address, mask], self.lanes.bytes)

    def masked_store_bytes(self, value: Value, address: Value, mask: Value) -> None:
        """Store bytes in the lanes of ``mask``."""
        name = f"llvm.masked.store.v{self.lanes.count}i8.p0"
        self._masked(name, ir.VoidType(), [value, address, mask], 1)

    def _masked(self, name: str, kind: ir.Type, arguments: list[Value], align: int) -> Value:
        # The alignment is an operand, a constant, in LLVM's textual form of these intrinsics.
        alignment = ir.Constant(I32, align)
        place = 1 if "load" in name else 2
        return self.intrinsic(name, kind, [*arguments[:place], alignment, *arguments[place:]])

    def prefetch(self, address: Value, *, write: bool = False) -> None:
        """Bring a line of memory into the processor's second cache, to read or to ``write`` it."""
        kind, second, data = (ir.Constant(I32, number) for number in (int(write), 2, 1))
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), [address, kind, second, data])

    def scratch(self, elements: int) -> Value:
        """Memory on the stack for that many elements, at the start of a cache line."""
        place = self.b.alloca(ir.ArrayType(self.lanes.element, elements))
        place.align = 64
        place.type = POINTER  # llvmlite still gives it the type of what it points to
        return place

    # Control ---------------------------------------------------------------------------------

    @contextmanager
    def loop(self, start: Value, stop: Value, step: int | Value = 1) -> Iterator[Value]:
        """``for index in range(start, stop, step)``; the body is what the block emits."""
        b = self.b
        head = b.append_basic_block("head")
        body = b.append_basic_block("body")
        end = b.append_basic_block("end")
        before = b.block
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(start, before)
        b.cbranch(b.icmp_signed("<", index, stop), body, end)
        b.position_at_end(body)
        yield index
        following = b.add(index, self.i64(step) if isinstance(step, int) else step)
        index.add_incoming(following, b.block)
        b.branch(head)
        b.position_at_end(end)

    def fold(
        self,
        count: Value,
        start: Sequence[Value],
        step: Callable[[Value, list[Value]], list[Value]],
    ) -> list[Value]:
        """Values carried through ``for index in range(count)``: step(index, values) -> values."""
        b = self.b
        before = b.block
        head, body, end = (b.append_basic_block(n) for n in ("fold", "fold_body", "fold_end"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(self.i64(0), before)
        running = [b.phi(each.type) for each in start]
        for phi, value in zip(running, start, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", index, count), body, end)
        b.position_at_end(body)
        for phi, value in zip(running, step(index, list(running)), strict=True):
            phi.add_incoming(value, b.block)
        index.add_incoming(b.add(index, self.i64(1)), b.block)
        b.branch(head)
        b.position_at_end(end)
        return running
