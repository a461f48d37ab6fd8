"""How good a policy is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cellwright.errors import UsageError
from cellwright.train.policy.environments import Environments
from cellwright.train.policy.network import ActorCritic
from cellwright.train.policy.rollouts import Tally

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


@dataclass(frozen=True)
class Evaluation:
    """Returns of whole episodes.

    Attributes:
        returns, lengths: of each episode.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def deviation(self) -> float:
        """Standard deviation of the returns, as of a sample; NaN for one episode."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else math.nan


@torch.no_grad()
def evaluate(
    network: ActorCritic,
    make: Callable[[int], VectorEnv],
    episodes: int = 100,
    *,
    greedy: bool = True,
    num_envs: int = 10,
    seed: int = 0,
) -> Evaluation:
    """Let a policy act for whole episodes.

    Every environment contributes its first episodes, of a number fixed beforehand: taking those
    that end first would prefer the short ones.

    Args:
        network: the policy.
        make: gives so many environments side by side.
        episodes: how many.
        greedy: the most probable action; else actions are drawn.
        num_envs: environments side by side, at most.
        seed: of environments and actions.

    Raises:
        UsageError: the environments are not supported, or not those of the network.
    """
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}: expected a whole number, 1 or more, got {value!r}")
    count = min(num_envs, episodes)
    environments = Environments(make(count))
    try:
        network.check(environments)
        quota = np.array([episodes // count + (index < episodes % count) for index in range(count)])
        taken = _play(network, environments, quota, greedy, seed)
    finally:
        environments.close()
    return Evaluation(tuple(each[0] for each in taken), tuple(each[1] for each in taken))


def _play(
    network: ActorCritic, environments: Environments, quota: np.ndarray, greedy: bool, seed: int
) -> list[tuple[float, int]]:
    count, tally = len(quota), Tally(len(quota))
    seen = torch.from_numpy(environments.reset(seed))
    states, begins = network.initial_states(count), torch.ones(count, dtype=torch.bool)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while (np.bincount(tally.owners, minlength=count) < quota).any():
            if begins.any():
                states = network.start(states, begins)
            outputs, _, states = network.step(seen, states)
            actions = (network.actions.best if greedy else network.actions.sample)(outputs)
            step = environments.step(network.actions.performed(actions))
            tally.add(step.rewards, step.terminated | step.truncated, step.counts)
            seen, begins = torch.from_numpy(step.observations), torch.from_numpy(step.begins)
    left, taken = quota.copy(), []
    for owner, total, length in zip(tally.owners, tally.returns, tally.lengths, strict=True):
        if left[owner] > 0:
            left[owner] -= 1
            taken.append((total, length))
    return taken
