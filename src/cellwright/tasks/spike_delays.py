"""Precise timing: measuring the delay between spikes (MSD)."""

from __future__ import annotations

import numpy as np
import torch

from cellwright.tasks.drawing import Drawn, whole, within
from cellwright.tasks.task import Case, Data, task
from cellwright.tasks.timing import GERS, SPIKE_TOLERANCE, all_within
from cellwright.train.sequences import Generated


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


@task(
    "spike-delays",
    title="Measure the delay between spikes (MSD)",
    source=GERS,
    objective=all_within(SPIKE_TOLERANCE),
    defaults={
        "hidden_size": 4, "layer": {"init": "orthogonal+chrono:20"}, "optimizer": "adam",
        "learning_rate": 0.05, "schedule": "cosine", "batch_size": 16, "epochs": 10,
    },
    cases=(Case("no peepholes"), Case("peepholes", changes={"cell": "peephole_lstm"})),
    report=("test_wrong", "test_rmse"),
)  # fmt: skip
def spike_delays(period: int = 10, delays: int = 2, spikes: int = 10) -> Data:
    """Sequences as `draw` makes them; the test has 1,000 spikes in each."""

    def train(random: np.random.Generator, count: int) -> Drawn:
        return draw(random, count, period=period, delays=delays, spikes=spikes)

    def test(random: np.random.Generator, count: int) -> Drawn:
        return draw(random, count, period=period, delays=delays, spikes=1_000)

    train(np.random.default_rng(0), 1)
    names = ("spike",), ("delay",)
    return Data(train=Generated(train, *names, 1_600), test=Generated(test, *names, 10))
