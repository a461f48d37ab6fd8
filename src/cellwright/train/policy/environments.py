"""Gymnasium's vector environments, with one meaning of a step whatever their autoreset mode.

An episode's end and the beginning of the next one take one step of the vector or two. Where it is
one (``SAME_STEP``), the observation that ended the episode is in ``infos``; where it is two
(``NEXT_STEP``), the second ignores its action and only brings the new episode's first observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.errors import UsageError

if TYPE_CHECKING:
    from gymnasium import Env, Space
    from gymnasium.vector import VectorEnv

NO_GYMNASIUM = "gymnasium is not installed; install it with: pip install 'cellwright[control]'"


def gymnasium() -> ModuleType:
    """The package gymnasium.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise UsageError(NO_GYMNASIUM) from None
    return gymnasium


def make(
    name: str,
    num_envs: int,
    wrappers: Sequence[Callable[[Env], Env]] = (),
    **options: Any,
) -> VectorEnv:
    """Environments of one kind, side by side in this process.

    Args:
        name: as gymnasium knows it: "CartPole-v1", or "module:Name-v0".
        num_envs: how many.
        wrappers: put around each.
        options: of the environment.

    Raises:
        UsageError: gymnasium is not installed, or cannot make this environment.

    Example:
        >>> vector = make("CartPole-v1", 3)
        >>> vector.reset(seed=0)[0].shape
        (3, 4)
    """
    gym = gymnasium()
    try:
        made: VectorEnv = gym.make_vec(
            name,
            num_envs=num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
            wrappers=list(wrappers),
            **options,
        )
    except (gym.error.Error, ModuleNotFoundError, TypeError) as error:
        raise UsageError(f"environment {name!r} cannot be made: {error}") from error
    return made


@dataclass(frozen=True)
class Step:
    """What one step of B environments brought.

    Attributes:
        observations: (B, features) what the next action is to be chosen by.
        rewards: (B,).
        terminated: (B,) the episode ended at this step, in a state of the problem's own end.
        truncated: (B,) the episode was broken off at this step: what would have followed still
            counts.
        final: (B, features) the observations that this step ended in, where ``observations`` has
            a new episode's first one in their place; None if it has none.
        begins: (B,) ``observations`` is the first of an episode.
        counts: (B,) the action had an effect.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final: np.ndarray | None
    begins: np.ndarray
    counts: np.ndarray


class Environments:
    """Vector environments as a policy sees them: observations are vectors of float32 numbers.

    Args:
        vector: of gymnasium, in autoreset mode ``SAME_STEP`` or ``NEXT_STEP``.

    Attributes:
        num_envs: how many.
        features: numbers of an observation.
        action_space: of one of them.

    Raises:
        UsageError: it is not a vector environment, or its mode or observations are not supported.
    """

    def __init__(self, vector: VectorEnv):
        gym = gymnasium()
        if not isinstance(vector, gym.vector.VectorEnv):
            raise UsageError(
                "expected a vector environment of gymnasium, as gymnasium.make_vec gives it, "
                f"got {type(vector).__name__}"
            )
        modes = gym.vector.AutoresetMode
        mode = vector.metadata.get("autoreset_mode")
        if mode not in (modes.SAME_STEP, modes.NEXT_STEP):
            raise UsageError(
                f"{vector}: expected metadata['autoreset_mode'] to be AutoresetMode.SAME_STEP or "
                f"NEXT_STEP, got {mode}"
            )
        self._vector, self._same_step = vector, mode is modes.SAME_STEP
        self.num_envs = vector.num_envs
        self.action_space = vector.single_action_space
        self._flat, self.features = _flattener(vector.single_observation_space)
        self._ended = np.zeros(self.num_envs, np.bool_)

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode everywhere; gives the first observations, (B, features)."""
        observations, _ = self._vector.reset(seed=seed)
        self._ended = np.zeros(self.num_envs, np.bool_)
        return self._flat(observations)

    def step(self, actions: np.ndarray) -> Step:
        """Act everywhere.

        Args:
            actions: (B, ...) of the environments' own kind.
        """
        seen, rewards, terminated, truncated, infos = self._vector.step(actions)
        observations, ended = self._flat(seen), terminated | truncated
        before, self._ended = self._ended, ended
        if not self._same_step:
            return Step(observations, rewards, terminated, truncated, None, before, ~before)
        final = None
        if ended.any():
            final = observations.copy()
            for index in np.flatnonzero(ended):
                final[index] = self._flat(np.asarray(infos["final_obs"][index])[None])[0]
        everywhere = np.ones(self.num_envs, np.bool_)
        return Step(observations, rewards, terminated, truncated, final, ended, everywhere)

    def close(self) -> None:
        """Let go of what the environments hold."""
        self._vector.close()


def _flattener(space: Space) -> tuple[Callable[[Any], np.ndarray], int]:
    """How observations (B, ...) of a space become (B, features), and how many those are."""
    spaces = gymnasium().spaces
    if isinstance(space, spaces.Box):
        return lambda seen: np.asarray(seen, np.float32).reshape(len(seen), -1), math.prod(
            space.shape
        )
    if isinstance(space, spaces.Discrete):
        rows, first = np.eye(int(space.n), dtype=np.float32), int(space.start)
        return lambda seen: rows[np.asarray(seen) - first], int(space.n)
    raise UsageError(
        f"observation space {space}: expected a Box or a Discrete; "
        "gymnasium.wrappers.FlattenObservation makes a Box of others"
    )
