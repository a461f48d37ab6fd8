"""Precise timing: generating a periodic function without any input (PFG)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import UsageError
from cellwright.tasks.drawing import whole
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.tasks.timing import (
    GERS,
    SPIKE_TOLERANCE,
    WAVE_TOLERANCE,
    all_within,
    root_mean_square,
    until_wrong,
    within_tolerance,
)
from cellwright.train import objectives
from cellwright.train.streams import Streams


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
        cycles: after so many periods a stream ends and another begins, from a state of zeros;
            None for streams that never end.

    Raises:
        UsageError: for another wave, a period below 2, or a wrong number.

    Example:
        >>> stream = Periodic("spike", period=5)
        >>> x, targets, reset = stream.window(7)
        >>> x.shape, targets[:, 0, 0].tolist()
        (torch.Size([7, 1, 1]), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
        >>> stream.window(3)[1][:, 0, 0].tolist(), stream.state_dict()
        ([0.0, 0.0, 1.0], {'step': 10})
    """

    def __init__(self, wave: str, period: int, streams: int = 1, *, cycles: int | None = None):
        if wave not in WAVES:
            raise UsageError(f"periodic: wave: expected {', '.join(WAVES)}, got {wave!r}")
        self.wave = wave
        self.period = whole("periodic", "period", period, 2)
        self.streams = whole("periodic", "streams", streams, 1)
        self.cycles = cycles if cycles is None else whole("periodic", "cycles", cycles, 1)
        self.tolerance = SPIKE_TOLERANCE if wave == "spike" else WAVE_TOLERANCE
        self._values = torch.from_numpy(WAVES[wave](self.period)).float()
        self._step = 0

    def window(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The next steps of all streams.

        Returns:
            x (steps, B, 1), zeros; targets (steps, B, 1); reset (steps, B), True where a stream
            begins.

        Raises:
            UsageError: if ``steps`` is not a positive whole number.
        """
        steps = whole("periodic", "steps", steps, 1)
        at = torch.arange(steps) + self._step
        targets = self._values[at % self.period]
        targets = targets[:, None, None].expand(-1, self.streams, 1).contiguous()
        begins = at == 0 if self.cycles is None else at % (self.cycles * self.period) == 0
        reset = begins[:, None].expand(-1, self.streams).contiguous()
        self._step += steps
        return torch.zeros_like(targets), targets, reset

    def state_dict(self) -> dict[str, Any]:
        """The position in all streams, as plain values."""
        return {"step": self._step}

    def load_state_dict(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` gave."""
        self._step = position["step"]


def _generated(tolerance: float) -> objectives.Objective:
    """As `all_within`, for a stream that ends at its first wrong value; steps before it count."""

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        counted = until_wrong(within_tolerance(outputs, targets, tolerance))
        return objectives.value_error(outputs[counted], targets[counted])

    def steps(outputs: Tensor, targets: Tensor) -> Tensor:
        right = within_tolerance(outputs, targets, tolerance)
        return right.long().cumprod(0).sum(0).double().mean()

    return replace(
        all_within(tolerance),
        name=f"generated-within-{tolerance:g}",
        loss=error,
        metric=steps,
        metric_name="steps",
        more={"rmse": root_mean_square},
    )


# One cell of the paper's kind, trained by Adam.
_PAPER: dict[str, Any] = {
    "hidden_size": 1, "learning_rate": 0.03, "schedule": "cosine",
    "layer": {"gradient": "truncated", "init": "forget_bias:2"},
}  # fmt: skip
_TRUNCATED = {"cycles": 20, "updates": 20_000}
_READ = "read in a second source"


@task(
    "periodic-functions",
    title="Generate a periodic function without any input (PFG)",
    objective=_generated(WAVE_TOLERANCE),
    defaults={
        "schedule": "constant", "optimizer": "adam", "hidden_size": 2, "learning_rate": 0.01,
        "batch_size": 1, "epochs": 10, "cell": "peephole_lstm",
    },
    published=(
        Published("peepholes", 0.17, GERS, f"cosine of period 25; {_READ}",
                  measure="test_rmse", case="peepholes, truncated gradient"),
        Published("peepholes", 10_000, GERS, f"all 1,000 periods right; {_READ}",
                  measure="test_steps", case="peepholes, truncated gradient"),
    ),
    source=GERS,
    cases=(
        Case(
            "peepholes, truncated gradient", _TRUNCATED, {**_PAPER, "cell": "odyssey_noaf"},
        ),
        Case(
            "no peepholes, truncated gradient", _TRUNCATED,
            {**_PAPER, "cell": "lstm_no_output_activation"},
        ),
        Case("peepholes", changes={"cell": "peephole_lstm"}),
        Case("no peepholes", changes={"cell": "lstm"}),
    ),
    report=("test_steps", "test_rmse", "test_wrong"),
)  # fmt: skip
def periodic_functions(
    wave: str = "cosine", period: int = 10, cycles: int = 10, updates: int = 2_500
) -> Data:
    """Streams of a wave; the test has 1,000 periods.

    A stream ends at its first wrong output; ``test_steps`` of the test come before it. In the
    paper the weights change at every step (rate 1e-5, momentum 0.99), for up to ten million
    streams; here once a stream, by Adam.

    Args:
        wave: "cosine", "triangle" or "rectangle".
        period: steps.
        cycles: after so many a stream of training ends; a window is a whole stream.
        updates: of the weights, in ten epochs.
    """

    def begin(seed: int | None, streams: int) -> Periodic:
        return Periodic(wave, period, streams, cycles=None if seed is None else cycles)

    begin(0, 1)
    names = ("nothing",), ("value",)
    updates = whole("periodic", "updates", updates, 10)
    return Data(
        train=Streams(begin, *names, cycles * period, updates // 10),
        test=Streams(begin, *names, 1_000 * period, 1),
    )
