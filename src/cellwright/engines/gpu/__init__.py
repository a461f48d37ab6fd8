"""The GPU engine: plans emitted as Triton kernels."""

from cellwright.engines.gpu.engine import GpuEngine
from cellwright.engines.gpu.listing import listing

__all__ = ["GpuEngine", "listing"]
