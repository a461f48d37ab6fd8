"""Precise timing: measuring the delay between spikes, generating spikes and periodic functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import UsageError
from cellwright.tasks.drawing import Drawn, whole, within

#: An output is right if it is less than this away from its target.
SPIKE_TOLERANCE, WAVE_TOLERANCE = 0.49, 0.3


def draw(
    random: np.random.Generator,
    count: int,
    *,
    period: int = 10,
    delays: int = 2,
    spikes: int = 1,
) -> Drawn:
    """Draw sequences for measuring spike delays (MSD).

    The input is 1 where there is a spike, else 0. From one spike to the next, and from the start
    to the first, it is ``period + delay`` steps, with a delay that is uniform in
    {0, ..., delays - 1}. At a spike the delay just past is to be told.

    Gers, Schraudolph & Schmidhuber 2002, Learning precise timing with LSTM recurrent networks:
    periods 10 to 50, two delays and more; a sequence is right if the output is less than 0.49
    (`SPIKE_TOLERANCE`) away at every spike. Peepholes are not needed here.

    Args:
        random: source of random numbers.
        count: sequences, B.
        period: steps from spike to spike where the delay is 0.
        delays: how many delays there are, at least 2.
        spikes: in a sequence; with 1 it ends at its first spike (NMSD).

    Returns:
        x (T, B, 1) for the longest sequence's T, zero behind the end of a shorter one; lengths
        (B,); targets (T, B, 1), NaN but at spikes.

    Raises:
        UsageError: for a wrong count or option.

    >>> x, lengths, targets = draw(np.random.default_rng(1), 2, period=3, spikes=2)
    >>> lengths.tolist(), x[:, 0, 0].long().tolist()
    ([7, 8], [0, 0, 1, 0, 0, 0, 1, 0])
    >>> targets[[2, 6], 0, 0].tolist()
    [0.0, 1.0]
    """
    count = whole("msd", "count", count, 1)
    period = whole("msd", "period", period, 1)
    delay = random.integers(
        0, whole("msd", "delays", delays, 2), size=(whole("msd", "spikes", spikes, 1), count)
    )
    at = (delay + period).cumsum(0)
    lengths = at[-1]
    x = np.zeros((lengths.max(), count, 1), dtype=np.float32)
    np.put_along_axis(x[..., 0], at - 1, 1.0, axis=0)
    targets = np.full_like(x, np.nan)
    np.put_along_axis(targets[..., 0], at - 1, delay.astype(np.float32), axis=0)
    x[~within(lengths)] = 0.0
    return torch.from_numpy(x), torch.from_numpy(lengths), torch.from_numpy(targets)


def spike(period: int) -> np.ndarray:
    """A period of generating timed spikes (GTS): 1 in the last step, else 0.

    >>> spike(4).tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    return (np.arange(1, period + 1) == period).astype(np.float64)


def cosine(period: int) -> np.ndarray:
    """A period of (1 - cos(2 pi t / period)) / 2, for t = 1, 2, ...

    >>> cosine(4).round(6).tolist()
    [0.5, 1.0, 0.5, 0.0]
    """
    return (1.0 - np.cos(2.0 * np.pi * np.arange(1, period + 1) / period)) / 2.0


def triangle(period: int) -> np.ndarray:
    """A period that rises evenly from 0 to 1 and falls back, for t = 1, 2, ...

    >>> triangle(4).tolist()
    [0.5, 1.0, 0.5, 0.0]
    """
    t = np.arange(1, period + 1)
    return 2.0 * np.minimum(t, period - t) / period


def rectangle(period: int) -> np.ndarray:
    """A period that is 1 where t mod period is above period / 2, else 0, for t = 1, 2, ...

    >>> rectangle(4).tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    return (2 * (np.arange(1, period + 1) % period) > period).astype(np.float64)


WAVES = {"spike": spike, "cosine": cosine, "triangle": triangle, "rectangle": rectangle}


class Periodic:
    """An endless periodic function that is to be generated without any input: GTS and PFG.

    All streams are the same, there being no chance. The net has one input, which is always 0.

    Gers, Schraudolph & Schmidhuber 2002, Learning precise timing with LSTM recurrent networks.
    Spikes (GTS): periods 10 to 50, tolerance 0.49; a test is 1,000 spikes. Cosine, triangle and
    rectangle (PFG): periods 10 and 25, tolerance 0.3. A stream begins at a state of zeros and
    ends at the first output that is not within the tolerance.

    Args:
        wave: "spike", "cosine", "triangle" or "rectangle".
        period: steps.
        streams: how many, B.

    Raises:
        UsageError: for another wave, a period below 2, or a wrong number of streams.

    Example:
        >>> stream = Periodic("spike", period=5)
        >>> x, targets, reset = stream.window(7)
        >>> x.shape, targets[:, 0, 0].tolist()
        (torch.Size([7, 1, 1]), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
        >>> stream.window(3)[1][:, 0, 0].tolist(), stream.state_dict()
        ([0.0, 0.0, 1.0], {'step': 10})
    """

    def __init__(self, wave: str, period: int, streams: int = 1):
        if wave not in WAVES:
            raise UsageError(f"periodic: wave: expected {', '.join(WAVES)}, got {wave!r}")
        self.wave = wave
        self.period = whole("periodic", "period", period, 2)
        self.streams = whole("periodic", "streams", streams, 1)
        self.tolerance = SPIKE_TOLERANCE if wave == "spike" else WAVE_TOLERANCE
        self._values = torch.from_numpy(WAVES[wave](self.period)).float()
        self._step = 0

    def window(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The next steps of all streams.

        Returns:
            x (steps, B, 1), zeros; targets (steps, B, 1); reset (steps, B), True at the very
            first step.

        Raises:
            UsageError: if ``steps`` is not a positive whole number.
        """
        steps = whole("periodic", "steps", steps, 1)
        at = (torch.arange(steps) + self._step) % self.period
        targets = self._values[at][:, None, None].expand(-1, self.streams, 1).contiguous()
        reset = torch.zeros(steps, self.streams, dtype=torch.bool)
        reset[0] = self._step == 0
        self._step += steps
        return torch.zeros_like(targets), targets, reset

    def state_dict(self) -> dict[str, Any]:
        """The position in all streams, as plain values."""
        return {"step": self._step}

    def load_state_dict(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` gave."""
        self._step = position["step"]


def within_tolerance(outputs: Tensor, targets: Tensor, tolerance: float) -> Tensor:
    """Where an output is less than the tolerance from its target, or there is no target.

    Args:
        outputs, targets: (T, B, 1).

    Returns:
        (T, B) booleans.
    """
    return (((outputs - targets).abs() < tolerance) | targets.isnan()).all(-1)
