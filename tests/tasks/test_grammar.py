"""Embedded Reber strings, continual and not, and the languages that need counting."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from cellwright.errors import UsageError
from cellwright.tasks import counting, reber
from cellwright.tasks.continual_reber import ContinualReber, continual_reber
from cellwright.train.measure import until_wrong

# The grammar as a table by hand, state by state: 0 to 6 are Reber's own, in the order of the
# diagram of Cleeremans, Servan-Schreiber & McClelland 1989; None ends the string.
REBER = {
    0: {"B": 1},
    1: {"T": 2, "P": 3},
    2: {"S": 2, "X": 4},
    3: {"T": 3, "V": 5},
    4: {"X": 3, "S": 6},
    5: {"P": 4, "V": 6},
    6: {"E": None},
}


def possible_after(prefix: str) -> set[str]:
    """Possible next symbols of an embedded Reber string; none after a whole one.

    Raises KeyError if the prefix is not one of the grammar's.
    """
    if len(prefix) < 2:
        return {"B"} if not prefix else {"T", "P"}
    if prefix[0] != "B" or prefix[1] not in "TP":
        raise KeyError(prefix)
    state, rest = 0, prefix[2:]
    while rest:
        state, rest = REBER[state][rest[0]], rest[1:]
        if state is None:
            break
    if state is not None:
        return set(REBER[state])
    for wanted in (prefix[1], "E"):
        if not rest:
            return {wanted}
        if rest[0] != wanted:
            raise KeyError(prefix)
        rest = rest[1:]
    if rest:
        raise KeyError(prefix)
    return set()


def read(x: torch.Tensor, length: int | None = None) -> str:
    """The symbols of one sequence (T, 7) of inputs."""
    assert (x[:length].sum(-1) == 1).all()
    return "".join(reber.SYMBOLS[each] for each in x[:length].argmax(-1))


def named(targets: torch.Tensor) -> set[str]:
    return {reber.SYMBOLS[each] for each in targets.nonzero()[:, 0]}


def digest(*tensors: torch.Tensor) -> str:
    content = hashlib.sha256()
    for each in tensors:
        content.update(each.numpy().tobytes())
    return content.hexdigest()[:16]


# --- embedded Reber ----------------------------------------------------------------------------


def test_strings_are_of_the_grammar_and_targets_follow():
    x, lengths, targets = reber.draw(np.random.default_rng(3), 300)
    assert x.dtype == targets.dtype == torch.float32 and lengths.dtype == torch.int64
    assert x.shape == targets.shape == (int(lengths.max()), 300, 7)
    for b, length in enumerate(lengths.tolist()):
        text = read(x[:, b], length)
        text += reber.SYMBOLS[targets[length - 1, b].argmax()]
        assert possible_after(text) == set()
        for t in range(length):
            assert reber.SYMBOLS[targets[t, b].argmax()] == text[t + 1]
            assert named(targets[t, b]) == possible_after(text[: t + 1])
            assert set(targets[t, b].tolist()) <= {0.0, 0.5, 1.0} and targets[t, b].max() == 1
        assert not x[length:, b].any()
        assert targets[length:, b].isnan().all()


def test_strings_have_the_lengths_of_the_grammar():
    # Solved by hand, a string has 12 symbols on average, and at least 9.
    _, lengths, _ = reber.draw(np.random.default_rng(0), 20_000)
    assert lengths.min() == 8
    # The mean's standard deviation is 0.03: six of them.
    assert abs(lengths.double().mean() + 1 - 12) < 0.18


def test_most_active_is_by_rank():
    targets = torch.tensor([[0.5, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    outputs = torch.tensor([[3.0, 2.0, 1.0], [-1.0, -2.0, -3.0], [5.0, 4.0, 3.0]])
    assert reber.most_active(outputs, targets).tolist() == [True, True, False]
    assert reber.most_active(torch.zeros(2, 3), targets[:2]).tolist() == [False, False]
    assert reber.most_active(torch.zeros(3), torch.full((3,), torch.nan)).item()
    assert not reber.most_active(torch.full((3,), torch.nan), targets[0]).item()


def test_right_in_a_row_stops_at_the_first_wrong_one():
    right = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    assert reber.right_in_a_row(right).tolist() == [3, 1, 0]


# --- continual ---------------------------------------------------------------------------------


def test_a_stream_is_strings_in_a_row():
    stream = ContinualReber(4, seed=7, strings=3)
    parts = [stream.window(steps) for steps in (40, 1, 90, 17)]
    x, targets, reset = (torch.cat(each) for each in zip(*parts, strict=True))
    assert (x[1:].argmax(-1) == targets[:-1].argmax(-1)).all()
    for b in range(4):
        text, begun, prefix = read(x[:, b]), 0, ""
        for t, symbol in enumerate(text):
            assert reset[t, b].item() == (not prefix and begun % 3 == 0)
            begun += not prefix
            prefix += symbol
            possible = possible_after(prefix)
            if not possible:
                prefix, possible = "", {"B"}
            assert named(targets[t, b]) == possible
        assert begun > 6


def test_a_stream_without_an_end_begins_once():
    stream = ContinualReber(2, seed=0)
    resets = torch.cat([stream.window(50)[2] for _ in range(4)])
    assert resets[0].all() and resets.sum() == 2


def test_a_stream_goes_on_from_a_stored_position():
    stream = ContinualReber(3, seed=5, strings=2)
    stream.window(31)
    position = stream.state_dict()
    expected = [stream.window(steps) for steps in (20, 35)]
    other = ContinualReber(3, seed=5, strings=2)
    other.load_state_dict(position)
    for one in expected:
        for mine, theirs in zip(other.window(len(one[0])), one, strict=True):
            assert torch.equal(mine, theirs)
    with pytest.raises(UsageError, match=r"position of 2 streams, got one of 3"):
        ContinualReber(2, seed=5).load_state_dict(position)


def test_a_stream_does_not_depend_on_its_neighbours():
    whole = ContinualReber(5, seed=9)
    part = ContinualReber(2, seed=9, first=3)
    for _ in range(2):
        assert torch.equal(whole.window(60)[0][:, 3:], part.window(60)[0])
    assert not torch.equal(
        ContinualReber(1, seed=9).window(60)[0], ContinualReber(1, seed=8).window(60)[0]
    )


# --- counting ----------------------------------------------------------------------------------


def possible_counting(prefix: str, letters: str) -> set[str]:
    """Possible next symbols after a prefix of ``S a^n b^n [c^n] T``, found by trying all n."""
    found = set()
    for n in range(1, len(prefix) + 2):
        text = "S" + "".join(letter * n for letter in letters) + "T"
        if text.startswith(prefix) and len(text) > len(prefix):
            found.add(text[len(prefix)])
    return found


@pytest.mark.parametrize("language", ["anbn", "anbncn"])
def test_counting_strings_and_their_targets(language):
    names, letters = counting.symbols(language), counting.LANGUAGES[language]
    x, lengths, targets = counting.draw(
        np.random.default_rng(2), 40, language=language, low=2, high=6
    )
    assert x.dtype == targets.dtype == torch.float32 and lengths.dtype == torch.int64
    counts = set()
    for b, length in enumerate(lengths.tolist()):
        text = "".join(names[each] for each in x[:length, b].argmax(-1))
        n = text.count("a")
        counts.add(n)
        assert text == "S" + "".join(letter * n for letter in letters)
        for t in range(length):
            wanted = {names[each] for each in targets[t, b].nonzero()[:, 0]}
            assert wanted == possible_counting(text[: t + 1], letters)
        assert not x[length:, b].any() and targets[length:, b].isnan().all()
    assert counts == set(range(2, 7))


def test_a_string_is_accepted_if_every_symbol_of_every_step_is_right():
    _, _, targets = counting.strings([1, 3], "anbncn")
    outputs = torch.where(targets > 0.5, 0.1, -0.1)
    assert counting.accepted(outputs, targets).tolist() == [True, True]
    outputs[9, 1, 4] *= -1
    assert counting.accepted(outputs, targets).tolist() == [True, False]


def test_generalisation_is_the_end_of_the_unbroken_range():
    asked = []

    def accepts(ns):
        asked.extend(ns)
        return [n not in (8, 30) for n in ns]

    assert counting.generalisation(accepts, limit=40, block=6) == 7
    assert asked == list(range(1, 13))
    assert counting.generalisation(lambda ns: [True] * len(ns), limit=40, block=6) == 40
    assert counting.generalisation(lambda ns: [False] * len(ns), limit=40) == 0


# --- all ---------------------------------------------------------------------------------------


def test_the_same_on_every_platform():
    drawn = reber.draw(np.random.default_rng(1), 50)
    assert digest(*drawn[:2], drawn[2].nan_to_num(-1)) == "ef98d03c14756cf7"
    stream = ContinualReber(3, seed=1, strings=4)
    stream.window(100)
    assert digest(*stream.window(100)) == "a591ee2502c69eec"
    drawn = counting.draw(np.random.default_rng(1), 50, language="anbncn")
    assert digest(*drawn[:2], drawn[2].nan_to_num(-1)) == "ae2128b900940745"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: reber.draw(r, 0), r"reber: count: .* at least 1, got 0"),
        (lambda r: ContinualReber(0, 1), r"continual-reber: streams: .* got 0"),
        (lambda r: ContinualReber(1, -1), r"continual-reber: seed: .* got -1"),
        (lambda r: ContinualReber(1, 1, strings=0), r"continual-reber: strings: .* got 0"),
        (lambda r: ContinualReber(1, 1).window(0), r"continual-reber: steps: .* got 0"),
        (lambda r: counting.draw(r, 2, language="an"), r"'anbn' or 'anbncn', got 'an'"),
        (lambda r: counting.draw(r, 2, low=5, high=4), r"high: .* at least 5, got 4"),
        (lambda r: counting.strings([3, 0]), r"counting: n: .* at least 1, got 0"),
    ],
)
def test_wrong_options(call, message):
    with pytest.raises(UsageError, match=message):
        call(np.random.default_rng(1))


# --- as tasks ----------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_symbols_that_came():
    _, lengths, targets = reber.draw(np.random.default_rng(6), 5)
    outputs = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
    losses = [
        -outputs[t, b].log_softmax(0)[(targets[t, b] == 1).nonzero().item()]
        for b, length in enumerate(lengths.tolist())
        for t in range(length)
    ]
    assert reber.NEXT_SYMBOL.count(targets) == len(losses)
    # Sums of 50 float32 numbers in another order.
    torch.testing.assert_close(
        reber.symbol_error(outputs, targets), torch.stack(losses).mean(), rtol=1e-5, atol=0
    )
    best = targets.nan_to_num(0.0)
    assert reber.share_right(best, targets) == 1
    assert reber.NEXT_SYMBOL.right(best, targets).all()
    best[0, 2] = 0.0
    assert reber.NEXT_SYMBOL.right(best, targets).tolist() == [True, True, False, True, True]
    assert reber.share_right(best, targets).item() == pytest.approx(1 - 1 / len(losses))


def test_measured_streams_are_not_those_of_training():
    data = continual_reber.load()
    trained = next(iter(data.train.batches(2, 0)))
    measured = next(iter(data.test.batches(2)))
    assert not torch.equal(trained.x, measured.x[: len(trained.x)])
    assert torch.equal(measured.x, next(iter(data.test.batches(2))).x)


def test_a_perfect_net_foretells_ten_streams_of_100_000_symbols():
    data = continual_reber.load()
    windows = data.check.batches(64)
    first = next(iter(windows))
    assert first.x.shape == (1_000, 10, 7) and len(windows) == 100
    measured = next(iter(data.test.batches(64)))
    assert measured.x.shape == (1_000, 64, 7) and not torch.equal(measured.x[:, :10], first.x)
    assert torch.equal(next(iter(data.check.batches(64))).x, first.x)


class Grammar(torch.nn.Module):
    """Knows the grammar; forgets it at one step of one window."""

    def __init__(self, wrong=None):
        super().__init__()
        self.wrong, self.windows = wrong, 0

    def carry(self, x, lengths, reset, state):
        state = list(state or [0] * x.shape[1])
        said = torch.zeros(*x.shape)
        for t, symbols in enumerate(x.argmax(-1).tolist()):
            for b, symbol in enumerate(symbols):
                choice = reber.COMES[state[b]].tolist().index(symbol)
                state[b] = reber.LEADS[state[b], choice]
                said[t, b] = torch.from_numpy(reber.POSSIBLE[state[b]]).float()
        if self.windows == self.wrong:
            said[7, 2] = 0.0
        self.windows += 1
        return said, state


def test_a_test_on_the_way_ends_at_the_first_wrong_prediction():
    check = replace(continual_reber.load().check, steps=50, count=6)
    for wrong, expected, windows in ((None, (60, True), 6), (3, (32, False), 4)):
        model = Grammar(wrong)
        assert until_wrong(model, reber.NEXT_SYMBOL, check, reber.SYMBOLS) == expected
        assert model.windows == windows


def test_counting_is_tested_on_each_n_once():
    data = counting.count_letters.load(language="anbncn", limit=7)
    assert [len(each) for each in data.test.inputs] == [3 * n + 1 for n in range(1, 8)]
    assert [len(each) for each in data.validation.inputs] == [3 * n + 1 for n in range(1, 101)]
    longest = max(len(each.x) for each in data.train.batches(100, 0))
    assert longest == 3 * 10 + 1
    outputs = torch.where(counting.strings([2])[2] > 0.5, 3.0, -3.0)
    assert counting.POSSIBLE_SYMBOLS.metric(outputs, counting.strings([2])[2]) == 1
