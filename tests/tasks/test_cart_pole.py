"""Cart pole without velocities: what is seen, and a short run of the experiment."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed")

from cellwright.tasks import trials
from cellwright.tasks.cart_pole import cart_pole, make
from cellwright.train.policy import environments, learning

SHORT = {"total_steps": 512, "epochs": 1, "checkpoint_every": 1, "hidden_size": 4}


def test_only_position_and_angle_are_seen():
    whole, seen = environments.make("CartPole-v1", 3), make(3)
    first, others = whole.reset(seed=5)[0], seen.reset(seed=5)[0]
    assert np.array_equal(first[:, [0, 2]], others)
    assert seen.single_observation_space.shape == (2,)
    for _ in range(30):
        actions = np.array([0, 1, 0])
        assert np.array_equal(whole.step(actions)[0][:, [0, 2]], seen.step(actions)[0])


def test_settings_are_those_of_the_published_run():
    settings = cart_pole.settings()
    assert (settings.num_envs, settings.rollout_steps, settings.total_steps) == (8, 32, 100_000)
    assert settings.updates * 256 <= 100_000


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    whole = trials.execute(trials.prepare("cart-pole", SHORT, tmp_path / "whole"))
    trial = trials.prepare("cart-pole", SHORT, tmp_path / "parts")
    advance, made = learning._Run._advance, []

    def once(self, number):
        if made:
            raise KeyboardInterrupt
        made.append(number)
        return advance(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(learning._Run, "_advance", once)
        trials.execute(trial)
    found = trials.execute(trials.reopen(tmp_path / "parts"))
    assert found["test_episodes"] == 100
    assert {**found, "seconds": 0} == {**whole, "seconds": 0}
    names = [tmp_path / each / "model.safetensors" for each in ("whole", "parts")]
    assert names[0].read_bytes() == names[1].read_bytes()
