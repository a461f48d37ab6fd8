"""The generators of the long-memory tasks, each checked against its description, step by step."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from cellwright import tasks
from cellwright.errors import UsageError
from cellwright.tasks import copying, long_lag, marked_pairs, success, temporal_order
from cellwright.tasks.sources import Source

MULTIPLICATION = {"problem": marked_pairs.MULTIPLICATION}
DRAWS = {
    "adding": (marked_pairs.draw, {}),
    "adding, T=21": (marked_pairs.draw, {"length": 21}),
    "multiplication": (marked_pairs.draw, MULTIPLICATION),
    "temporal order 6a": (temporal_order.draw, {}),
    "temporal order 6b": (temporal_order.draw, {"relevant": 3}),
    "copying": (copying.draw, {}),
    "copying, T=1": (copying.draw, {"blanks": 1}),
    "long lag": (long_lag.draw, {}),
    "long lag, q=1, p=1": (long_lag.draw, {"lag": 1, "distractors": 1}),
}


def drawn(name, count, seed=0):
    draw, options = DRAWS[name]
    return draw(np.random.default_rng(seed), count, **options)


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_has_the_shapes_that_training_takes(name):
    x, lengths, targets = drawn(name, 50)
    assert x.dtype == torch.float32
    assert lengths.dtype == torch.int64 and lengths.shape == (50,)
    assert x.shape[:2] == (lengths.max(), 50)
    for column, length in enumerate(lengths):
        assert not x[length:, column].any()
    if targets.is_floating_point():
        assert targets.dtype == torch.float32 and targets.shape == (50, 1)
    else:
        assert targets.dtype == torch.int64
        assert targets.shape == (x.shape[:2] if name.startswith("copying") else (50,))


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_follows_from_the_seed(name):
    first, again, other = drawn(name, 20), drawn(name, 20), drawn(name, 20, seed=1)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[2], other[2])


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("adding", "74d32697f3651abe"),
        ("multiplication", "4124e3a6485797d2"),
        ("temporal order 6a", "b6cedf325a9ec387"),
        ("temporal order 6b", "23950438aa6fb58d"),
        ("copying", "f0192c81ecc5cd87"),
        ("long lag", "6d7e4a5d33aef672"),
    ],
)
def test_a_draw_has_the_same_bits_on_every_platform(name, digest):
    bits = hashlib.sha256()
    for each in drawn(name, 5, seed=[1997, 9]):
        little = each.numpy().astype(each.numpy().dtype.newbyteorder("<"), copy=False)
        bits.update(little.tobytes())
    assert bits.hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("name", "length", "low", "neutral"),
    [("adding", 100, -1, 0), ("adding, T=21", 21, -1, 0), ("multiplication", 100, 0, 1)],
)
def test_marked_pairs_give_the_target(name, length, low, neutral):
    x, lengths, targets = drawn(name, 3000)
    assert set(lengths.tolist()) == set(range(length, length + length // 10 + 1))
    begun_with_a_mark = 0
    for column, steps in enumerate(lengths.tolist()):
        numbers, markers = x[:steps, column].T.tolist()
        assert markers[0] == markers[-1] == -1
        marked = [step for step in range(steps) if markers[step] == 1]
        assert set(markers) == {-1, 0, 1}
        found = [numbers[step] for step in marked]
        if len(marked) == 1:
            begun_with_a_mark += 1
            assert numbers[0] == neutral
            found.append(neutral)
        one, two = found
        wanted = one * two if name == "multiplication" else 0.5 + (one + two) / 4
        assert targets[column].item() == pytest.approx(wanted, abs=1e-6)
        assert all(low <= number <= 1 for number in numbers)
        # One mark among the first ten (the first pair does not show its), both in the first half.
        assert marked[0] < 10 or len(marked) == 1
        assert marked[-1] <= length // 2 - 1
    # The first mark falls on the first pair in one of ten, the second in one of length / 2 - 1.
    share = 1 / 10 + 9 / 10 / (length // 2 - 1)
    assert abs(begun_with_a_mark / 3000 - share) < 5 * math.sqrt(share / 3000)


def test_marks_and_numbers_are_uniform():
    x, _, _ = drawn("adding", 20_000)
    counts = (x[..., 1] == 1).sum(1).double()
    second = 1 / 49
    # Of the first ten, one has the first mark; each of the first fifty has the second in one of
    # 49, unless it has the first. The first pair does not show its marks.
    expected = torch.full((50,), second)
    expected[1:10] = 0.1 + 0.9 * second
    expected[0] = 0
    deviation = (counts[:50] - 20_000 * expected).abs() / (20_000 * expected + 1).sqrt()
    assert counts[50:].sum() == 0
    assert deviation.max() < 5
    numbers = x[1:90, :, 0].double()
    assert abs(numbers.mean()) < 0.005 and abs(numbers.square().mean() - 1 / 3) < 0.005


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("temporal order 6a", [(10, 20), (50, 60)]),
        ("temporal order 6b", [(10, 20), (33, 43), (66, 76)]),
    ],
)
def test_temporal_order_spells_the_class(name, places):
    x, lengths, classes = drawn(name, 3000)
    assert set(lengths.tolist()) == set(range(100, 111))
    order = temporal_order.CLASSES[len(places)]
    rules = dict(
        zip(("XX", "XY", "YX", "YY"), "QRSU", strict=True)
        if len(places) == 2
        else zip(("XXX", "XXY", "XYX", "XYY", "YXX", "YXY", "YYX", "YYY"), "QRSUVABC", strict=True)
    )
    seen = [set() for _ in places]
    for column, steps in enumerate(lengths.tolist()):
        one_hot = x[:steps, column]
        assert (one_hot.sum(1) == 1).all() and (one_hot.max(1).values == 1).all()
        text = "".join(temporal_order.SYMBOLS[each] for each in one_hot.argmax(1))
        assert text[0] == "E" and text[-1] == "B"
        where = [step for step, symbol in enumerate(text) if symbol in "XY"]
        for step, (low, high), found in zip(where, places, seen, strict=True):
            assert low <= step <= high
            found.add(step)
        rest = text[1:-1].replace("X", "").replace("Y", "")
        assert set(rest) <= set("abcd")
        assert order[classes[column]] == rules["".join(text[step] for step in where)]
    assert [len(each) for each in seen] == [11] * len(places)
    counts = torch.bincount(classes).double() / 3000
    assert len(counts) == len(order)
    assert (counts - 1 / len(order)).abs().max() < 5 * math.sqrt(1 / len(order) / 3000)


@pytest.mark.parametrize(("name", "blanks"), [("copying", 100), ("copying, T=1", 1)])
def test_copying_asks_for_the_first_ten_symbols(name, blanks):
    x, lengths, classes = drawn(name, 200)
    assert lengths.tolist() == [blanks + 20] * 200
    assert (x.sum(2) == 1).all() and (x.max(2).values == 1).all()
    for column in range(200):
        symbols = x[:, column].argmax(1).tolist()
        copied = symbols[:10]
        assert set(copied) <= set(range(8))
        assert symbols[10:] == [8] * (blanks - 1) + [9] + [8] * 10
        assert classes[:, column].tolist() == [8] * (blanks + 10) + copied
    assert set(x[:10].argmax(2).flatten().tolist()) == set(range(8))


def test_the_guess_without_memory_has_the_loss_of_one():
    _, _, classes = drawn("copying", 1000)
    share = torch.full((120, 1, 9), 1e-30)
    share[:110, :, 8] = 1.0
    share[110:, :, :8] = 1 / 8
    chosen = share.expand(120, 1000, 9).gather(2, classes[..., None])
    assert -chosen.log().mean().item() == pytest.approx(copying.memoryless_loss(100), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "lag", "distractors"), [("long lag", 50, 50), ("long lag, q=1, p=1", 1, 1)]
)
def test_long_lag_ends_with_its_second_symbol(name, lag, distractors):
    x, lengths, classes = drawn(name, 4000)
    trigger, begin, first = distractors, distractors + 1, distractors + 2
    more = []
    for column, steps in enumerate(lengths.tolist()):
        one_hot = x[:steps, column]
        assert (one_hot.sum(1) == 1).all() and (one_hot.max(1).values == 1).all()
        symbols = one_hot.argmax(1).tolist()
        assert symbols[0] == begin and symbols[-1] == trigger
        assert symbols[1] - first == classes[column]
        assert max(symbols[2:-1]) < distractors
        more.append(steps - 3 - lag)
    assert min(more) == 0
    # Prob(k) = 0.1 * 0.9^k: mean 9, deviation sqrt(90).
    assert abs(np.mean(more) - 9) < 5 * math.sqrt(90 / 4000)
    for k in (0, 1, 2, 10):
        share = 0.1 * 0.9**k
        assert abs(more.count(k) / 4000 - share) < 5 * math.sqrt(share / 4000)
    assert abs(classes.double().mean() - 0.5) < 5 * math.sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    ("draw", "options", "message"),
    [
        (marked_pairs.draw, {"length": 19}, r"adding: length: .* at least 20, got 19"),
        (
            marked_pairs.draw,
            MULTIPLICATION | {"length": 100.0},
            r"multiplication: length: .*, got 100\.0",
        ),
        (temporal_order.draw, {"relevant": 4}, r"relevant: expected 2 .* or 3 .*, got 4"),
        (copying.draw, {"blanks": 0}, r"copying: blanks: .* at least 1, got 0"),
        (long_lag.draw, {"lag": 0}, r"long-lag: lag: .* at least 1, got 0"),
        (long_lag.draw, {"distractors": True}, r"long-lag: distractors: .*, got True"),
    ],
)
def test_a_wrong_option_is_named(draw, options, message):
    with pytest.raises(UsageError, match=message):
        draw(np.random.default_rng(0), 4, **options)
    with pytest.raises(UsageError, match=r"count: .* at least 1, got 0"):
        draw(np.random.default_rng(0), 0)


def test_a_wrong_option_is_named_before_anything_is_trained():
    with pytest.raises(UsageError, match=r"temporal-order: relevant"):
        Source.parse("temporal-order", options={"relevant": 4}).load(seed=0)


def test_a_sequence_is_right_within_the_tolerance_of_the_paper():
    outputs = torch.tensor([[0.5], [0.5], [0.5]])
    targets = torch.tensor([[0.539], [0.541], [0.459]])
    assert success.value_within(0.04)(outputs, targets).tolist() == [True, False, False]
    logits = torch.tensor([[0.71, 0.19, 0.1], [0.69, 0.2, 0.11], [0.1, 0.8, 0.1]]).log()
    right = success.class_within(0.3)
    assert right(logits, torch.tensor([0, 0, 0])).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("adding", 1), ("multiplication", 1), ("temporal-order", 4), ("copying", 9), ("long-lag", 2)],
)
def test_a_task_names_what_its_generator_draws(name, outputs):
    task = tasks.get(name)
    for case in task.cases:
        data = task.load(**task.complete(case.options))
        batch = next(iter(data.test.batches(3)))
        assert batch.x.shape[2] == len(data.train.features)
        task.settings(case.changes)
    data = task.load(**task.options)
    assert len(data.train.classes) == outputs
    published = {each.case for each in task.published}
    assert published <= {"", *(case.name for case in task.cases)}


def test_test_sequences_are_not_those_of_training():
    data = tasks.get("adding").load(length=100)
    trained = next(iter(data.train.batches(10, seed=0))).targets
    tested = next(iter(data.test.batches(10))).targets
    assert not set(trained.flatten().tolist()) & set(tested.flatten().tolist())
