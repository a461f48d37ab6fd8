"""The CPU engine: plans compiled to machine code with LLVM."""

from cellwright.engines.cpu.engine import CpuEngine
from cellwright.engines.cpu.listing import listing

__all__ = ["CpuEngine", "listing"]
