"""The GPU engine: plans emitted as Triton kernels."""

from cellwright.engines.gpu.engine import GpuEngine

__all__ = ["GpuEngine"]
