"""The embedded Reber grammar: the second symbol of a string says which one is its last but one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cellwright.tasks.drawing import Drawn, one_hot, whole, within
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.train import objectives
from cellwright.train.sequences import Sequences

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


# By state: the two symbols that may come, the states they lead to, and the same as a set.
COMES, LEADS, POSSIBLE = _embedded()
# The state that expects the outer B, and the state after it.
START, BEGUN = 0, 1


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
    states = [np.full(count, START)]
    rows: list[np.ndarray] = []
    while not rows or states[-1].any():
        bits = random.integers(0, 2, size=count)
        # A string that has ended stays at the start; its symbols are not used.
        ended = states[-1] == START if rows else np.zeros(count, dtype=bool)
        rows.append(COMES[states[-1], bits])
        states.append(np.where(ended, START, LEADS[states[-1], bits]))
    lengths = (np.stack(states[1:]) != START).sum(0)
    inside = within(lengths)
    x = one_hot(np.stack(rows[:-1]), lengths, len(SYMBOLS))
    targets = make_targets(np.stack(rows[1:]), np.stack(states[1:-1]))
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


def make_targets(symbols: np.ndarray, states: np.ndarray) -> Tensor:
    """Targets of steps after which a state is reached and a symbol comes."""
    targets = torch.from_numpy(POSSIBLE[states]).float() / 2
    return targets.scatter_(-1, torch.from_numpy(symbols)[..., None], 1.0)


def symbol_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats of the symbols that came; targets as `draw` returns them."""
    counted = ~targets[..., 0].isnan()
    return F.cross_entropy(outputs[counted], targets[counted].argmax(-1))


def share_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the predictions in which the possible symbols are the most active."""
    counted = ~targets[..., 0].isnan()
    return most_active(outputs, targets)[counted].double().mean()


NEXT_SYMBOL = replace(
    objectives.get("classes"),
    name="next-symbol",
    loss=symbol_error,
    metric=share_right,
    metric_name="right",
    count=objectives.count_frames,
    right=lambda outputs, targets: most_active(outputs, targets).all(0),
)

_HOCHREITER = "Hochreiter & Schmidhuber 1997, Long short-term memory, table 1"


def _strings(seed: list[int], count: int) -> Sequences:
    x, lengths, targets = draw(np.random.default_rng(seed), count)
    ends = lengths.tolist()
    return Sequences(
        [x[:end, b] for b, end in enumerate(ends)],
        [targets[:end, b] for b, end in enumerate(ends)],
        SYMBOLS,
        SYMBOLS,
    )


@task(
    "embedded-reber",
    title="Foretell the symbols of a grammar; the second one says which is the last but one",
    source=_HOCHREITER,
    objective=NEXT_SYMBOL,
    # 32 times through 256 strings are 8,192 sequences: within the published count.
    defaults={
        "hidden_size": 16, "learning_rate": 0.01, "batch_size": 2, "epochs": 32,
         "optimizer": "adam", "layer": {"init": "forget_bias:1"},
    },
    published=(
        Published(
            "LSTM, 3 blocks x 2 cells, 276 weights, rate 0.5", 8440, _HOCHREITER,
            "until all predictions on both sets are right",
            measure="sequences",
        ),
    ),
    cases=(Case("embedded-reber", seeds=10),),
    report=("sequences", "test_wrong", "test_right"),
)  # fmt: skip
def embedded_reber(strings: int = 256, pair: int = 0) -> Data:
    """A set of strings to train on and one to test on.

    Args:
        strings: in each set.
        pair: number of the pair of sets.
    """
    pair = whole("embedded-reber", "pair", pair, 0)
    return Data(train=_strings([pair, 0], strings), test=_strings([pair, 1], strings))
