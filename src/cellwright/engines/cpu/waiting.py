"""How threads of a team wait for each other, as compiled functions.

A thread that waits asks again and again; now and then it lets another program have its processor.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from llvmlite import ir

from cellwright.engines.cpu.ops import I32, I64, POINTER, Value

BARRIER, WAIT = "cellwright_barrier", "cellwright_wait"

TRIES = 4096
"""After so many a waiting thread gives way; a power of two."""

LINE = 8
"""Whole numbers of a cache line: what different threads write lies so far apart."""


def emit_barrier(module: ir.Module) -> None:
    """``cellwright_barrier(place, shares)``: wait until all shares have arrived.

    At the place lie a counter and, a line on, the number of the round.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64]), BARRIER)
    place, shares = function.args
    entry, last, wait, end = (
        function.append_basic_block(n) for n in ("entry", "last", "wait", "end")
    )
    b = ir.IRBuilder(entry)
    counter = b.inttoptr(place, POINTER)
    round_ = b.gep(counter, [ir.Constant(I64, LINE)], source_etype=I64)
    one = ir.Constant(I64, 1)
    before = b.load_atomic(round_, "acquire", 8, typ=I64)
    arrived = b.add(b.atomic_rmw("add", counter, one, "acq_rel"), one)
    b.cbranch(b.icmp_signed("==", arrived, shares), last, wait)
    b.position_at_end(last)
    b.atomic_rmw("xchg", counter, ir.Constant(I64, 0), "release")
    b.atomic_rmw("add", round_, one, "release")
    b.branch(end)
    b.position_at_end(wait)
    _ask(b, round_, lambda now: b.icmp_signed("!=", now, before))
    b.branch(end)
    b.position_at_end(end)
    b.ret_void()


def emit_wait(module: ir.Module) -> None:
    """``cellwright_wait(place, least)``: wait until the number at the place is at least that."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), WAIT)
    place, least = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    _ask(b, place, lambda now: b.icmp_signed(">=", now, least))
    b.ret_void()


def _ask(b: ir.IRBuilder, place: Value, is_enough: Callable[[Value], Value]) -> None:
    """Load the number at a place again and again, until it is enough."""
    module, function = b.module, b.function
    spin, rest, end = (function.append_basic_block(n) for n in ("spin", "rest", "enough"))
    before = b.block
    b.branch(spin)
    b.position_at_end(spin)
    tries = b.phi(I64)
    tries.add_incoming(ir.Constant(I64, 0), before)
    b.cbranch(is_enough(b.load_atomic(place, "acquire", 8, typ=I64)), end, rest)
    b.position_at_end(rest)
    following = b.add(tries, ir.Constant(I64, 1))
    last = ir.Constant(I64, TRIES - 1)
    with b.if_else(b.icmp_signed("==", b.and_(following, last), last)) as (gives_way, goes_on):
        with gives_way:
            b.call(_declared(module, "sched_yield", I32), [])
        with goes_on:
            # The instruction by which a waiting processor leaves room to others, where it is.
            if platform.machine().lower() in ("x86_64", "amd64"):
                b.call(_declared(module, "llvm.x86.sse2.pause", ir.VoidType()), [])
    tries.add_incoming(following, b.block)
    b.branch(spin)
    b.position_at_end(end)


def _declared(module: ir.Module, name: str, kind: ir.Type) -> Value:
    found = module.globals.get(name)
    return ir.Function(module, ir.FunctionType(kind, []), name) if found is None else found
