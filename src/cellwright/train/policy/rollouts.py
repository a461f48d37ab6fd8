"""Acting in the environments, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cellwright.train.policy.environments import Environments
from cellwright.train.policy.network import ActorCritic, States


@dataclass(frozen=True)
class Rollout:
    """T steps of B environments.

    Attributes:
        observations: (T, B, features).
        actions: (T, B) or (T, B, components).
        log_probabilities, values, rewards: (T, B), when the actions were taken.
        next_values: (T, B), see `advantages.estimate`.
        ended: (T, B): the episode ended with this step.
        counts: (T, B): the action had an effect.
        reset: (T, B): the observation is the first of an episode.
        states: of the networks before the first step, before any reset.
    """

    observations: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    rewards: Tensor
    next_values: Tensor
    ended: Tensor
    counts: Tensor
    reset: Tensor
    states: States


@dataclass
class Tally:
    """Returns and lengths of the episodes that came to their end.

    Attributes:
        num_envs: environments.
        returns, lengths: of the episodes, in the order in which they ended; where several ended
            at once, in that of the environments.
        owners: the environment of each.
    """

    num_envs: int
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Leave out the episodes that are under way."""
        self._sums = np.zeros(self.num_envs)
        self._steps = np.zeros(self.num_envs, np.int64)

    def forget(self) -> None:
        """Forget the episodes that have ended."""
        self.returns, self.lengths, self.owners = [], [], []

    def add(self, rewards: np.ndarray, ended: np.ndarray, counts: np.ndarray) -> None:
        """Take one step of all environments into account."""
        self._sums += np.where(counts, rewards, 0.0)
        self._steps += counts
        for index in np.flatnonzero(ended):
            self.returns.append(float(self._sums[index]))
            self.lengths.append(int(self._steps[index]))
            self.owners.append(int(index))
        self._sums[ended], self._steps[ended] = 0.0, 0


class Collector:
    """Acts in environments by a network; the episodes and the states go on between roll-outs.

    Args:
        environments: where to.
        network: by which.

    Attributes:
        tally: of the episodes.
    """

    def __init__(self, environments: Environments, network: ActorCritic):
        self._environments, self._network = environments, network
        self.tally = Tally(environments.num_envs)

    def begin(self, seed: int) -> Tensor:
        """Break off all episodes and begin new ones; gives their first observations."""
        self.tally.restart()
        count = self._environments.num_envs
        self._seen = torch.from_numpy(self._environments.reset(seed))
        self._begins = torch.ones(count, dtype=torch.bool)
        with torch.no_grad():
            self._states = self._network.initial_states(count)
        return self._seen

    @torch.no_grad()
    def collect(self, steps: int) -> Rollout:
        """Act for some steps, by actions drawn from the policy."""
        network, states = self._network, self._states
        rows: list[tuple[Tensor, ...]] = []
        truncations: list[tuple[int, Tensor, Tensor]] = []
        for t in range(steps):
            seen, begins = self._seen, self._begins
            if begins.any():
                self._states = network.start(self._states, begins)
            outputs, values, self._states = network.step(seen, self._states)
            actions = network.actions.sample(outputs)
            log_probabilities, _ = network.actions.measure(outputs, actions)
            step = self._environments.step(network.actions.performed(actions))
            ended = step.terminated | step.truncated
            self.tally.add(step.rewards, ended, step.counts)
            broken = torch.from_numpy(step.truncated & ~step.terminated)
            if step.final is not None and broken.any():
                final = network.step(torch.from_numpy(step.final), self._states)[1]
                truncations.append((t, broken, final))
            rewards = torch.from_numpy(step.rewards).float()
            terminated, counts = torch.from_numpy(step.terminated), torch.from_numpy(step.counts)
            rows.append((
                seen, actions, log_probabilities, values, rewards, terminated,
                torch.from_numpy(ended), counts, begins,
            ))  # fmt: skip
            self._seen = torch.from_numpy(step.observations)
            self._begins = torch.from_numpy(step.begins)
        (
            observations, taken, old, values, rewards, terminated, ended, counts, reset
        ) = (torch.stack(each) for each in zip(*rows, strict=True))  # fmt: skip
        # What the last step led to is valued by the states that go on.
        last = network.step(self._seen, self._states)[1]
        next_values = torch.cat([values[1:], last[None]])
        for t, broken, final in truncations:
            next_values[t] = torch.where(broken, final, next_values[t])
        next_values[terminated] = 0.0
        return Rollout(
            observations, taken, old, values, rewards, next_values, ended, counts, reset, states
        )
