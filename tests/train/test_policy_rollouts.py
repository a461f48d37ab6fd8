"""Acting: ends and beginnings of episodes in both autoreset modes, states, advantages."""

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason="gymnasium is not installed")

from train.policy_cases import MODES, Recall, Scripted, vector

from cellwright.train.policy import actions, advantages, environments, network
from cellwright.train.policy.rollouts import Collector
from cellwright.train.policy.settings import PolicySettings


def collector_for(*makes, mode="same step", **changes):
    torch.manual_seed(0)
    streams = environments.Environments(vector(*makes, mode=mode))
    made = network.network_for(streams, PolicySettings(hidden_size=5, **changes))
    return Collector(streams, made), made


# --- the two autoreset modes -------------------------------------------------------------------


def seen_of(rollout):
    """(episode, step) of every observation of the first environment."""
    return [tuple(map(int, each)) for each in rollout.observations[:, 0].tolist()]


def test_same_step_mode_begins_the_next_episode_at_once():
    scripted = Scripted([2, 3])
    collector, _ = collector_for(lambda: scripted)
    collector.begin(seed=0)
    rollout = collector.collect(6)
    assert seen_of(rollout) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert rollout.reset[:, 0].tolist() == [True, False, True, False, False, True]
    assert rollout.ended[:, 0].tolist() == [False, True, False, False, True, False]
    assert rollout.rewards[:, 0].tolist() == [1, 2, 1, 2, 3, 1]
    assert rollout.counts.all()
    assert scripted.actions == rollout.actions[:, 0].tolist()
    assert collector.tally.returns == [3, 6]
    assert collector.tally.lengths == [2, 3]


def test_next_step_mode_leaves_out_the_step_that_only_resets():
    scripted = Scripted([2, 3])
    collector, _ = collector_for(lambda: scripted, mode="next step")
    collector.begin(seed=0)
    rollout = collector.collect(8)
    counts = [True, True, False, True, True, True, False, True]
    assert seen_of(rollout) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    assert rollout.counts[:, 0].tolist() == counts
    assert rollout.reset[:, 0].tolist() == [True, False, False, True, False, False, False, True]
    assert rollout.rewards[rollout.counts].tolist() == [1, 2, 1, 2, 3, 1]
    assert scripted.actions == rollout.actions[rollout.counts].tolist()
    assert collector.tally.returns == [3, 6]
    assert collector.tally.lengths == [2, 3]


def test_roll_outs_that_end_between_two_episodes_go_on_rightly():
    for mode in MODES:
        whole, _ = collector_for(lambda: Scripted([2, 3]), mode=mode)
        parts, _ = collector_for(lambda: Scripted([2, 3]), mode=mode)
        whole.begin(seed=0)
        parts.begin(seed=0)
        expected = whole.collect(12)
        found = [parts.collect(1) for _ in range(12)]
        for name in ("observations", "reset", "counts", "ended", "rewards"):
            joined = torch.cat([getattr(each, name) for each in found])
            assert torch.equal(joined, getattr(expected, name)), (mode, name)


def values_by_hand(made, episode, steps):
    """Values of an episode's observations 0 to ``steps``, its last one among them."""
    x = torch.tensor([[[float(episode), float(at)]] for at in range(steps + 1)])
    with torch.no_grad():
        _, values = made(x, made.initial_states(1), torch.zeros(steps + 1, 1, dtype=torch.bool))
    return values[:, 0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_what_follows_an_end_is_valued_as_it_ended(mode, ends):
    collector, made = collector_for(lambda: Scripted([2, 3], ends), mode=mode)
    collector.begin(seed=0)
    rollout = collector.collect(9)
    found = rollout.next_values[rollout.counts]
    expected = []
    for episode, steps in enumerate([2, 3]):
        after = values_by_hand(made, episode, steps)[1:].clone()
        after[-1] *= ends == "truncated"
        expected.append(after)
    together = torch.cat(expected)
    # The heads run on one row here and on several there: the last bits may differ.
    torch.testing.assert_close(found[: len(together)], together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_roll_out_cut_in_an_episode_is_valued_by_its_next_observation(mode):
    collector, made = collector_for(lambda: Scripted([50]), mode=mode)
    collector.begin(seed=0)
    rollout = collector.collect(5)
    expected = values_by_hand(made, 0, 5)[5]
    torch.testing.assert_close(rollout.next_values[-1, 0], expected, rtol=1e-5, atol=1e-6)


# --- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", [{}, {"learn_initial_state": True}], ids=["zero", "learnt"])
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_learning_sees_the_probabilities_that_acted(mode, layer, shared):
    lengths = [3, 1, 4]
    makes = [lambda: Scripted(lengths), lambda: Scripted([2]), lambda: Scripted([30])]
    collector, made = collector_for(*makes, mode=mode, layer=layer, shared=shared)
    with torch.no_grad():
        for each in made.parameters():
            each.add_(0.3 * torch.randn_like(each))
    collector.begin(seed=0)
    collector.collect(4)
    rollout = collector.collect(7)
    outputs, values = made(rollout.observations, rollout.states, rollout.reset)
    logarithms, _ = made.actions.measure(outputs, rollout.actions)
    torch.testing.assert_close(values, rollout.values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logarithms, rollout.log_probabilities, rtol=1e-5, atol=1e-6)


def test_resets_inside_a_sequence_are_separate_episodes():
    _, made = collector_for(Recall)
    layer, x = made.actor, torch.randn(9, 1, 2)
    reset = torch.zeros(9, 1, dtype=torch.bool)
    reset[4] = reset[7] = True
    start = tuple(torch.randn_like(each) for each in layer.initial_state(1))
    y, _ = layer(x, start, reset=reset)
    parts = [
        layer(part, state)[0] for part, state in ((x[:4], start), (x[4:7], None), (x[7:], None))
    ]
    assert torch.equal(y, torch.cat(parts))
    together = torch.autograd.grad(y.square().sum(), layer.parameters())
    apart = torch.autograd.grad(
        sum(each.square().sum() for each in parts),
        layer.parameters(),
    )
    for (name, _), one, other in zip(layer.named_parameters(), together, apart, strict=True):
        # Sums over steps are cut in three: their order differs.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


# --- advantages --------------------------------------------------------------------------------


def advantages_by_definition(rewards, values, next_values, ended, discount, gae_lambda):
    """A(t) = Σ_k (γ λ)^k δ(t + k), up to the end of the episode: one sum for each t."""
    steps, batch = rewards.shape
    found = np.zeros((steps, batch))
    for b in range(batch):
        for t in range(steps):
            factor = 1.0
            for k in range(t, steps):
                surprise = rewards[k, b] + discount * next_values[k, b] - values[k, b]
                found[t, b] += factor * surprise
                if ended[k, b]:
                    break
                factor *= discount * gae_lambda
    return torch.from_numpy(found)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("steps", [1, 13])
def test_advantages_are_those_of_the_definition(steps, gae_lambda):
    random = torch.Generator().manual_seed(steps)
    draws = [torch.randn(steps, 3, generator=random, dtype=torch.float64) for _ in range(3)]
    ended = torch.rand(steps, 3, generator=random) < 0.3
    found = advantages.estimate(*draws, ended, 0.9, gae_lambda)
    expected = advantages_by_definition(*(each.numpy() for each in draws), ended, 0.9, gae_lambda)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- actions -----------------------------------------------------------------------------------


def test_discrete_actions_come_as_often_as_they_should():
    torch.manual_seed(0)
    made = actions.DiscreteActions(3, first=5)
    outputs = torch.tensor([0.0, 1.0, -1.0]).repeat(20_000, 1)
    drawn = made.sample(outputs)
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    # Standard error of a share: at most 0.0036.
    torch.testing.assert_close(shares, outputs[0].softmax(0), rtol=0, atol=0.015)
    logarithms, entropy = made.measure(outputs, drawn)
    known = torch.distributions.Categorical(logits=outputs)
    torch.testing.assert_close(logarithms, known.log_prob(drawn))
    torch.testing.assert_close(entropy, known.entropy())
    assert made.performed(drawn[:100]).min() >= 5


def test_gaussian_actions_are_normal_and_stay_in_their_bounds():
    torch.manual_seed(0)
    low, high = np.array([[-1.0, 0.0]], np.float32), np.array([[3.0, np.inf]], np.float32)
    made = actions.GaussianActions(low, high)
    with torch.no_grad():
        made.log_deviation.copy_(torch.tensor([0.5, -1.0]))
    outputs = torch.randn(7, 4, 2)
    drawn = made.sample(outputs)
    logarithms, entropy = made.measure(outputs, drawn)
    known = torch.distributions.Normal(outputs, made.log_deviation.exp())
    torch.testing.assert_close(logarithms, known.log_prob(drawn).sum(-1))
    torch.testing.assert_close(entropy, known.entropy().sum(-1))
    performed = made.performed(100 * outputs[0].detach())
    assert performed.shape == (4, 1, 2)
    assert performed.dtype == np.float32
    assert (performed >= low).all()
    assert (performed <= high).all()
    assert made.performed(torch.zeros(1, 2)).tolist() == [[[1.0, 0.0]]]
