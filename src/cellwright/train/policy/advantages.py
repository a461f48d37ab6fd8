"""How much better an action was than the policy's mean: generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


def estimate(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    ended: Tensor,
    discount: float,
    gae_lambda: float,
) -> Tensor:
    """The advantage of every action of a roll-out.

    δ(t) = r(t) + γ V'(t) − V(t)
    A(t) = δ(t) + γ λ A(t+1), where the episode goes on after step t; else A(t) = δ(t)

    Schulman, Moritz, Levine, Jordan & Abbeel 2016, "High-dimensional continuous control using
    generalized advantage estimation".

    Args:
        rewards, values: r and V, (T, B).
        next_values: V', the value of what step t led to: 0 where the episode terminated; the
            value of its last observation where it was truncated; (T, B).
        ended: (T, B) booleans: the episode ended with step t.
        discount: γ, 0 to 1.
        gae_lambda: λ, 0 to 1.

    Example:
        >>> one, no = torch.ones(2, 1), torch.tensor([[False], [False]])
        >>> estimate(one, one, one, no, 0.5, 1.0).flatten().tolist()
        [0.75, 0.5]
    """
    surprise = rewards + discount * next_values - values
    carried = discount * gae_lambda * (~ended).to(rewards.dtype)
    advantages = torch.empty_like(rewards)
    later = torch.zeros_like(rewards[0])
    for t in range(len(rewards) - 1, -1, -1):
        later = surprise[t] + carried[t] * later
        advantages[t] = later
    return advantages
