"""A ``PackedSequence`` taken apart, and an output packed as its input was."""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def unpack(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """A packed batch as (T, B, I) in the order in which it was packed, and its lengths."""
    return pad_packed_sequence(packed)


def pack_like(y: Tensor, lengths: Tensor, packed: PackedSequence) -> PackedSequence:
    """(T, B, size) packed exactly as ``packed`` is."""
    order = packed.sorted_indices
    if order is not None:
        y, lengths = y.index_select(1, order), lengths.to(order.device)[order].cpu()
    data = pack_padded_sequence(y, lengths, enforce_sorted=True).data
    return PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices)
