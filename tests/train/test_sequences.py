"""Sets of sequences: given, drawn, cut into windows, and streams without an end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import cellwright as cw
from cellwright.errors import DataError, UsageError
from cellwright.train import objectives
from cellwright.train.batches import seed_everything
from cellwright.train.examples import IGNORED, Batch, check_batch
from cellwright.train.fit import fit
from cellwright.train.measure import measure, threads, until_wrong
from cellwright.train.module import TrainingModule
from cellwright.train.sequence_model import SequenceModel
from cellwright.train.sequences import Generated, Sequences
from cellwright.train.settings import Settings
from cellwright.train.streams import Streams
from cellwright.train.windows import Windows

SETTINGS = Settings(
    cell="gru", hidden_size=4, bidirectional=False, dropout=0.0, epochs=3, batch_size=4,
    optimizer="adam", schedule="constant", learning_rate=0.05,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


def echoes(lengths, seed=0, classes=False):
    """Sequences in which the number before is to be told; at the first step there is none."""
    random = np.random.default_rng(seed)
    inputs = [torch.from_numpy(random.integers(0, 2, (n, 1))).float() for n in lengths]
    if classes:
        targets = [torch.cat([torch.tensor([IGNORED]), each[:-1, 0].long()]) for each in inputs]
        return Sequences(inputs, targets, ("bit",), ("0", "1"))
    targets = [torch.cat([torch.full((1, 1), torch.nan), each[:-1]]) for each in inputs]
    return Sequences(inputs, targets, ("bit",), ("bit",))


def draw(random, count):
    lengths = torch.from_numpy(random.integers(2, 6, count))
    x = torch.from_numpy(random.random((5, count, 1), dtype=np.float32))
    return x, lengths, x[0]


DRAWN = Generated(draw, ("number",), ("first",), count=30)


class Counter:
    """A bit that is on at every third step, to be told a step later; anew after twelve."""

    def __init__(self, seed, streams):
        self.streams, self.at = streams, 0

    def window(self, steps):
        at = self.at + torch.arange(steps)
        self.at += steps
        x = (at % 3 == 0).float()[:, None, None].repeat(1, self.streams, 1)
        targets = (at % 3 == 1).float()[:, None, None].repeat(1, self.streams, 1)
        return x, targets, (at % 12 == 0)[:, None].repeat(1, self.streams)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, position):
        self.at = position["at"]


COUNTED = Streams(Counter, ("nothing",), ("bit",), steps=7, count=10)


def train(folder, examples, objective, settings=SETTINGS, stop_after=None, validation=None, **more):
    if isinstance(objective, str):
        objective = objectives.get(objective)
    seed_everything(settings.seed, settings.epochs)
    spec = cw.cells.get(settings.cell)
    model = objective.model(spec, len(examples.features), len(examples.classes), settings)
    arguments = (model, objective, examples, validation, examples.classes, settings, folder, {})
    if stop_after is None:
        return model, fit(*arguments, **more)
    with pytest.MonkeyPatch.context() as patch:
        begin = TrainingModule.on_train_epoch_start

        def stop(module):
            if module.current_epoch == stop_after:
                raise RuntimeError("stopped")
            begin(module)

        patch.setattr(TrainingModule, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            fit(*arguments, **more)
    return None


def bits(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_targets_a_step_are_padded_with_what_does_not_count():
    (batch,) = echoes([3, 5]).batches(2)
    assert batch.x.shape == batch.targets.shape == (5, 2, 1)
    assert batch.targets[:, 0, 0].isnan().tolist() == [True, False, False, True, True]
    (batch,) = echoes([3, 5], classes=True).batches(2)
    assert (batch.targets[:, 0] == IGNORED).tolist() == [True, False, False, True, True]
    assert batch.lengths.tolist() == [3, 5]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([], [], "0 sequences with 0 targets"),
        ([torch.zeros(3, 1)], [], "1 sequences with 0 targets"),
        ([torch.zeros(3, 2)], [torch.zeros(3, 1)], r"sequence 0 has shape \(3, 2\); expected"),
        ([torch.zeros(0, 1)], [torch.zeros(0, 1)], "at least one step"),
        ([torch.full((3, 1), torch.nan)], torch.zeros(1), "sequence 0 has a value that is not fin"),
        ([torch.zeros(3, 1)], [torch.zeros(2, 1)], "sequence 0 has 3 steps, but 2 targets"),
    ],
)
def test_sequences_have_to_fit(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        Sequences(inputs, targets, ("x",), ("y",))


def test_what_is_drawn_follows_from_seed_epoch_and_batch():
    loader = DRAWN.batches(8, seed=3)
    assert len(loader) == 4
    first = [batch.x for batch in loader]
    assert [x.shape[1] for x in first] == [8, 8, 8, 6]
    assert all(map(torch.equal, first, [batch.x for batch in loader]))
    others = [DRAWN.batches(8, seed=4), DRAWN.batches(8), DRAWN.batches(8, seed=3)]
    others[2].epoch = 1
    for other in others:
        assert not any(map(torch.equal, first, [batch.x for batch in other]))
    # Without a seed, every pass is the same.
    test = DRAWN.batches(8)
    again = [batch.x for batch in test]
    test.epoch = 5
    assert all(map(torch.equal, again, [batch.x for batch in test]))


def test_drawn_nan_is_the_data_s_fault(tmp_path):
    def holed(random, count):
        x, lengths, targets = draw(random, count)
        x[1, -1] = torch.nan
        return x, lengths, targets

    with pytest.raises(UsageError, match=r"in epoch 1: the input is nan in sequence 3 of a batch"):
        train(tmp_path, replace(DRAWN, draw=holed), "value")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4, 5)}, r"x is torch.float32 of shape \(4, 5\); expected float32"),
        ({"x": torch.zeros(5, 4, 3)}, r"expected .* \(steps, sequences, 2 features\)"),
        ({"x": torch.zeros(0, 4, 2)}, r"shape \(0, 4, 2\)"),
        ({"x": torch.zeros(5, 4, 2, dtype=torch.int64)}, "x is torch.int64"),
        ({"lengths": torch.full((5,), 4)}, r"lengths are \[4, 4, 4, 4, 4\]; expected a number fr"),
        ({"lengths": torch.full((4,), 6)}, "expected a number from 0 to 5 for each of 4 sequences"),
        ({"targets": torch.zeros(5)}, r"targets have shape \(5,\); expected one for each of 4"),
        ({"targets": torch.zeros(5, 3)}, r"for each of 4 sequences, or for each of 5 steps"),
    ],
)
def test_a_batch_has_to_fit(changes, message):
    batch = Batch(torch.zeros(5, 4, 2), torch.full((4,), 5), torch.zeros(4))
    check_batch(batch, 2, "mine")
    check_batch(batch._replace(targets=torch.zeros(5, 4, 1)), 2, "mine")
    with pytest.raises(DataError, match=message):
        check_batch(batch._replace(**changes), 2, "mine")


def test_no_two_batches_are_drawn_alike():
    seen = set()
    for seed in (None, *range(7)):
        loader = Generated(draw, ("number",), ("first",), count=7).batches(1, seed)
        for loader.epoch in range(1 if seed is None else 7):
            seen |= {batch.x.numpy().tobytes() for batch in loader}
    assert len(seen) == 7 + 7 * 7 * 7


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_windows_carry_the_states_over(steps):
    data = echoes([9, 4, 7])
    spec = cw.cells.get("lstm")
    model = objectives.get("values").model(spec, 1, 1, SETTINGS)
    (whole,) = data.batches(3)
    windows = list(Windows(data.batches(3), steps))
    assert torch.equal(torch.cat([each.x for each in windows]), whole.x)
    assert [int(each.reset.sum()) for each in windows] == [3] + [0] * (len(windows) - 1)
    assert sum(each.lengths for each in windows).tolist() == [9, 4, 7]
    state, parts = None, []
    with torch.no_grad():
        for each in windows:
            y, state = model.carry(each.x, each.lengths, each.reset, state)
            parts.append(y)
        assert torch.equal(torch.cat(parts), model(whole.x, whole.lengths))


def test_windows_need_a_target_a_step():
    with pytest.raises(UsageError, match="--tbptt: the task has one target a sequence"):
        next(iter(Windows(DRAWN.batches(4, seed=0), 2)))


def test_gradients_end_at_a_window_s_beginning(monkeypatch, tmp_path):
    """The gradient of a window is that of the window alone, from the state that was carried."""
    data = echoes([8, 8])
    found = []
    step = TrainingModule.training_step

    def spy(module, batch, index):
        before = module._states.get("train")
        loss = step(module, batch, index)
        alone, _ = module.model.carry(batch.x, batch.lengths, batch.reset, before)
        again = module.objective.loss(alone, batch.targets)
        weights = list(module.parameters())
        pairs = zip(
            torch.autograd.grad(loss, weights, retain_graph=True),
            torch.autograd.grad(again, weights),
            strict=True,
        )
        found.append(all(torch.equal(one, two) for one, two in pairs))
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", spy)
    train(tmp_path, data, "values", SETTINGS.replace(tbptt=3, epochs=1))
    assert found == [True] * 3


@pytest.mark.parametrize("accumulate", [2, 9])
def test_windows_are_averaged_for_one_update(tmp_path, accumulate):
    """An epoch has eight or nine windows; its last update may be of fewer than the others."""
    data = echoes([9, 7, 8, 5])
    settings = SETTINGS.replace(
        tbptt=2, accumulate=accumulate, epochs=2, batch_size=2, optimizer="sgd", weight_decay=0.0,
        gradient_clip=1e9,
    )  # fmt: skip
    trained, _ = train(tmp_path, data, "values", settings)
    seed_everything(settings.seed, settings.epochs)
    objective = objectives.get("values")
    model = objective.model(cw.cells.get("gru"), 1, 1, settings)
    windows = Windows(data.batches(2, settings.seed), 2)
    for windows.epoch in range(2):
        state, every = None, list(windows)
        assert len(every) in (8, 9)
        for first in range(0, len(every), accumulate):
            group = every[first : first + accumulate]
            model.zero_grad()
            for each in group:
                y, state = model.carry(each.x, each.lengths, each.reset, state)
                state = tuple(part.detach() for part in state)
                if objective.count(each.targets):
                    (objective.loss(y, each.targets) / len(group)).backward()
            with torch.no_grad():
                for weight in model.parameters():
                    weight -= settings.learning_rate * weight.grad
    torch.testing.assert_close(trained.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-7)


def test_a_window_in_which_nothing_is_asked_changes_nothing(tmp_path):
    silent = [torch.full((6, 1), torch.nan) for _ in range(4)]
    data = Sequences([torch.ones(6, 1)] * 4, silent, ("x",), ("y",))
    heard = replace(data, targets=[torch.cat([each[:4], torch.zeros(2, 1)]) for each in silent])
    settings = SETTINGS.replace(tbptt=2, epochs=1, optimizer="sgd", weight_decay=0.0)
    untrained, _ = train(tmp_path / "a", data, "values", settings)
    first, fitted = train(tmp_path / "b", heard, "values", settings)
    assert bits(untrained) != bits(first)
    assert np.isfinite(fitted.rows[0]["train_loss"])
    seed_everything(settings.seed, settings.epochs)
    begun = objectives.get("values").model(cw.cells.get("gru"), 1, 1, settings)
    assert bits(begun) == bits(untrained)


@pytest.mark.parametrize(
    "what", ["drawn", "windows", "streams", "streams in windows", "windows, averaged"]
)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, what):
    settings = SETTINGS.replace(
        tbptt=3 if "windows" in what else None, accumulate=2 if "averaged" in what else 1
    )
    examples = COUNTED if "streams" in what else echoes([9, 4, 7, 7, 5])
    examples = DRAWN if what == "drawn" else examples
    objective = "value" if what == "drawn" else "values"
    whole, one = train(tmp_path / "a", examples, objective, settings)
    train(tmp_path / "b", examples, objective, settings, stop_after=2)
    resumed, two = train(tmp_path / "b", examples, objective, settings)
    assert bits(whole) == bits(resumed)
    assert one.sequences == two.sequences
    assert [row["train_loss"] for row in one.rows] == [row["train_loss"] for row in two.rows]


def test_streams_go_on_from_epoch_to_epoch(tmp_path, monkeypatch):
    seen = []
    step = TrainingModule.training_step

    def spy(module, batch, index):
        seen.append(batch)
        return step(module, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", spy)
    train(tmp_path, COUNTED, "values")
    targets = torch.cat([each.targets[:, 0, 0] for each in seen])
    assert torch.equal(targets, (torch.arange(210) % 3 == 1).float())
    assert sum(int(each.reset[:, 0].sum()) for each in seen) == 18  # every twelfth of 210 steps


def test_streams_are_learnt_and_measured(tmp_path):
    settings = SETTINGS.replace(epochs=12)
    model, _ = train(tmp_path, COUNTED, "values", settings)
    found = measure(model, objectives.get("values"), COUNTED, COUNTED.classes)
    assert found.metric < 0.05
    assert found.count == 64 * 6  # sequences that begin in 70 steps of 64 streams
    assert measure(model, objectives.get("values"), COUNTED, COUNTED.classes) == found


FIRST = replace(
    objectives.get("value"),
    name="first number",
    right=lambda outputs, targets: ((outputs - targets).abs() < 0.2)[:, 0],
)


def test_training_stops_when_enough_in_a_row_are_right(tmp_path):
    examples = replace(DRAWN, count=200, streak=100)
    settings = SETTINGS.replace(epochs=60, hidden_size=8)
    model, fitted = train(tmp_path, examples, FIRST, settings)
    assert fitted.solved
    assert 100 < fitted.sequences < 60 * 200
    assert fitted.epoch == len(fitted.rows) == -(-fitted.sequences // 200)
    found = measure(model, FIRST, DRAWN, DRAWN.classes)
    assert found.wrong <= 3
    # It has ended: to call it again changes nothing.
    again, two = train(tmp_path, examples, FIRST, settings)
    assert bits(again) == bits(model)
    assert two == fitted


def test_training_stops_when_all_of_a_test_on_the_way_are_right(tmp_path):
    check = replace(DRAWN, count=130)  # three batches
    settings = SETTINGS.replace(epochs=40, hidden_size=8)
    examples = replace(DRAWN, count=32)
    near = replace(FIRST, right=lambda outputs, targets: ((outputs - targets).abs() < 0.4)[:, 0])
    model, fitted = train(tmp_path / "a", examples, near, settings, check=check)
    assert fitted.solved
    assert measure(model, near, check, DRAWN.classes).wrong == 0
    rows = [row["check_row"] for row in fitted.rows]
    assert 1 < len(rows) < 40 and fitted.epoch == len(rows)
    assert all(row < 130 for row in rows[:-1]) and rows[-1] == 130
    # Killed on the way, it stops at the same epoch with the same bits; and stays stopped.
    stop = {"stop_after": len(rows) - 1, "check": check}
    train(tmp_path / "b", examples, near, settings, **stop)
    for _ in range(2):
        resumed, two = train(tmp_path / "b", examples, near, settings, check=check)
        assert bits(resumed) == bits(model)
        assert [row["check_row"] for row in two.rows] == rows and two.solved


def test_what_was_right_on_the_way_is_kept_before_the_lowest_validation_loss(tmp_path):
    settings = SETTINGS.replace(epochs=40, hidden_size=8)
    strange = Sequences([torch.ones(2, 1)], torch.full((1, 1), -9.0), ("number",), ("first",))
    more = {"validation": strange, "check": DRAWN}
    model, fitted = train(tmp_path, replace(DRAWN, count=100), FIRST, settings, **more)
    losses = [row["validation_loss"] for row in fitted.rows]
    assert fitted.solved and min(losses) < losses[-1]
    assert fitted.epoch == len(losses)
    assert measure(model, FIRST, DRAWN, DRAWN.classes).wrong == 0


def test_the_best_epoch_may_be_that_with_the_highest_metric(tmp_path):
    large = replace(FIRST, metric=lambda outputs, targets: outputs.mean(), best_by_metric=True)
    held_out = Sequences([torch.ones(2, 1)], torch.zeros(1, 1), ("number",), ("first",))
    epochs = {}
    for name, objective in (("metric", large), ("loss", replace(large, best_by_metric=False))):
        _, fitted = train(tmp_path / name, DRAWN, objective, SETTINGS, validation=held_out)
        metrics = [row["validation_mse"] for row in fitted.rows]
        losses = [row["validation_loss"] for row in fitted.rows]
        epochs[name] = fitted.epoch
    assert epochs["metric"] == 1 + metrics.index(max(metrics))
    assert epochs["loss"] == 1 + losses.index(min(losses)) != epochs["metric"]


def test_a_test_on_the_way_needs_to_know_what_is_right(tmp_path):
    with pytest.raises(UsageError, match="value does not say when a sequence is right"):
        train(tmp_path / "a", DRAWN, "value", check=DRAWN)
    with pytest.raises(UsageError, match="--average: the task tests"):
        train(tmp_path / "b", DRAWN, FIRST, SETTINGS.replace(average=0.9), check=DRAWN)


class Same(torch.nn.Module):
    def forward(self, x, lengths):
        return x


def test_a_row_ends_at_the_first_wrong_sequence_of_the_set(monkeypatch):
    # Two batches: the first is right, the second wrong in its sixth and its tenth sequence.
    inputs = [torch.full((2, 1), float(number in (69, 73))) for number in range(80)]
    examples = Sequences(inputs, [torch.zeros(2, 1)] * 80, ("x",), ("y",))
    objective = replace(
        objectives.get("values"),
        right=lambda outputs, targets: (outputs == targets).all(-1).all(0),
        more={"largest": lambda outputs, targets: outputs.max()},
    )
    found = measure(Same(), objective, examples, ("y",))
    assert (found.wrong, found.row) == (2, 69)
    assert found.more == {"largest": 16 / 80}
    assert until_wrong(Same(), objective, examples, ("y",)) == (69, False)
    asked = []
    first = replace(
        objective, right=lambda *both: asked.append(1) or objective.right(*both) & False
    )
    assert until_wrong(Same(), first, examples, ("y",)) == (0, False) and asked == [1]
    some = replace(examples, inputs=inputs[:66], targets=[torch.zeros(2, 1)] * 66)
    assert until_wrong(Same(), objective, some, ("y",)) == (66, True)
    plain = measure(Same(), objectives.get("values"), examples, ("y",))
    assert (plain.wrong, plain.row, plain.more) == (None, None, {})


def test_a_shortcut_lets_the_head_read_the_input():
    model = SequenceModel(cw.cells.get("gru"), 3, 2, SETTINGS, shortcut=True)
    plain = SequenceModel(cw.cells.get("gru"), 3, 2, SETTINGS)
    plain.recurrent.load_state_dict(model.recurrent.state_dict())
    with torch.no_grad():
        plain.head.weight.copy_(model.head.weight[:, :4])
        plain.head.bias.copy_(model.head.bias)
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 3])
    expected = plain(x, lengths) + x @ model.head.weight[:, 4:].T
    torch.testing.assert_close(model(x, lengths), expected)
    with pytest.raises(UsageError, match="answers once a sequence"):
        SequenceModel(cw.cells.get("gru"), 3, 2, SETTINGS, every_step=False, shortcut=True)


def test_a_streak_is_broken_by_the_last_wrong_one():
    module = TrainingModule(torch.nn.Linear(1, 1), FIRST, SETTINGS, DRAWN.batches(4), {}, 99)

    def count(*errors):
        targets = torch.zeros(len(errors), 1)
        batch = Batch(torch.zeros(1, len(errors), 1), torch.ones(len(errors)), targets)
        module._count(batch, torch.tensor(errors)[:, None])
        return module.right_in_a_row

    assert count(0.0, 0.0) == 2
    assert count(0.0, 0.0, 0.0) == 5
    assert count(0.0, 1.0, 0.0) == 1
    assert count(1.0, 1.0) == 0
    assert module.sequences == 10


@pytest.mark.parametrize("name", ["classes", "values", "keys"])
def test_what_does_not_count_does_not_count(name):
    objective = objectives.get(name)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 2, 3, generator=generator)
    if name == "classes":
        targets = torch.randint(3, (6, 2), generator=generator)
        targets[4:, 1] = IGNORED
    else:
        targets = torch.randint(2, (6, 2, 3), generator=generator).float()
        targets[4:, 1] = torch.nan
    parts = [(outputs[:, :1], targets[:, :1]), (outputs[:4, 1:], targets[:4, 1:])]
    counts = [objective.count(each[1]) for each in parts]
    assert objective.count(targets) == sum(counts)
    for measured in (objective.loss, objective.metric):
        means = [measured(*each).double() for each in parts]
        mean = sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts)
        assert measured(outputs, targets).double() == pytest.approx(mean.item(), rel=1e-6)


def test_nats_are_summed_over_keys():
    logits, targets = torch.zeros(5, 2, 88), torch.zeros(5, 2, 88)
    found = objectives.get("keys").metric(logits, targets)
    assert found.item() == pytest.approx(88 * np.log(2), rel=1e-6)


def test_a_name_that_is_built_in_is_not_given_again():
    with pytest.raises(UsageError, match="'value' is built in"):
        objectives.add(replace(FIRST, name="value"))
    assert objectives.add(objectives.get("value")) is objectives.get("value")
