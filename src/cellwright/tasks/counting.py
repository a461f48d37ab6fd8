"""Counting: the languages a^n b^n, which is context-free, and a^n b^n c^n, which is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cellwright.errors import UsageError
from cellwright.tasks.drawing import Drawn, one_hot, whole, within
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.train import objectives
from cellwright.train.sequence_model import SequenceModel
from cellwright.train.sequences import Generated, Sequences

#: The letters of each language.
LANGUAGES = {"anbn": "ab", "anbncn": "abc"}


def symbols(language: str) -> tuple[str, ...]:
    """The symbols in the order of the input's and the output's units: S and T are the ends.

    >>> symbols("anbn")
    ('S', 'a', 'b', 'T')
    """
    return ("S", *_letters(language), "T")


def draw(
    random: np.random.Generator, count: int, *, language: str = "anbn", low: int = 1, high: int = 10
) -> Drawn:
    """Draw strings ``S a^n b^n T`` or ``S a^n b^n c^n T``, with n uniform in [low, high].

    At every step but the last the possible next symbols are to be predicted: after S it is a, after
    an a it is a or b, and from the first b on a single one, which only counting tells.

    Gers & Schmidhuber 2001, LSTM recurrent networks learn simple context-free and
    context-sensitive languages. A string is accepted if all its predictions are right (`accepted`).

    Args:
        random: source of random numbers.
        count: strings, B.
        language: "anbn" or "anbncn".
        low, high: range of n, at least 1.

    Returns:
        x (T, B, symbols) for the longest string's T, zero behind the end of a shorter one;
        lengths (B,), each one less than the string's; targets (T, B, symbols): 1 for a possible
        next symbol, 0 for any other, NaN behind the end.

    Raises:
        UsageError: for a wrong count, language or range.

    >>> x, lengths, targets = draw(np.random.default_rng(1), 4, high=3)
    >>> x.shape, lengths.tolist()
    (torch.Size([7, 4, 4]), [5, 5, 7, 7])
    """
    count = whole("counting", "count", count, 1)
    letters = _letters(language)
    low = whole("counting", "low", low, 1)
    high = whole("counting", "high", high, low)
    return _strings(random.integers(low, high + 1, size=count), len(letters))


def strings(ns: list[int], language: str = "anbn") -> Drawn:
    """The strings of these n, as `draw` returns them.

    Raises:
        UsageError: for another language, or an n below 1.

    >>> x, lengths, targets = strings([2])
    >>> "".join(symbols("anbn")[each] for each in x[:, 0].argmax(-1))
    'Saabb'
    >>> targets[:, 0, 1:].long().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]
    """
    letters = _letters(language)
    return _strings(np.array([whole("counting", "n", n, 1) for n in ns]), len(letters))


def accepted(outputs: Tensor, targets: Tensor) -> Tensor:
    """Which strings are accepted: at every step the possible symbols alone have outputs above 0.

    Args:
        outputs: (T, B, symbols), before a sigmoid.
        targets: as `draw` returns them.

    Returns:
        (B,) booleans.
    """
    return (((outputs > 0) == (targets > 0.5)) | targets.isnan()).all(-1).all(0)


def generalisation(accepts: Callable[[list[int]], list[bool]], limit: int, block: int = 50) -> int:
    """The largest n, up to a limit, for which all strings from 1 to n are accepted.

    Args:
        accepts: for several n, whether the net accepts each one's string.
        limit: where to stop.
        block: how many n to ask for at a time.

    Raises:
        UsageError: if a limit is not a positive whole number.

    >>> generalisation(lambda ns: [n < 119 for n in ns], limit=1000)
    118
    """
    limit = whole("counting", "limit", limit, 1)
    for first in range(1, limit + 1, whole("counting", "block", block, 1)):
        ns = list(range(first, min(first + block, limit + 1)))
        for n, good in zip(ns, accepts(ns), strict=True):
            if not good:
                return n - 1
    return limit


def _letters(language: object) -> str:
    if language not in LANGUAGES:
        raise UsageError(
            f"counting: language: expected {' or '.join(map(repr, LANGUAGES))}, got {language!r}"
        )
    return LANGUAGES[str(language)]


def _strings(n: np.ndarray, letters: int) -> Drawn:
    lengths = letters * n + 1
    inside = within(lengths)
    # Which letter stands at a step, counted from 1; S is 0.
    letter = np.minimum(-(-np.arange(len(inside))[:, None] // n), letters)
    x = one_hot(letter, lengths, letters + 2)
    # What comes is the letter of the next step, T after the last; after an a also another a.
    following = np.minimum(np.arange(len(inside))[:, None] // n + 1, letters + 1)
    targets = torch.zeros_like(x)
    targets.scatter_(2, torch.from_numpy(following)[..., None], 1.0)
    targets[..., 1] = torch.from_numpy(letter <= 1).float()
    targets[..., 2] = torch.maximum(targets[..., 2], torch.from_numpy(letter == 1).float())
    targets[~torch.from_numpy(inside)] = torch.nan
    return x, torch.from_numpy(lengths), targets


def possible_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy in nats over symbols and steps; targets as `draw` returns them."""
    counted = ~targets.isnan()
    return F.binary_cross_entropy_with_logits(outputs[counted], targets[counted])


POSSIBLE_SYMBOLS = replace(
    objectives.get("keys"),
    name="possible-symbols",
    # As in the paper; with one cell and no shortcuts, S and T cannot be told from the letters.
    model=partial(SequenceModel, shortcut=True),
    loss=possible_error,
    metric=lambda outputs, targets: accepted(outputs, targets).double().mean(),
    metric_name="accepted",
    count=lambda targets: targets.shape[1],
    right=accepted,
    percent=True,
    best_by_metric=True,
)

_GERS = (
    "Gers & Schmidhuber 2001, LSTM recurrent networks learn simple context-free and "
    "context-sensitive languages"
)


@task(
    "counting",
    title="Foretell the symbols of a^n b^n or a^n b^n c^n; n is longer than ever trained on",
    source=_GERS,
    objective=POSSIBLE_SYMBOLS,
    defaults={
        "cell": "odyssey_noaf", "hidden_size": 1, "learning_rate": 0.05, "momentum": 0.99,
        "schedule": "constant", "batch_size": 10, "epochs": 20, "optimizer": "sgd",
        "layer": {"gradient": "truncated", "init": "forget_bias:2+bias.i:-1+bias.o:-2"},
    },
    published=(
        Published(
            "peephole LSTM", 1000, _GERS,
            "largest n of the best net, from wider training sets; from memory, to be checked",
            measure="test_row", case="anbn, n up to 50",
        ),
        Published(
            "peephole LSTM", 500, _GERS,
            "largest n, from wider training sets; from memory, to be checked",
            measure="test_row", case="anbncn, n up to 30",
        ),
    ),
    cases=(
        Case("anbn"),
        Case("anbn, two cells", changes={"hidden_size": 2, "learning_rate": 0.1}),
        Case(
            "anbn, n up to 50", {"high": 50},
            {"hidden_size": 2, "learning_rate": 0.03, "epochs": 40},
        ),
        Case("anbncn", {"language": "anbncn"}, {"hidden_size": 3}),
        Case(
            "anbncn, n up to 30", {"language": "anbncn", "high": 30},
            {"hidden_size": 3, "epochs": 40},
        ),
    ),
    report=("test_row", "test_accepted", "epoch_of_weights"),
)  # fmt: skip
def count_letters(language: str = "anbn", high: int = 10, limit: int = 1_000) -> Data:
    """Strings to train on, drawn with n up to ``high``; to test on, each n up to ``limit`` once.

    The test's strings stand in the order of n: ``test_row`` is the largest n up to which all are
    accepted. The weights are those of the epoch that accepts most of the strings up to ten times
    ``high``, longer ones than are trained on.

    In the paper the weights change after every string, at a rate of 1e-5; here after ten.

    Args:
        language: "anbn" or "anbncn".
        high: largest n of training.
        limit: largest n of the test.
    """
    names = symbols(language)
    whole("counting", "high", high, 1)
    whole("counting", "limit", limit, 1)

    def train(random: np.random.Generator, count: int) -> Drawn:
        return draw(random, count, language=language, high=high)

    return Data(
        train=Generated(train, names, names, 5_000),
        validation=_each(range(1, 10 * high + 1), language),
        test=_each(range(1, limit + 1), language),
    )


def _each(ns: range, language: str) -> Sequences:
    """The string of each n, in this order."""
    x, lengths, targets = strings(list(ns), language)
    ends = lengths.tolist()
    names = symbols(language)
    return Sequences(
        [x[:end, b] for b, end in enumerate(ends)],
        [targets[:end, b] for b, end in enumerate(ends)],
        names,
        names,
    )
