"""Differentiation: an expression graph in, the graph of its gradients out."""

from cellwright.autodiff.reverse import gradient

__all__ = ["gradient"]
