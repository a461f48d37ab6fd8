"""Training: the same seed gives the same bits, also after an interruption at any epoch."""

from __future__ import annotations

import csv

import pytest
import torch

import cellwright as cw
from cellwright.errors import CheckpointError, UsageError
from cellwright.train import objectives
from cellwright.train.batches import seed_everything
from cellwright.train.fit import fit
from cellwright.train.measure import measure, threads
from cellwright.train.module import TrainingModule
from cellwright.train.optimisation import rate
from cellwright.train.settings import Settings

SETTINGS = Settings(
    hidden_size=4, num_layers=2, epochs=4, batch_size=8, dropout=0.2, crop=0.3, offset=0.1
)


def train(folder, series, settings=SETTINGS, validation=None, identity="me", stop_after=None):
    objective = objectives.get("classification")
    seed_everything(settings.seed, settings.epochs)
    model = objective.model(cw.cells.get("gru"), 2, 3, settings)
    model.standardise.measure(torch.cat([torch.from_numpy(each) for each in series.values]))
    if stop_after is not None:
        with pytest.MonkeyPatch.context() as patch:
            begin = TrainingModule.on_train_epoch_start

            def stop(module):
                if module.current_epoch == stop_after:
                    raise RuntimeError("stopped")
                begin(module)

            patch.setattr(TrainingModule, "on_train_epoch_start", stop)
            with pytest.raises(RuntimeError, match="stopped"):
                fit(
                    model, objective, series, validation, series.classes, settings, folder,
                    {"name": identity},
                )  # fmt: skip
        return None, None
    fitted = fit(
        model, objective, series, validation, series.classes, settings, folder,
        {"name": identity},
    )  # fmt: skip
    return model, fitted


@pytest.fixture(autouse=True)
def one_thread():
    """As `SETTINGS` say; small products on more threads would also be slower."""
    with threads(SETTINGS.threads):
        yield


def bits(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def without_seconds(fitted):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.rows]


def test_the_same_seed_gives_the_same_bits(tmp_path, series):
    first, one = train(tmp_path / "a", series)
    torch.rand(5)  # chance drawn elsewhere does not matter
    second, two = train(tmp_path / "b", series)
    assert bits(first) == bits(second)
    assert without_seconds(one) == without_seconds(two)
    other, _ = train(tmp_path / "c", series, SETTINGS.replace(seed=1))
    assert bits(first) != bits(other)


@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize("validated", [False, True])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, series, stop_after, validated):
    validation = series.take(range(9)) if validated else None
    whole, one = train(tmp_path / "a", series, validation=validation)
    train(tmp_path / "b", series, validation=validation, stop_after=stop_after)
    resumed, two = train(tmp_path / "b", series, validation=validation)
    assert bits(whole) == bits(resumed)
    assert one.epoch == two.epoch
    assert without_seconds(one) == without_seconds(two)
    with (tmp_path / "b" / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_a_training_that_has_ended_is_not_trained_on(tmp_path, series):
    first, one = train(tmp_path, series)
    second, two = train(tmp_path, series)
    assert bits(first) == bits(second)
    assert one.rows == two.rows


def test_it_learns(tmp_path, series):
    settings = SETTINGS.replace(epochs=25, num_layers=1, hidden_size=8)
    model, fitted = train(tmp_path, series, settings)
    found = measure(model, objectives.get("classification"), series, series.classes)
    assert found.metric == 1.0
    assert found.loss < fitted.rows[0]["train_loss"] / 3
    assert not model.training


def test_with_validation_the_best_epoch_is_kept(tmp_path, series):
    # A learning rate that overshoots, and labels that cannot be learnt: the best is not the last.
    settings = SETTINGS.replace(epochs=12, learning_rate=0.1, weight_decay=0.0, num_layers=1)
    held_out = series.take(range(9))
    wrong = held_out.__class__(**{**held_out.__dict__, "labels": held_out.labels[::-1]})
    model, fitted = train(tmp_path, series, settings, validation=wrong)
    losses = [row["validation_loss"] for row in fitted.rows]
    assert fitted.epoch == 1 + losses.index(min(losses)) < len(losses)
    found = measure(model, objectives.get("classification"), wrong, series.classes)
    assert found.loss == pytest.approx(min(losses), rel=1e-5)


def test_divergence_is_one_error(tmp_path, series, monkeypatch):
    monkeypatch.setattr(
        TrainingModule, "_measure", lambda self, part, batch: (torch.tensor(float("nan")), None)
    )
    with pytest.raises(UsageError, match=r"the loss became nan in epoch 1: .*--learning-rate"):
        train(tmp_path, series)


def test_a_checkpoint_of_another_run_is_refused(tmp_path, series):
    train(tmp_path, series)
    with pytest.raises(
        CheckpointError, match="another run, with another name: expected 'you', got 'me'"
    ):
        train(tmp_path, series, identity="you")


def test_a_truncated_checkpoint_is_refused(tmp_path, series):
    train(tmp_path, series)
    path = tmp_path / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"last\.safetensors: .*damaged or truncated"):
        train(tmp_path, series)


def test_the_learning_rate_rises_and_falls_to_zero(series):
    settings = Settings(epochs=10, batch_size=3)
    batches = series.batches(3)
    module = TrainingModule(torch.nn.Linear(1, 1), None, settings, batches, {})
    rates = [rate(step, "cosine", module.steps) for step in range(module.steps)]
    assert module.steps == 100
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert rate(module.steps, "cosine", module.steps) == pytest.approx(0)
