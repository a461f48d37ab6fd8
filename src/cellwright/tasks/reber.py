"""The embedded Reber grammar: the second symbol of a string says which one is its last but one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import UsageError
from cellwright.tasks.drawing import Drawn, one_hot, whole, within

#: The symbols in the order of the input's and the output's units.
SYMBOLS = ("B", "T", "P", "S", "X", "V", "E")

# Reber's grammar between its B and its E: in each state two symbols, each with the next state.
_INNER = (
    (("T", 1), ("P", 2)),
    (("S", 1), ("X", 3)),
    (("T", 2), ("V", 4)),
    (("X", 2), ("S", 5)),
    (("P", 3), ("V", 5)),
)
_INNER_END = 5


def _embedded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grammar that never ends: after the outer E comes the next string's B.

    State 0 expects the outer B. Every state has a choice of two, which may be the same.

    Returns:
        symbols (states, 2), next states (states, 2), possible symbols (states, 7).
    """
    choices: dict[Any, tuple[tuple[str, Any], tuple[str, Any]]] = {}

    def only(symbol: str, following: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
        return (symbol, following), (symbol, following)

    choices["start"] = only("B", "branch")
    choices["branch"] = (("T", ("T", "enter")), ("P", ("P", "enter")))
    for branch in "TP":
        choices[branch, "enter"] = only("B", (branch, 0))
        for state, ((one, after_one), (other, after_other)) in enumerate(_INNER):
            choices[branch, state] = ((one, (branch, after_one)), (other, (branch, after_other)))
        choices[branch, _INNER_END] = only("E", (branch, "leave"))
        choices[branch, "leave"] = only(branch, "end")
    choices["end"] = only("E", "start")
    number = {state: index for index, state in enumerate(choices)}
    symbols = np.array([[SYMBOLS.index(s) for s, _ in each] for each in choices.values()])
    following = np.array([[number[after] for _, after in each] for each in choices.values()])
    possible = np.zeros((len(choices), len(SYMBOLS)), dtype=bool)
    np.put_along_axis(possible, symbols, True, axis=1)
    return symbols, following, possible


_SYMBOLS, _FOLLOWING, _POSSIBLE = _embedded()
# The state that expects the outer B, and the state after it.
_START, _BEGUN = 0, 1


def draw(random: np.random.Generator, count: int) -> Drawn:
    """Draw strings of the embedded Reber grammar; every choice of two is one to one.

    A string is ``B T inner T E`` or ``B P inner P E``, where ``inner`` is a string of Reber's
    grammar, ``B ... E``. The next symbol is to be predicted after each one but the last.

    Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 1: sets of 256 strings to
    train on and to test on; solved if in both, at every step, the one or two possible symbols are
    the most active outputs (`most_active`).

    Args:
        random: source of random numbers.
        count: strings, B.

    Returns:
        x (T, B, 7) for the longest string's T, zero behind the end of a shorter one; lengths
        (B,), each one less than the string's; targets (T, B, 7): 1 for the symbol that comes,
        1/2 for another that might have come, 0 for all others, NaN behind the end.

    Raises:
        UsageError: for a wrong count.

    >>> x, lengths, targets = draw(np.random.default_rng(1), 3)
    >>> x.shape, lengths.tolist()
    (torch.Size([11, 3, 7]), [11, 8, 9])
    >>> "".join(SYMBOLS[each] for each in targets[:8, 1].argmax(-1))
    'TBPVVETE'
    """
    count = whole("reber", "count", count, 1)
    states = [np.full(count, _START)]
    rows: list[np.ndarray] = []
    while not rows or states[-1].any():
        bits = random.integers(0, 2, size=count)
        # A string that has ended stays at the start; its symbols are not used.
        ended = states[-1] == _START if rows else np.zeros(count, dtype=bool)
        rows.append(_SYMBOLS[states[-1], bits])
        states.append(np.where(ended, _START, _FOLLOWING[states[-1], bits]))
    lengths = (np.stack(states[1:]) != _START).sum(0)
    inside = within(lengths)
    x = one_hot(np.stack(rows[:-1]), lengths, len(SYMBOLS))
    targets = _targets(np.stack(rows[1:]), np.stack(states[1:-1]))
    targets[~torch.from_numpy(inside)] = torch.nan
    return x, torch.from_numpy(lengths), targets


def most_active(outputs: Tensor, targets: Tensor) -> Tensor:
    """Where the possible symbols are the most active outputs.

    Args:
        outputs: (..., 7), of any range.
        targets: (..., 7), as `draw` returns them.

    Returns:
        (...) booleans; True also where there is no target.

    >>> import torch
    >>> outputs = torch.tensor([[0.1, 0.4, 0.5], [0.3, 0.2, 0.5]])
    >>> most_active(outputs, torch.tensor([[0.0, 0.5, 1.0], [0.0, 1.0, 0.5]])).tolist()
    [True, False]
    """
    possible = targets > 0
    least = outputs.masked_fill(~possible, torch.inf).amin(-1)
    most = outputs.masked_fill(possible, -torch.inf).amax(-1)
    return (least > most) | targets.isnan().any(-1)


def right_in_a_row(right: Tensor) -> Tensor:
    """Predictions before the first wrong one of each stream: (T, B) booleans to (B,).

    >>> import torch
    >>> right_in_a_row(torch.tensor([[True, True], [False, True], [True, True]])).tolist()
    [1, 3]
    """
    return right.long().cumprod(0).sum(0)


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
        self._symbols = np.full(self.streams, _SYMBOLS[_START, 0])
        self._states = np.full(self.streams, _FOLLOWING[_START, 0])
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
            symbols[step + 1] = _SYMBOLS[states[step], bits[step]]
            states[step + 1] = _FOLLOWING[states[step], bits[step]]
        begins = states[:-1] == _BEGUN
        number = self._begun + begins.cumsum(0)
        first = number == 1 if self.strings is None else number % self.strings == 1 % self.strings
        reset = torch.from_numpy(begins & first)
        self._window += 1
        self._symbols, self._states, self._begun = symbols[-1], states[-1], number[-1]
        x = one_hot(symbols[:-1], np.full(self.streams, steps), len(SYMBOLS))
        return x, _targets(symbols[1:], states[:-1]), reset

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


def _targets(symbols: np.ndarray, states: np.ndarray) -> Tensor:
    """Targets of steps after which a state is reached and a symbol comes."""
    targets = torch.from_numpy(_POSSIBLE[states]).float() / 2
    return targets.scatter_(-1, torch.from_numpy(symbols)[..., None], 1.0)
