"""Environments whose course is known beforehand, and one that needs memory."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Scripted(gym.Env):
    """Episodes of given lengths, one after the other, ending as given.

    The observation is (number of the episode, step in the episode); the reward of a step is
    1 + the step at which the action was taken. `actions` are those that had an effect.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, lengths: list[int], ends: str = "terminated"):
        self.lengths, self.ends, self.episode, self.actions = lengths, ends, -1, []

    def _seen(self) -> np.ndarray:
        return np.array([self.episode, self.at], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1 if seed is None else 0, 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.actions.append(int(action))
        self.at += 1
        over = self.at >= self.lengths[self.episode % len(self.lengths)]
        ended = {"terminated": (over, False), "truncated": (False, over)}[self.ends]
        return self._seen(), float(self.at), *ended, {}


class Recall(gym.Env):
    """The first observation says which action is right at the end, some steps later.

    The observation is (cue, whether the answer is wanted); only the answer is rewarded: 1 if it is
    right. Without memory the mean return is 0.5.
    """

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, steps: int = 4):
        self.steps = steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.right, self.at = int(self.np_random.integers(2)), 0
        return np.array([2 * self.right - 1, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        over = self.at == self.steps
        seen = np.array([0, self.at == self.steps - 1], np.float32)
        return seen, float(over and action == self.right), over, False, {}


class Target(gym.Env):
    """The action should be the observation: reward −(a − x)². Actions are numbers from −2 to 2."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        self.wanted = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.wanted, {}

    def step(self, action: Any) -> Any:
        reward = -float(np.square(action - self.wanted).sum())
        self.at += 1
        self.wanted = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.wanted, reward, False, self.at == 8, {}


MODES = {"same step": AutoresetMode.SAME_STEP, "next step": AutoresetMode.NEXT_STEP}


def vector(*makes: Any, mode: str = "same step") -> SyncVectorEnv:
    """Environments side by side, each made by a function."""
    return SyncVectorEnv(makes, autoreset_mode=MODES[mode])
