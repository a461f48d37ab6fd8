"""Layers for torch: any cell, the drop-in replacements of ``torch.nn``'s, and conversion."""

from cellwright.nn.recurrent import Recurrent

__all__ = ["Recurrent"]
