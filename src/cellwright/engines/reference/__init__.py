"""The reference engine: plans carried out with torch operations, on any device and dtype."""

from cellwright.engines.reference.run import ReferenceEngine, differentiable

__all__ = ["ReferenceEngine", "differentiable"]
