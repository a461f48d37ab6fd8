"""The most that a machine's fused multiply-adds can reach: a loop that never leaves registers.

    s[0] = fma(s[0], a, b)
    ...
    s[n] = fma(s[n], a, b)

on every thread, with as many sums as the CPU engine's largest tile has. It is compiled by the
engine's own compiler, for the same processor and with the same limits, and runs on the same
threads.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

from cellwright.engines.cpu import jit, threads

_ROUNDS = 100_000  # about a third of a millisecond


def _text(sums: int, lanes: int) -> str:
    """The loop as LLVM IR; its arguments are the number of rounds and an address.

    Each thread has ``(2 + sums) * lanes`` numbers there: a, b, and what the sums begin with.
    """
    kind = f"<{lanes} x float>"
    numbers = range(sums)

    def at(place: int) -> str:
        return f"getelementptr float, ptr %own, i64 {place * lanes}"

    lines = [
        f"declare {kind} @llvm.fma.v{lanes}f32({kind}, {kind}, {kind})",
        "define void @run(ptr %arguments, i64 %from, i64 %to, i64 %share, i64 %shares) {",
        "entry:",
        "  %rounds = load i64, ptr %arguments, align 8",
        "  %second = getelementptr i64, ptr %arguments, i64 1",
        "  %all = load ptr, ptr %second, align 8",
        f"  %offset = mul i64 %share, {(2 + sums) * lanes}",
        "  %own = getelementptr float, ptr %all, i64 %offset",
        *(f"  %place{n} = {at(n)}" for n in range(2 + sums)),
        f"  %a = load {kind}, ptr %place0, align 4",
        f"  %b = load {kind}, ptr %place1, align 4",
        *(f"  %begin{n} = load {kind}, ptr %place{n + 2}, align 4" for n in numbers),
        "  br label %loop",
        "loop:",
        "  %round = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %s{n} = phi {kind} [ %begin{n}, %entry ], [ %t{n}, %loop ]" for n in numbers),
        *(
            f"  %t{n} = call {kind} @llvm.fma.v{lanes}f32({kind} %s{n}, {kind} %a, {kind} %b)"
            for n in numbers
        ),
        "  %next = add i64 %round, 1",
        "  %more = icmp slt i64 %next, %rounds",
        "  br i1 %more, label %loop, label %end",
        "end:",
        *(f"  store {kind} %t{n}, ptr %place{n + 2}, align 4" for n in numbers),
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=4)
def _compiled(limit: str) -> tuple[jit.Code, int, int]:
    """The code, and the sums and lanes that it was made for."""
    target = jit.target(limit)
    sums, lanes = target.registers, target.width // 4
    return jit.compile_ir(_text(sums, lanes), limit), sums, lanes


class Peak:
    """The loop on as many threads as torch uses, to be called as one side of a measurement.

    Attributes:
        operations: floating-point operations of one call.
    """

    def __init__(self) -> None:
        self._code, sums, lanes = _compiled(jit.features_limit())
        self._threads = threads.count()
        # 0.5 s + 0.5 goes to 1: no overflow, and none of the tiny numbers that slow some down.
        self._numbers = torch.full((self._threads, 2 + sums, lanes), 0.5)
        self._arguments = (ctypes.c_int64 * 2)(_ROUNDS, self._numbers.data_ptr())
        self.operations = 2 * lanes * sums * _ROUNDS * self._threads

    def __call__(self) -> None:
        """Run it on all threads."""
        threads.launch(
            self._code.address("run"), ctypes.addressof(self._arguments), 1, threads.SHARES,
            self._threads,
        )  # fmt: skip
