"""What the functions of this folder are given, checked once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellwright.errors import InputError, InputTypeError
from cellwright.nn.arguments import check_count
from cellwright.nn.masks import INTEGERS

# How far from 0 the log of a frame's sum may be. Rounding leaves 1e-5 in float32; in bfloat16,
# 30,000 equal labels are 0.03 off. Forgotten log_softmax is off by more than either.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_TOLERANCE_HALF = 5e-2


def read_log_probs(given: Any, lengths: Any, blank: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, B, labels), in float32 at least, and lengths (B,) on the CPU.

    Frames beyond a sequence's length are not looked at.

    Raises:
        InputError: a wrong shape, length or blank; a frame whose probabilities do not sum to 1.
        InputTypeError: not a tensor of floating-point numbers.
    """
    if not isinstance(given, Tensor) or not given.is_floating_point():
        found = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise InputTypeError(f"log_probs: expected a floating-point tensor, got {found}")
    if given.ndim != 3 or given.shape[2] == 0:
        raise InputError(
            f"log_probs: expected shape (T, B, labels), got {tuple(given.shape)}; "
            f"a single sequence is (T, 1, labels)"
        )
    steps, batch, labels = given.shape
    check_count("blank", blank, least=0)
    if blank >= labels:
        raise InputError(f"blank: expected one of the labels 0 to {labels - 1}, got {blank}")
    found_lengths = read_lengths("lengths", lengths, batch, steps, "log_probs has {} frames")
    log_probs = given if given.dtype in _TOLERANCE else given.float()
    tolerance = _TOLERANCE.get(given.dtype, _TOLERANCE_HALF)
    _check_sums(log_probs.detach(), found_lengths, tolerance)
    return log_probs, found_lengths


def _check_sums(log_probs: Tensor, lengths: Tensor, tolerance: float) -> None:
    sums = log_probs.logsumexp(-1).cpu()
    wrong = within(lengths, log_probs.shape[0]) & ~(sums.abs() <= tolerance).T
    if not wrong.any():
        return
    sequence, frame = wrong.nonzero()[0].tolist()
    where = f"in frame {frame} of sequence {sequence}"
    values = log_probs[frame, sequence]
    if values.isnan().any():
        raise InputError(f"log_probs: NaN {where}")
    if values.isposinf().any():
        raise InputError(f"log_probs: a log-probability of +inf {where}")
    raise InputError(
        f"log_probs: the probabilities {where} sum to {sums[frame, sequence].exp().item():.4g}, "
        f"not 1; apply log_softmax(-1) to the network's outputs"
    )


def read_lengths(name: str, given: Any, batch: int, most: int, room: str) -> Tensor:
    """Whole numbers (B,) from 0 to ``most``, on the CPU; ``most`` everywhere where None is given.

    Raises:
        InputError: anything else; ``room.format(most)`` says where ``most`` comes from.
    """
    if given is None:
        return torch.full((batch,), most)
    try:
        lengths = given if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected {batch} whole numbers, got {given!r}") from error
    if tuple(lengths.shape) != (batch,):
        raise InputError(
            f"{name}: expected shape ({batch},), one for each sequence of the batch, "
            f"got {tuple(lengths.shape)}"
        )
    if lengths.dtype not in INTEGERS and batch:  # an empty list is a tensor of float32
        raise InputError(f"{name}: expected whole numbers such as torch.int64, got {lengths.dtype}")
    lengths = lengths.detach().to("cpu", torch.int64)
    for sequence, length in enumerate(lengths.tolist()):
        if not 0 <= length <= most:
            raise InputError(
                f"{name}: {room.format(most)}, got a length of {length} for sequence {sequence}"
            )
    return lengths


def read_targets(
    given: Any, lengths: Any, batch: int, labels: int, blank: int
) -> tuple[Tensor, Tensor]:
    """Targets (B, S), blank beyond their lengths, and the lengths (B,), both on the CPU.

    Raises:
        InputError: a wrong shape or length; a label that there is not, or the blank.
        InputTypeError: not a tensor of whole numbers.
    """
    padded, found_lengths = read_padded(given, lengths)
    if padded.shape[0] != batch:
        raise InputError(
            f"targets: expected shape (B, S) with B = {batch} as in log_probs, "
            f"got {tuple(padded.shape)}"
        )
    inside = within(found_lengths, padded.shape[1])
    wrong = inside & ((padded < 0) | (padded >= labels) | (padded == blank))
    if wrong.any():
        sequence, position = wrong.nonzero()[0].tolist()
        label = int(padded[sequence, position])
        raise InputError(
            f"targets: expected labels from 0 to {labels - 1} other than the blank ({blank}), "
            f"got {label} at position {position} of sequence {sequence}"
        )
    return padded.where(inside, blank), found_lengths


def read_padded(given: Any, lengths: Any) -> tuple[Tensor, Tensor]:
    """Whole numbers (B, S) and the lengths (B,), both on the CPU."""
    if not isinstance(given, Tensor) or given.dtype not in INTEGERS:
        kind = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise InputTypeError(
            f"targets: expected a tensor of whole numbers such as torch.int64, got {kind}"
        )
    if given.ndim != 2:
        raise InputError(
            f"targets: expected shape (B, S), padded (see torch.nn.utils.rnn.pad_sequence), "
            f"got {tuple(given.shape)}"
        )
    batch, most = given.shape
    found = read_lengths("target_lengths", lengths, batch, most, "targets has room for {} labels")
    return given.detach().to("cpu", torch.int64), found


def repeats(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Number of labels that are equal to the one before them, (B,)."""
    equal = targets[:, 1:] == targets[:, :-1]
    return (equal & within(target_lengths - 1, equal.shape[1])).sum(1)


def check_possible(
    lengths: Tensor, targets: Tensor, target_lengths: Tensor, remedy: str = ""
) -> None:
    """Every target has a path.

    Raises:
        InputError: a target needs more frames than its sequence has.
    """
    equal = repeats(targets, target_lengths)
    needed = target_lengths + equal
    short = (needed > lengths).nonzero().flatten().tolist()
    if not short:
        return
    first = short[0]
    others = f" ({len(short)} such sequences in the batch)" if len(short) > 1 else ""
    raise InputError(
        f"targets: sequence {first} has {int(lengths[first])} frames, and its target needs at "
        f"least {int(needed[first])}: {int(target_lengths[first])} labels and a blank between "
        f"equal neighbours, {int(equal[first])} times{others}; shorten the target or let the "
        f"network give more frames{remedy}"
    )


def within(lengths: Tensor, most: int) -> Tensor:
    """(B, most): True before a sequence's end."""
    return torch.arange(most) < lengths[:, None]


def each_sequence(log_probs: Tensor, lengths: Tensor) -> Iterator[NDArray[np.float64]]:
    """The sequences one by one, (length, labels)."""
    on_cpu = log_probs.detach().cpu()
    for sequence, length in enumerate(lengths.tolist()):
        yield on_cpu[:length, sequence].double().numpy()
