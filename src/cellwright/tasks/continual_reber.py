"""Embedded Reber strings in a row: an LSTM has to learn when to forget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import UsageError
from cellwright.tasks.drawing import one_hot, whole
from cellwright.tasks.reber import BEGUN, COMES, LEADS, NEXT_SYMBOL, START, SYMBOLS, make_targets
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.train.streams import Streams

# Numbers of the first streams to measure on, and to test on the way; training has fewer.
_MEASURED, _CHECKED = 2**31, 2**31 + 2**30

_GERS = "Gers, Schmidhuber & Cummins 2000, Learning to forget, table 2"


class ContinualReber:
    """Streams of embedded Reber strings, with nothing that marks where one string ends.

    The next symbol is to be predicted at every step; no state is reset between strings.

    Gers, Schmidhuber & Cummins 2000, Learning to forget: continual prediction with LSTM: a stream
    of training ends at the first wrong prediction; a test is ten streams of 100,000 symbols, each
    until the first wrong prediction. A solution is perfect if there is none, good if the streams'
    mean is above 1,000. Here a stream of training ends after some strings, if it ends at all.

    Args:
        streams: how many run side by side, B.
        seed: of all chance; a stream depends on it, on its own number and on the lengths of
            the windows.
        strings: after so many a stream ends and another begins, from a state of zeros; None for
            streams that never end.
        first: number of the first stream, so that several processes can share streams out.

    Raises:
        UsageError: for a wrong number.

    Example:
        >>> stream = ContinualReber(streams=3, seed=1)
        >>> x, targets, reset = stream.window(50)
        >>> x.shape, targets.shape, reset[0].all().item(), reset[1:].any().item()
        (torch.Size([50, 3, 7]), torch.Size([50, 3, 7]), True, False)
        >>> position = stream.state_dict()
        >>> after = stream.window(50)[0]
        >>> stream.load_state_dict(position)
        >>> bool((stream.window(50)[0] == after).all())
        True
    """

    def __init__(
        self,
        streams: int,
        seed: int,
        *,
        strings: int | None = None,
        first: int = 0,
    ):
        self.streams = whole("continual-reber", "streams", streams, 1)
        self.seed = whole("continual-reber", "seed", seed, 0)
        self.first = whole("continual-reber", "first", first, 0)
        self.strings = strings
        if strings is not None:
            self.strings = whole("continual-reber", "strings", strings, 1)
        self._window = 0
        # The next window's first symbol in each stream, where it leads, strings begun before it.
        self._symbols = np.full(self.streams, COMES[START, 0])
        self._states = np.full(self.streams, LEADS[START, 0])
        self._begun = np.zeros(self.streams, dtype=np.int64)

    def window(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The next steps of all streams.

        Returns:
            x (steps, B, 7); targets as in `draw`, of all steps; reset (steps, B), True where a
            stream begins.

        Raises:
            UsageError: if ``steps`` is not a positive whole number.
        """
        steps = whole("continual-reber", "steps", steps, 1)
        bits = np.stack(
            [
                np.random.default_rng([self.seed, self.first + stream, self._window]).integers(
                    0, 2, size=steps
                )
                for stream in range(self.streams)
            ],
            axis=1,
        )
        symbols, states = np.empty((2, steps + 1, self.streams), dtype=np.int64)
        symbols[0], states[0] = self._symbols, self._states
        for step in range(steps):
            symbols[step + 1] = COMES[states[step], bits[step]]
            states[step + 1] = LEADS[states[step], bits[step]]
        begins = states[:-1] == BEGUN
        number = self._begun + begins.cumsum(0)
        first = number == 1 if self.strings is None else number % self.strings == 1 % self.strings
        reset = torch.from_numpy(begins & first)
        self._window += 1
        self._symbols, self._states, self._begun = symbols[-1], states[-1], number[-1]
        x = one_hot(symbols[:-1], np.full(self.streams, steps), len(SYMBOLS))
        return x, make_targets(symbols[1:], states[:-1]), reset

    def state_dict(self) -> dict[str, Any]:
        """The position in all streams, as plain values."""
        return {
            "window": self._window,
            "symbols": self._symbols.tolist(),
            "states": self._states.tolist(),
            "begun": self._begun.tolist(),
        }

    def load_state_dict(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` of streams with the same arguments gave.

        Raises:
            UsageError: if it has another number of streams.
        """
        if len(position["states"]) != self.streams:
            raise UsageError(
                f"continual-reber: expected the position of {self.streams} streams, got one of "
                f"{len(position['states'])}"
            )
        self._window = position["window"]
        self._symbols = np.array(position["symbols"])
        self._states = np.array(position["states"])
        self._begun = np.array(position["begun"])


_TRUNCATED = {"gradient": "truncated"}
_FORGETS: dict[str, Any] = {"layer": {"init": "forget_bias:1"}}
_FORGETS_TRUNCATED: dict[str, Any] = {"layer": {"init": "forget_bias:1", **_TRUNCATED}}
_KEEPS: dict[str, Any] = {"cell": "lstm_1997", "layer": {}}
_KEEPS_TRUNCATED: dict[str, Any] = {"cell": "lstm_1997", "layer": _TRUNCATED}
# The paper's decaying rate is times 0.99 every hundred streams.
_DECAYS: dict[str, Any] = {"schedule": "step", "decay": 0.95, "decay_epochs": 1}


@task(
    "continual-reber",
    title="Foretell the symbols of embedded Reber strings in a row, with nothing between them",
    source=_GERS,
    objective=NEXT_SYMBOL,
    defaults={
        "hidden_size": 8, "learning_rate": 0.01, "schedule": "constant", "batch_size": 10,
        "epochs": 30, "optimizer": "adam", **_FORGETS_TRUNCATED,
    },
    published=(
        Published(
            "LSTM with forget gates", 0.18, _GERS, "perfect of 100 nets; 4 blocks x 2 cells",
            measure="solved", case="forget gates",
        ),
        Published(
            "LSTM with forget gates, decaying rate", 0.62, _GERS, "perfect of 100 nets",
            measure="solved", case="forget gates, decaying rate",
        ),
        Published(
            "LSTM", 0.0, _GERS, "perfect of 100 nets", measure="solved", case="no forget gates",
        ),
    ),
    cases=(
        Case("forget gates", seeds=10),
        Case("no forget gates", changes=_KEEPS_TRUNCATED, seeds=10),
        Case("forget gates, decaying rate", changes=_DECAYS, seeds=10),
        Case(
            "no forget gates, decaying rate", changes={**_DECAYS, **_KEEPS_TRUNCATED}, seeds=10
        ),
        Case("forget gates, full gradient", changes=_FORGETS),
        Case("no forget gates, full gradient", changes=_KEEPS),
    ),
    report=("solved", "epoch_of_weights", "test_wrong"),
)  # fmt: skip
def continual_reber(strings: int = 300, steps: int = 60, symbols: int = 150_000) -> Data:
    """Streams to train on, others to test on the way, and others again to test on at the end.

    After every epoch ten streams of 100,000 symbols are foretold, as in the paper; training stops
    when all of them are right: the net is perfect, and ``solved``. ``test_wrong`` is how many of
    6,400 windows have a wrong prediction, a thousand symbols each, in 64 further streams of
    100,000.

    In the paper the weights change at every symbol by plain gradient descent, and a stream of
    training ends at its first wrong prediction; here they change once a window, by Adam, and a
    stream ends after so many strings.

    Args:
        strings: after so many a stream of training ends.
        steps: of a window of truncated backpropagation.
        symbols: of an epoch, with ten streams.
    """
    steps = whole("continual-reber", "steps", steps, 1)
    windows = whole("continual-reber", "symbols", symbols, 10 * steps) // (10 * steps)

    # Streams to measure on are others than those of any seed.
    def begin(seed: int | None, streams: int) -> ContinualReber:
        if seed is None:
            return ContinualReber(streams, 0, first=_MEASURED)
        return ContinualReber(streams, seed, strings=strings)

    def ten(seed: int | None, streams: int) -> ContinualReber:
        return ContinualReber(10, 0, first=_CHECKED)

    return Data(
        train=Streams(begin, SYMBOLS, SYMBOLS, steps, windows),
        test=Streams(begin, SYMBOLS, SYMBOLS, 1_000, 100),
        check=Streams(ten, SYMBOLS, SYMBOLS, 1_000, 100),
    )
