"""Learning a policy: what it can learn, resuming, files, and what users get wrong."""

import builtins
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

gym = pytest.importorskip("gymnasium", reason="gymnasium is not installed")

from train.policy_cases import Recall, Scripted, Target, vector  # noqa: E402

from cellwright.errors import CheckpointError, UsageError  # noqa: E402
from cellwright.train import storage  # noqa: E402
from cellwright.train.policy import environments, files, scaling  # noqa: E402
from cellwright.train.policy.evaluation import evaluate  # noqa: E402
from cellwright.train.policy.learning import KIND, learn  # noqa: E402
from cellwright.train.policy.settings import PolicySettings  # noqa: E402

SHORT = PolicySettings(
    hidden_size=8, num_envs=4, rollout_steps=8, total_steps=4 * 8 * 7, epochs=2, minibatches=2,
    checkpoint_every=2, learning_rate=0.003,
)  # fmt: skip


def recalls(count, mode="same step"):
    return vector(*[Recall] * count, mode=mode)


# --- what can be learnt ------------------------------------------------------------------------

RECALL = PolicySettings(
    hidden_size=16, num_envs=16, rollout_steps=16, total_steps=16 * 16 * 32, epochs=8,
    minibatches=1, learning_rate=0.01, checkpoint_every=20,
)  # fmt: skip


@pytest.mark.parametrize("mode", ["same step", "next step"])
def test_a_task_that_needs_memory_is_learnt(mode, tmp_path):
    make = lambda count: recalls(count, mode)  # noqa: E731
    learnt = learn(make, RECALL, tmp_path)
    found = evaluate(learnt.network, make, episodes=100, seed=1)
    assert found.mean >= 0.99
    assert set(found.lengths) == {4}


def test_without_memory_it_is_not_learnt(tmp_path):
    cell = tmp_path / "forgetful.py"
    cell.write_text(
        "import cellwright as cw\n"
        "@cw.cell(state=('h',))\n"
        "def forgetful(x, h, W, b):\n"
        "    '''No memory.'''\n"
        "    return cw.next_state(h=cw.tanh(W @ x + b))\n"
    )
    learnt = learn(recalls, RECALL.replace(cell=f"{cell}:forgetful"), tmp_path / "run")
    found = evaluate(learnt.network, recalls, episodes=200, seed=1, greedy=False)
    assert abs(found.mean - 0.5) < 0.15  # standard error: 0.035


def test_continuous_actions_are_learnt(tmp_path):
    make = lambda count: vector(*[Target] * count)  # noqa: E731
    settings = PolicySettings(
        cell="gru", hidden_size=16, num_envs=16, rollout_steps=16, total_steps=16 * 16 * 24,
        epochs=8, minibatches=1, learning_rate=0.01, checkpoint_every=20, discount=0.5,
        shared=True,
    )  # fmt: skip
    learnt = learn(make, settings, tmp_path)
    found = evaluate(learnt.network, make, episodes=50, seed=1)
    # An episode has 8 steps; doing nothing costs 8 / 3.
    assert found.mean > -0.4


# --- resuming ----------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    pass


def weights_of(learnt):
    return learnt.network.state_dict()


def assert_same(one, other):
    for name, each in one.items():
        assert torch.equal(each, other[name]), name


@pytest.mark.parametrize("mode", ["same step", "next step"])
@pytest.mark.parametrize("steps", [3, 16, 41, 55])
def test_a_resumed_run_ends_with_the_same_bits(steps, mode, tmp_path):
    """``steps`` are those of the vector before the run is stopped, of 56."""
    make = lambda count: recalls(count, mode)  # noqa: E731
    whole = learn(make, SHORT, tmp_path / "whole")

    def stopping(count):
        made, left = make(count), [steps]
        step = made.step

        def counted(actions):
            if not left[0]:
                raise Interrupted
            left[0] -= 1
            return step(actions)

        made.step = counted
        return made

    with pytest.raises(Interrupted):
        learn(stopping, SHORT, tmp_path / "parts")
    resumed = learn(make, SHORT, tmp_path / "parts")
    assert_same(weights_of(whole), weights_of(resumed))
    assert [each["return"] for each in whole.rows] == [each["return"] for each in resumed.rows]
    again = learn(make, SHORT, tmp_path / "parts")
    assert_same(weights_of(whole), weights_of(again))


SCRIPT = f"""
import os, signal, sys
from pathlib import Path
from cellwright.train.policy import environments
from cellwright.train.policy.learning import learn
from cellwright.train.policy.settings import PolicySettings

def make(count):
    vector, left = environments.make("CartPole-v1", count), [45]
    step = vector.step

    def counted(actions):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(actions)

    vector.step = counted
    return vector

learn(make, {SHORT}, Path(sys.argv[1]))
"""


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    make = partial(environments.make, "CartPole-v1")
    whole = learn(make, SHORT, tmp_path / "whole")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "parts")], check=False)
    assert done.returncode == -signal.SIGKILL
    last = tmp_path / "parts" / "checkpoints" / "last.safetensors"
    assert storage.load(last, KIND)["updates"] == 4
    assert_same(weights_of(whole), weights_of(learn(make, SHORT, tmp_path / "parts")))


def test_environments_that_begin_otherwise_are_found_out(tmp_path):
    learn(recalls, SHORT, tmp_path)

    class Other(Recall):
        def reset(self, *, seed=None, options=None):
            seen, infos = super().reset(seed=seed, options=options)
            return -seen, infos

    with pytest.raises(CheckpointError, match="do not begin with the observations"):
        learn(lambda count: vector(*[Other] * count), SHORT, tmp_path)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    learn(recalls, SHORT, tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        learn(recalls, SHORT.replace(seed=1), tmp_path)


def test_a_run_does_not_depend_on_what_ran_before(tmp_path):
    one = learn(recalls, SHORT, tmp_path / "one")
    torch.rand(7)
    other = learn(recalls, SHORT, tmp_path / "other")
    assert_same(weights_of(one), weights_of(other))
    third = learn(recalls, SHORT.replace(seed=1), tmp_path / "third")
    assert not torch.equal(one.network.policy.weight, third.network.policy.weight)


# --- policies as files -------------------------------------------------------------------------


def test_a_saved_policy_acts_as_it_did(tmp_path):
    learnt = learn(recalls, SHORT, tmp_path)
    files.save_policy(tmp_path / "policy.safetensors", learnt.network, SHORT)
    loaded = files.load_policy(
        tmp_path / "policy.safetensors", environments.Environments(recalls(1))
    )
    one, other = (
        evaluate(each, recalls, 20, seed=3, greedy=False) for each in (learnt.network, loaded)
    )
    assert one == other
    with pytest.raises(CheckpointError, match="does not fit these environments"):
        streams = environments.Environments(vector(Target))
        files.load_policy(tmp_path / "policy.safetensors", streams)


# --- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["same step", "next step"])
def test_evaluation_does_not_prefer_short_episodes(mode, tmp_path):
    network = learn(lambda count: vector(*[lambda: Scripted([3])] * count), SHORT, tmp_path).network

    def make(count):
        assert count == 2
        return vector(lambda: Scripted([1]), lambda: Scripted([9]), mode=mode)

    found = evaluate(network, make, episodes=5, num_envs=2)
    assert sorted(found.lengths) == [1, 1, 1, 9, 9]
    assert found.mean == pytest.approx((3 * 1 + 2 * 45) / 5)


# --- scales ------------------------------------------------------------------------------------


def test_running_mean_and_deviation_are_those_of_all_rows():
    random = torch.Generator().manual_seed(0)
    rows = 3 + 5 * torch.randn(100, 2, generator=random)
    made = scaling.Standardise(2)
    for part in rows.split([1, 30, 0, 69]):
        made.measure(part)
    torch.testing.assert_close(made.mean, rows.double().mean(0))
    torch.testing.assert_close(made.deviation, rows.double().std(0, correction=0))
    copy = scaling.Standardise(2)
    copy.load_state_dict(made.state_dict())
    assert torch.equal(copy(rows), made(rows))


def test_rewards_are_scaled_by_their_discounted_sums():
    rewards = torch.tensor([[1.0], [2.0], [0.0], [4.0], [8.0]])
    ended = torch.tensor([[False], [True], [False], [False], [False]])
    counts = torch.tensor([[True], [True], [False], [True], [True]])
    scale = scaling.RewardScale(1, 0.5)
    found = torch.cat(
        [scale(rewards[:3], ended[:3], counts[:3]), scale(rewards[3:], ended[3:], counts[3:])]
    )
    sums = torch.tensor([1.0, 2.5, 4.0, 10.0], dtype=torch.float64)
    expected = rewards.clone()
    expected[:3] /= sums[:2].std(correction=0)
    expected[3:] /= sums.std(correction=0)
    torch.testing.assert_close(found, expected)


# --- mistakes ----------------------------------------------------------------------------------


def test_an_unknown_environment_is_an_error():
    with pytest.raises(UsageError, match="NoSuchThing-v7"):
        environments.make("NoSuchThing-v7", 2)


def test_a_single_environment_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"expected a vector environment.*got Recall"):
        learn(lambda count: Recall(), SHORT, tmp_path)


def test_a_vector_that_does_not_reset_by_itself_is_an_error(tmp_path):
    made = gym.vector.SyncVectorEnv([Recall] * 4, autoreset_mode=gym.vector.AutoresetMode.DISABLED)
    with pytest.raises(UsageError, match="autoreset_mode"):
        learn(lambda count: made, SHORT, tmp_path)


@pytest.mark.parametrize(
    "space", [gym.spaces.MultiBinary(3), gym.spaces.Box(0, 5, (2,), "int64")], ids=str
)
def test_an_action_space_that_is_not_supported_is_an_error(space, tmp_path):
    class Other(Recall):
        action_space = space

    with pytest.raises(UsageError, match="action space"):
        learn(lambda count: vector(*[Other] * count), SHORT, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_observation_space_that_is_not_supported_is_an_error(tmp_path):
    class Other(Recall):
        observation_space = gym.spaces.Dict({"a": Recall.observation_space})

    with pytest.raises(UsageError, match="FlattenObservation"):
        learn(lambda count: vector(*[Other] * count), SHORT, tmp_path)


def test_a_missing_gymnasium_is_said_with_the_way_to_get_it(monkeypatch):
    found = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "gymnasium":
            raise ModuleNotFoundError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'cellwright\[control\]'"):
        environments.make("CartPole-v1", 2)


def test_numbers_that_are_not_finite_stop_the_run(tmp_path):
    class Endless(Recall):
        def step(self, action):
            seen, _, *rest = super().step(action)
            return seen, float("nan"), *rest

    with pytest.raises(UsageError, match="has diverged"):
        learn(lambda count: vector(*[Endless] * count), SHORT, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "--hidden-size: expected a whole number, 1 or more, got 0"),
        ({"minibatches": 3}, "--minibatches: 4 environments do not make 3 equal parts"),
        ({"total_steps": 31}, "--total-steps: 31 steps are less than one roll-out"),
        ({"discount": 1.5}, "--discount: expected a number from 0 to 1, got 1.5"),
        ({"gae_lambda": -0.1}, "--gae-lambda"),
        ({"clip_range": 0}, "--clip-range: expected a number above 0 and below 1, got 0"),
        ({"schedule": "cosine"}, "--schedule: expected one of linear, constant, got 'cosine'"),
        ({"layer": {"zoneout": 0.1}}, "--layer: expected one of .* got 'zoneout'"),
        ({"shared": 1}, "--shared: expected true or false, got 1"),
        ({"engine": "abacus"}, "--engine"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
    ],
)
def test_settings_out_of_range_are_errors(changes, message):
    with pytest.raises(UsageError, match=message):
        SHORT.replace(**changes)


def test_settings_come_back_from_plain_values():
    assert PolicySettings.from_dict(SHORT.as_dict()) == SHORT
    with pytest.raises(UsageError, match="unknown setting 'colour'"):
        PolicySettings.from_dict({**SHORT.as_dict(), "colour": 1})
