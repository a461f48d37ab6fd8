"""Layers for torch: any cell, the drop-in replacements of ``torch.nn``'s, and conversion."""

from cellwright.nn.conv import ConvRecurrent
from cellwright.nn.convert import accelerate, to_torch
from cellwright.nn.explanation import Explanation, explain
from cellwright.nn.recurrent import Recurrent
from cellwright.nn.standard import GRU, LSTM, RNN
from cellwright.nn.standard_cells import GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU", "LSTM", "RNN", "ConvRecurrent", "Explanation", "GRUCell", "LSTMCell", "RNNCell",
    "Recurrent", "accelerate", "explain", "to_torch",
]  # fmt: skip
