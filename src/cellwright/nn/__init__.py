"""Layers for torch: any cell, the drop-in replacements of ``torch.nn``'s, and conversion."""

from cellwright.nn.conv import ConvRecurrent
from cellwright.nn.explain import Explanation, explain
from cellwright.nn.recurrent import Recurrent

__all__ = ["ConvRecurrent", "Explanation", "Recurrent", "explain"]
