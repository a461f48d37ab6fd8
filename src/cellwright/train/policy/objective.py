"""The clipped objective of proximal policy optimisation, and an update by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cellwright.errors import UsageError
from cellwright.train.policy.advantages import estimate
from cellwright.train.policy.network import ActorCritic, States
from cellwright.train.policy.rollouts import Rollout
from cellwright.train.policy.settings import PolicySettings


@dataclass(frozen=True)
class Batch:
    """Whole sequences to learn from; the fields are (T, B, ...), the states (layers, B, size).

    Attributes:
        observations, reset, states: what the network reads.
        actions, log_probabilities: what was done, and how probable it was.
        advantages, returns: of the actions; of the observations.
        weights: share of each step in a mean; 0 where the action had no effect.
    """

    observations: Tensor
    reset: Tensor
    states: States
    actions: Tensor
    log_probabilities: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Losses:
    """Parts of the objective, each a mean over the steps.

    Attributes:
        total: what is minimised.
        policy, value, entropy: its parts.
        divergence: of the policy from the one that acted.
        clipped: share of steps whose ratio lay outside of the clip range.
    """

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    divergence: Tensor
    clipped: Tensor


def measure(
    network: ActorCritic, batch: Batch, clip_range: float, settings: PolicySettings
) -> Losses:
    """What proximal policy optimisation minimises.

    ρ = π(a | history) / π_old(a | history)
    L = − mean min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + c_v mean (V − R)² − c_e mean entropy(π)

    Schulman, Wolski, Dhariwal, Radford & Klimov 2017, "Proximal policy optimization algorithms".

    Args:
        network: π and V.
        batch: of sequences.
        clip_range: ε, above 0.
        settings: ``value_weight`` is c_v, ``entropy_weight`` is c_e.
    """
    outputs, values = network(batch.observations, batch.states, batch.reset)
    found, entropies = network.actions.measure(outputs, batch.actions)
    change = found - batch.log_probabilities
    ratio = change.exp()
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    gain = torch.minimum(ratio * batch.advantages, bounded * batch.advantages)
    policy = -(gain * batch.weights).sum()
    value = ((values - batch.returns).square() * batch.weights).sum()
    entropy = (entropies * batch.weights).sum()
    total = policy + settings.value_weight * value - settings.entropy_weight * entropy
    with torch.no_grad():
        divergence = ((ratio - 1 - change) * batch.weights).sum()
        clipped = (((ratio - 1).abs() > clip_range).float() * batch.weights).sum()
    return Losses(total, policy.detach(), value.detach(), entropy.detach(), divergence, clipped)


def update(
    network: ActorCritic,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    progress: float,
    settings: PolicySettings,
) -> Losses:
    """Learn from a roll-out; gives the losses of the last step.

    Args:
        network, optimiser: changed in place.
        rollout: what to learn from.
        progress: share of the run that lies behind, from 0 to 1, for the schedule.
        settings: of the learning.

    Raises:
        UsageError: the loss stopped being a finite number.
    """
    left = 1.0 - progress if settings.schedule == "linear" else 1.0
    for group in optimiser.param_groups:
        group["lr"] = settings.learning_rate * left
    whole = prepare(rollout, settings)
    for _ in range(settings.epochs):
        for batch in _parts(whole, settings.minibatches):
            losses = measure(network, batch, settings.clip_range * left, settings)
            optimiser.zero_grad()
            losses.total.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
            if not norm.isfinite():
                raise UsageError(
                    f"the gradient became {norm.item()} (loss {losses.total.item():g}): training "
                    "has diverged; try a smaller --learning-rate than "
                    f"{settings.learning_rate:g}"
                )
            optimiser.step()
    return losses


def prepare(rollout: Rollout, settings: PolicySettings) -> Batch:
    """All of a roll-out to learn from, its advantages with mean 0 and deviation 1."""
    advantages = estimate(
        rollout.rewards, rollout.values, rollout.next_values, rollout.ended,
        settings.discount, settings.gae_lambda,
    )  # fmt: skip
    returns = advantages + rollout.values
    counted = advantages[rollout.counts]
    if counted.numel() > 1:
        advantages = (advantages - counted.mean()) / (counted.std() + 1e-8)
    counts = rollout.counts.to(advantages.dtype)
    return Batch(
        rollout.observations, rollout.reset, rollout.states, rollout.actions,
        rollout.log_probabilities, advantages, returns, counts / counts.sum().clamp(min=1),
    )  # fmt: skip


def _parts(whole: Batch, count: int) -> Iterator[Batch]:
    """The sequences of a batch in parts, at random."""
    if count == 1:
        yield whole
        return
    for chosen in torch.randperm(whole.observations.shape[1]).chunk(count):
        weights = whole.weights[:, chosen]
        yield Batch(
            whole.observations[:, chosen], whole.reset[:, chosen],
            tuple(type(each)(*(one[:, chosen] for one in each)) for each in whole.states),
            whole.actions[:, chosen], whole.log_probabilities[:, chosen],
            whole.advantages[:, chosen], whole.returns[:, chosen],
            weights / weights.sum().clamp(min=1e-8),
        )  # fmt: skip
