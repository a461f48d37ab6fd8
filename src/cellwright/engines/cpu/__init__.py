"""The CPU engine: plans compiled to machine code with LLVM."""

from cellwright.engines.cpu.engine import CpuEngine

__all__ = ["CpuEngine"]
