"""Methods of training: each does what it says, and survives an interruption to the bit."""

from __future__ import annotations

import pytest
import torch
from train.test_fit import bits, train, without_seconds

import cellwright as cw
from cellwright.errors import UsageError
from cellwright.train import objectives, storage
from cellwright.train.finder import find_learning_rate
from cellwright.train.measure import measure, threads
from cellwright.train.module import KIND, TrainingModule
from cellwright.train.settings import Settings

# Nothing is drawn: batches may be put together in other ways.
SETTINGS = Settings(
    hidden_size=4, epochs=4, batch_size=10, dropout=0.0, noise=0.0, schedule="constant",
    learning_rate=0.01,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


def weights(model):
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_accumulated_batches_are_one_large_batch(tmp_path, series):
    large, _ = train(tmp_path / "a", series, SETTINGS.replace(batch_size=30))
    small, fitted = train(tmp_path / "b", series, SETTINGS.replace(batch_size=10, accumulate=3))
    # float32 means of the same thirty series, over four updates by AdamW.
    torch.testing.assert_close(weights(small), weights(large), rtol=0, atol=1e-5)
    other, _ = train(tmp_path / "c", series, SETTINGS)
    assert (weights(other) - weights(large)).abs().max() > 1e-3
    assert fitted.sequences == 120


def test_what_is_left_of_an_epoch_is_averaged_too(tmp_path, series):
    settings = SETTINGS.replace(optimizer="sgd", gradient_clip=1e9, epochs=1)
    first = series.take(range(10))
    one, _ = train(tmp_path / "a", first, settings)
    two, _ = train(tmp_path / "b", first, settings.replace(accumulate=4))
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-7)


def test_the_average_is_what_is_kept(tmp_path, series):
    decay, seen = 0.7, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TrainingModule, "on_train_batch_end", lambda self, *_: seen.append(weights(self.model))
        )
        model, _ = train(tmp_path, series, SETTINGS.replace(average=decay, epochs=2))
    average = seen[0]  # torch's average begins with the first weights that it is given
    for each in seen[1:]:
        average = decay * average + (1 - decay) * each
    torch.testing.assert_close(weights(model), average)
    assert not torch.allclose(weights(model), seen[-1])


METHODS = {
    "average": {"average": 0.9},
    "patience": {"patience": 1, "learning_rate": 0.2, "epochs": 12},
    "plateau": {"schedule": "plateau", "decay_epochs": 1, "learning_rate": 0.2},
    "step": {"schedule": "step", "decay_epochs": 2, "decay": 0.5},
    "value": {"gradient_clip_value": 0.01, "nonfinite": "skip"},
    "bf16-mixed": {"precision": "bf16-mixed", "accumulate": 2},
}


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, series, method):
    settings = SETTINGS.replace(dropout=0.2, **METHODS[method])
    held_out = series.take(range(9))
    whole, one = train(tmp_path / "a", series, settings, validation=held_out)
    train(tmp_path / "b", series, settings, validation=held_out, stop_after=1)
    resumed, two = train(tmp_path / "b", series, settings, validation=held_out)
    assert bits(whole) == bits(resumed)
    assert without_seconds(one) == without_seconds(two)
    again, three = train(tmp_path / "b", series, settings, validation=held_out)  # it has ended
    assert bits(again) == bits(whole)
    assert three.rows == two.rows


def test_patience_ends_training(tmp_path, series):
    settings = SETTINGS.replace(patience=2, learning_rate=0.2, epochs=30)
    _, fitted = train(tmp_path, series, settings, validation=series.take(range(9)))
    losses = [row["validation_loss"] for row in fitted.rows]
    assert len(losses) < settings.epochs
    assert losses.index(min(losses)) == len(losses) - 3


def test_schedules(tmp_path, series):
    def rates(**changes):
        _, fitted = train(tmp_path / str(changes), series, SETTINGS.replace(**changes))
        return [row["learning_rate"] for row in fitted.rows], fitted.rows

    found, _ = rates(schedule="step", decay_epochs=2, decay=0.5)
    assert found == pytest.approx([0.01, 0.005, 0.005, 0.0025])  # as it is after the epoch
    found, rows = rates(schedule="plateau", decay_epochs=1, decay=0.5, learning_rate=5.0, epochs=8)
    expected, best, rate = [], float("inf"), 5.0
    for row in rows:
        expected.append(rate)  # as it is in the epoch
        rate = rate if row["train_loss"] < best else rate / 2
        best = min(best, row["train_loss"])
    assert found == pytest.approx(expected)
    assert found[-1] < 5.0


def test_clipping_by_value(tmp_path, series):
    limited, one = train(
        tmp_path / "a", series,
        SETTINGS.replace(gradient_clip_value=1e-9, optimizer="sgd", weight_decay=0.0, epochs=1),
    )  # fmt: skip
    free, two = train(
        tmp_path / "b", series, SETTINGS.replace(optimizer="sgd", weight_decay=0.0, epochs=1)
    )
    assert one.rows[0]["clipped"] == 1.0
    assert two.rows[0]["clipped"] < 1.0
    assert one.rows[0]["gradient_norm"] > 0.01
    # Three updates of at most 1e-11 against those of whole gradients.
    assert (weights(limited) - weights(free)).abs().max() > 1e-4


def break_a_batch(monkeypatch, number, value):
    """Let the loss of one batch of an epoch be multiplied by a value."""
    measured = TrainingModule._loss

    def loss(module, batch, outputs):
        found = measured(module, batch, outputs)
        return found * value if module.trainer.fit_loop.batch_idx == number else found

    monkeypatch.setattr(TrainingModule, "_loss", loss)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
def test_an_update_that_is_not_finite_is_left_out(tmp_path, series, monkeypatch, value):
    settings = SETTINGS.replace(nonfinite="skip", epochs=2)
    break_a_batch(monkeypatch, 1, value)
    steps = []
    step = TrainingModule.on_train_batch_end
    monkeypatch.setattr(
        TrainingModule, "on_train_batch_end",
        lambda self, *given: (steps.append(weights(self.model)), step(self, *given)),
    )  # fmt: skip
    model, fitted = train(tmp_path, series, settings)
    assert fitted.skipped == 2
    assert fitted.rows[-1]["skipped"] == 2
    assert torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[1], steps[2])
    assert weights(model).isfinite().all()
    kept = storage.load(tmp_path / "checkpoints" / "last.safetensors", KIND)
    assert kept["progress"]["skipped"] == 2


def test_the_error_names_where_it_began(tmp_path, series):
    settings = SETTINGS.replace(optimizer="sgd", learning_rate=1e38, gradient_clip=1e30)
    with pytest.raises(UsageError) as caught:
        train(tmp_path, series, settings)
    message = str(caught.value)
    assert "training has diverged (" in message
    assert "in epoch 1" in message
    assert "before the step" in message or "head" in message or "recurrent" in message
    assert "--nonfinite skip" in message


def test_the_finder_suggests_a_rate_that_learns(series):
    settings = SETTINGS.replace(hidden_size=8)
    objective = objectives.get("classification")
    torch.manual_seed(0)
    model = objective.model(cw.cells.get("gru"), 2, 3, settings)
    model.standardise.measure(torch.cat([torch.from_numpy(each) for each in series.values]))
    before = weights(model)
    found = find_learning_rate(model, objective, series, series.classes, settings, steps=60)
    assert torch.equal(weights(model), before)
    assert 1e-4 < found.suggestion < 0.5
    assert found.rates == sorted(found.rates)
    assert len(found.rates) == len(found.losses) <= 60
    with pytest.raises(UsageError, match="the loss falls nowhere"):
        find_learning_rate(
            model, objective, series, series.classes, settings, lowest=1e30, highest=1e31, steps=9
        )


def test_mixed_precision_is_near(tmp_path, series):
    plain, _ = train(tmp_path / "a", series, SETTINGS)
    mixed, _ = train(tmp_path / "b", series, SETTINGS.replace(precision="bf16-mixed"))
    assert {each.dtype for each in mixed.parameters()} == {torch.float32}
    apart = (weights(plain) - weights(mixed)).abs().max()
    assert 0 < apart < 0.05  # bfloat16 has 8 bits; twelve updates of at most 0.01
    found = measure(mixed, objectives.get("classification"), series, series.classes)
    assert found.loss > 0
