"""Observations and rewards in units of their own spread, as far as it is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_FARTHEST = 10.0  # standard deviations from the mean, beyond which an observation counts as there


class Standardise(nn.Module):
    """Subtract the mean and divide by the deviation of all rows that were measured before.

    Args:
        features: of a row.
        active: whether to do it; else values stay as they are.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, features: int, active: bool = True):
        super().__init__()
        self.active = active
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(features, dtype=torch.float64))
        self._set()

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each feature; 1 before anything was measured."""
        if self.count == 0:
            return torch.ones_like(self.squares)
        return (self.squares / self.count + 1e-8).sqrt()

    def _set(self) -> None:
        self._shift, self._factor = self.mean.float(), (1 / self.deviation).float()

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        return ((x - self._shift) * self._factor).clamp(-_FARTHEST, _FARTHEST)

    def measure(self, rows: Tensor) -> None:
        """Take more rows (N, features) into account: Chan, Golub & LeVeque 1983."""
        if not len(rows):
            return
        rows = rows.double()
        mean, count, total = rows.mean(0), len(rows), self.count + len(rows)
        apart = mean - self.mean
        self.squares += (rows - mean).square().sum(0) + apart.square() * self.count * count / total
        self.mean += apart * count / total
        self.count.copy_(total)
        self._set()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._set()


class RewardScale:
    """Divides rewards by the deviation of the discounted sums of rewards up to each step.

    g(t) = γ g(t−1) + r(t), from 0 where an episode begins;  r'(t) = r(t) / deviation of all g

    Engstrom et al. 2020, "Implementation matters in deep policy gradients", have it from the code
    that came with the method.

    Args:
        num_envs: environments.
        discount: γ.
        active: whether to divide.

    Attributes:
        measured: the g of all roll-outs; a checkpoint has to keep it.
    """

    def __init__(self, num_envs: int, discount: float, active: bool = True):
        self.measured, self._discount, self._active = Standardise(1), discount, active
        self._sums = torch.zeros(num_envs)

    def restart(self) -> None:
        """Begin new episodes everywhere."""
        self._sums.zero_()

    def __call__(self, rewards: Tensor, ended: Tensor, counts: Tensor) -> Tensor:
        """The rewards of a roll-out, scaled by all that was seen up to now.

        Args:
            rewards, ended, counts: (T, B), see `rollouts.Rollout`.
        """
        if not self._active:
            return rewards
        sums = torch.empty_like(rewards)
        for t, (given, over) in enumerate(zip(rewards, ended, strict=True)):
            sums[t] = self._sums = self._discount * self._sums + given
            self._sums = self._sums.masked_fill(over, 0.0)
        self.measured.measure(sums[counts].unsqueeze(-1))
        return rewards / self.measured.deviation.float()
