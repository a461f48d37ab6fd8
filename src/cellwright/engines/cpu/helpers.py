"""Compiled loops that are the same for all cells."""

from __future__ import annotations

from functools import lru_cache

from cellwright.engines.cpu import jit, outer, packing, product
from cellwright.engines.cpu.program import ENTRY


@lru_cache(maxsize=16)
def _helper(name: str, double: bool, bf16: bool, limit: str) -> tuple[jit.Code, int]:
    product.provide(double, bf16)
    emit = packing.emit_pack if name == "pack" else outer.emit_outer
    text = emit(double, bf16)
    code = jit.compile_ir(text, limit)
    return code, code.address(ENTRY)


def helper(name: str, double: bool, bf16: bool) -> int:
    """Address of a loop that is the same for all cells: "pack" or "outer"."""
    return _helper(name, double, bf16, jit.features_limit())[1]
