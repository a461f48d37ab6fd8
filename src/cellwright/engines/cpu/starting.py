"""The functions that a loop begins with: alone, on the threads of OpenMP, as one of a team.

They are given a job, the numbers that ``JOB`` names, and return 0; or, without having begun, 1
where what the job watches has changed. A list of jobs, to be done one after the other by a single
call, is a script.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cellwright.engines.cpu.ops import I32, I64, POINTER, Emitter, Lanes, Value
from cellwright.engines.cpu.waiting import emit_barrier, emit_wait

ROWS, SHARES = 0, 1

JOB = ("run", "arguments", "rows", "how", "team", "watched")
"""A loop's address and that of its arguments, rows of the batch, what is shared out, among how
many threads, and the address of what may not have changed, or 0."""

WATCHED = ("place", "remembered", "count", "step")
"""Of each array that may not have changed: its address, that of the words that are remembered of
it, how many they are, and the bytes between them. In front stands the number of arrays."""


SCRIPT = ("bases", "moves", "tasks")
"""Of a script: the address of the bases, from which addresses follow that move, and how many of
these and how many tasks there are."""

MOVE, TASK = ("place", "base", "offset"), ("function", "arguments")
"""Behind a script's head stand its moves: where an address stands, the number of its base, the
bytes between them; then its tasks: a function of this module, and what it is given."""

COPY, CLEAR = ("into", "source", "bytes"), ("into", "bytes")
"""What the tasks ``copy`` and ``clear`` are given."""


def runtime_module() -> str:
    """All of them, and how threads wait for each other."""
    module = ir.Module("cellwright_runtime")
    emit_barrier(module)
    emit_wait(module)
    changed = _emit_is_changed(module)
    _emit_together(module, _emit_member(module), changed)
    _emit_alone(module, changed)
    _emit_copy(module)
    _emit_clear(module)
    _emit_script(module)
    return str(module)


class Callee:
    """An address to call: llvmlite otherwise wants a pointer that carries its function's type."""

    def __init__(self, address: Any, function_type: ir.FunctionType):
        self.function_type = function_type
        self.type = POINTER
        self.get_reference = address.get_reference


_RUN_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, I64, I64])
_TASK = ir.FunctionType(I32, [POINTER])


def _field(b: ir.IRBuilder, job: Value, name: str) -> Value:
    place = ir.Constant(I64, JOB.index(name))
    return b.load(b.gep(job, [place], source_etype=I64), typ=I64, align=8)


def _callee(b: ir.IRBuilder, job: Value) -> Callee:
    return Callee(b.inttoptr(_field(b, job, "run"), POINTER), _RUN_TYPE)


def _emit_is_changed(module: ir.Module) -> ir.Function:
    """``cellwright_is_changed(watched)``: whether any word is not what is remembered of it."""
    function = ir.Function(module, ir.FunctionType(I32, [POINTER]), "cellwright_is_changed")
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), Lanes(False))
    b, (table,) = e.b, function.args

    def number(place: Value) -> Value:
        return e.load(b.gep(table, [place], source_etype=I64), I64, 8)

    def compare_array(which: Value, before: list[Value]) -> list[Value]:
        start = b.add(e.i64(1), b.mul(which, e.i64(len(WATCHED))))
        place, remembered, count, step = (
            number(b.add(start, e.i64(field))) for field in range(len(WATCHED))
        )

        def compare(k: Value, before: list[Value]) -> list[Value]:
            now = e.load(b.inttoptr(b.add(place, b.mul(k, step)), POINTER), I32, 4)
            then = e.load(b.gep(b.inttoptr(remembered, POINTER), [k], source_etype=I32), I32, 4)
            return [b.or_(before[0], b.xor(now, then))]

        return e.fold(count, before, compare)

    (difference,) = e.fold(number(e.i64(0)), [ir.Constant(I32, 0)], compare_array)
    b.ret(b.zext(b.icmp_signed("!=", difference, ir.Constant(I32, 0)), I32))
    return function


def _emit_unless_changed(module: ir.Module, name: str, changed: ir.Function) -> ir.IRBuilder:
    """A function of a job that returns 1 where what it watches has changed; the rest follows."""
    function = ir.Function(module, ir.FunctionType(I32, [POINTER]), name)
    entry, look, leave, go_on = (
        function.append_basic_block(n) for n in ("entry", "look", "leave", "go_on")
    )
    b = ir.IRBuilder(entry)
    watched = _field(b, function.args[0], "watched")
    b.cbranch(b.icmp_signed("!=", watched, ir.Constant(I64, 0)), look, go_on)
    b.position_at_end(look)
    found = b.call(changed, [b.inttoptr(watched, POINTER)])
    b.cbranch(b.icmp_signed("!=", found, ir.Constant(I32, 0)), leave, go_on)
    b.position_at_end(leave)
    b.ret(ir.Constant(I32, 1))
    b.position_at_end(go_on)
    return b


def _emit_alone(module: ir.Module, changed: ir.Function) -> None:
    """``cellwright_alone(job)``: run all of a job."""
    b = _emit_unless_changed(module, "cellwright_alone", changed)
    (job,) = b.function.args
    arguments, rows = b.inttoptr(_field(b, job, "arguments"), POINTER), _field(b, job, "rows")
    zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)
    b.call(_callee(b, job), [arguments, zero, rows, zero, one])
    b.ret(ir.Constant(I32, 0))


def _emit_together(module: ir.Module, member: ir.Function, changed: ir.Function) -> None:
    """``cellwright_together(job)``: run a job on the threads of OpenMP."""
    b = _emit_unless_changed(module, "cellwright_together", changed)
    (job,) = b.function.args
    kind = ir.FunctionType(ir.VoidType(), [member.type, POINTER, I32, I32])
    parallel = ir.Function(module, kind, "GOMP_parallel")
    b.call(parallel, [member, job, b.trunc(_field(b, job, "team"), I32), ir.Constant(I32, 0)])
    b.ret(ir.Constant(I32, 0))


def _emit_copy(module: ir.Module) -> None:
    """``cellwright_copy(given)``: copy bytes, see ``COPY``."""
    e, given = _begin(module, "cellwright_copy")
    into, source, count = (_number(e, given, e.i64(place)) for place in range(len(COPY)))
    places = [e.b.inttoptr(each, POINTER) for each in (into, source)]
    plain = ir.Constant(ir.IntType(1), 0)
    e.intrinsic("llvm.memmove.p0.p0.i64", ir.VoidType(), [*places, count, plain])
    e.b.ret(ir.Constant(I32, 0))


def _emit_clear(module: ir.Module) -> None:
    """``cellwright_clear(given)``: set bytes to zero, see ``CLEAR``."""
    e, given = _begin(module, "cellwright_clear")
    into, count = (_number(e, given, e.i64(place)) for place in range(len(CLEAR)))
    zero, plain = ir.Constant(ir.IntType(8), 0), ir.Constant(ir.IntType(1), 0)
    place = e.b.inttoptr(into, POINTER)
    e.intrinsic("llvm.memset.p0.i64", ir.VoidType(), [place, zero, count, plain])
    e.b.ret(ir.Constant(I32, 0))


def _emit_script(module: ir.Module) -> None:
    """``cellwright_script(script)``: enter the addresses that move, and do every task."""
    e, script = _begin(module, "cellwright_script")
    b = e.b
    bases, moves, tasks = (_number(e, script, e.i64(place)) for place in range(len(SCRIPT)))
    start = e.i64(len(SCRIPT))
    with e.loop(e.i64(0), moves) as which:
        here = b.add(start, b.mul(which, e.i64(len(MOVE))))
        place, base, offset = (_number(e, script, b.add(here, e.i64(k))) for k in range(len(MOVE)))
        address = b.add(_number(e, b.inttoptr(bases, POINTER), base), offset)
        b.store(address, b.inttoptr(place, POINTER), align=8)
    start = b.add(start, b.mul(moves, e.i64(len(MOVE))))
    with e.loop(e.i64(0), tasks) as which:
        here = b.add(start, b.mul(which, e.i64(len(TASK))))
        function, given = (_number(e, script, b.add(here, e.i64(k))) for k in range(len(TASK)))
        b.call(Callee(b.inttoptr(function, POINTER), _TASK), [b.inttoptr(given, POINTER)])
    b.ret(ir.Constant(I32, 0))


def _begin(module: ir.Module, name: str) -> tuple[Emitter, Value]:
    """A function of numbers, and their address."""
    function = ir.Function(module, _TASK, name)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    return Emitter(module, builder, Lanes(False)), function.args[0]


def _number(e: Emitter, base: Value, place: Value) -> Value:
    return e.load(e.b.gep(base, [place], source_etype=I64), I64, 8)


def _emit_member(module: ir.Module) -> ir.Function:
    """``cellwright_member(job)``: take this thread's part of a job and run it."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER])
    function = ir.Function(module, kind, "cellwright_member")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    (job,) = function.args
    arguments, rows, how = (_field(b, job, name) for name in ("arguments", "rows", "how"))
    asks = ir.FunctionType(I32, [])
    number = b.sext(b.call(ir.Function(module, asks, "omp_get_thread_num"), []), I64)
    team = b.sext(b.call(ir.Function(module, asks, "omp_get_num_threads"), []), I64)
    by_rows = b.icmp_signed("==", how, ir.Constant(I64, ROWS))
    zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)
    first = b.sdiv(b.mul(number, rows), team)
    end = b.sdiv(b.mul(b.add(number, one), rows), team)
    b.call(_callee(b, job), [
        b.inttoptr(arguments, POINTER),
        b.select(by_rows, first, zero), b.select(by_rows, end, rows),
        b.select(by_rows, zero, number), b.select(by_rows, one, team),
    ])  # fmt: skip
    b.ret_void()
    return function
