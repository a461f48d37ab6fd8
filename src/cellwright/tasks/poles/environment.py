"""The two poles as an environment of gymnasium, for controllers of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellwright.errors import UsageError
from cellwright.tasks.poles.evaluation import standard_start
from cellwright.tasks.poles.motion import NUMBERS, OBSERVED, Cart, State, observe

try:
    import gymnasium
except ImportError:
    raise UsageError(
        "the environment needs gymnasium, which is not installed: pip install 'cellwright[control]'"
    ) from None


class DoublePole(gymnasium.Env):
    """Two poles on a cart; a reward of 1 for every step at whose end they stand.

    An observation is (position, angle of the long pole, angle of the short pole), scaled by
    `OBSERVED`, or the whole `State` in its own units; an action is one number, -1 to 1 times the
    largest force.

    Args:
        velocities: whether the whole state is observed.
        start_angle: degrees at which the long pole begins.
        steps: after which an episode is truncated.
        cart: constants.

    Example:
        >>> environment = DoublePole()
        >>> observation, _ = environment.reset()
        >>> observation, reward, terminated, truncated, _ = environment.step([0.5])
        >>> observation.shape, reward, terminated
        ((3,), 1.0, False)
    """

    def __init__(
        self,
        velocities: bool = False,
        start_angle: float = 4.5,
        steps: int = 1000,
        cart: Cart | None = None,
    ):
        self.cart, self.velocities, self.steps = cart or Cart(), velocities, steps
        self._start = standard_start(start_angle)[0]
        self.state, self._done = self._start, 0
        width = len(State._fields) if velocities else len(OBSERVED)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode, at ``options["state"]`` where that is given."""
        super().reset(seed=seed)
        self.state, self._done = State(*(options or {}).get("state", self._start)), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One action: observation, reward, terminated, truncated, nothing more to say."""
        push = float(np.clip(np.asarray(action, dtype=np.float64).reshape(()), -1.0, 1.0))
        self.state = self.cart.step(self.state, push, NUMBERS)
        self._done += 1
        standing = bool(self.cart.tilt(self.state, NUMBERS) <= 1)
        return self._observation(), float(standing), not standing, self._done >= self.steps, {}

    def _observation(self) -> np.ndarray:
        return np.array(self.state if self.velocities else observe(self.state), dtype=np.float64)
