"""A policy and a value, each from a recurrent network of any cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cellwright import cells
from cellwright.errors import CellwrightError, UsageError
from cellwright.nn import Recurrent
from cellwright.train.policy.actions import Actions, actions_for
from cellwright.train.policy.environments import Environments
from cellwright.train.policy.scaling import Standardise
from cellwright.train.policy.settings import PolicySettings

States = tuple[Any, ...]
"""The states of the recurrent networks: of the policy's, and of the value's if it has its own."""


class ActorCritic(nn.Module):
    """The policy's distribution and the value of every observation of a sequence.

    Args:
        features: of an observation.
        actions: of the policy.
        settings: ``cell``, ``hidden_size``, ``num_layers``, ``sizes``, ``layer``, ``shared`` and
            ``normalise_observations`` are used.

    Shapes:
        observations: (T, B, features); reset: (T, B), True where an episode begins.
        outputs: (T, B, actions.outputs); values: (T, B).

    Raises:
        UsageError: the cell does not exist, or cannot be made with these settings.
    """

    def __init__(self, features: int, actions: Actions, settings: PolicySettings):
        super().__init__()
        self.features, self.actions = features, actions
        self.standardise = Standardise(features, active=settings.normalise_observations)
        spec = cells.load(settings.cell)

        def make() -> Recurrent:
            return Recurrent(
                spec, features, settings.hidden_size, settings.num_layers,
                sizes=settings.sizes, **settings.layer,
            )  # fmt: skip

        try:
            self.actor = make()
            self.critic = None if settings.shared else make()
        except CellwrightError as error:
            raise UsageError(f"--cell {settings.cell}: {error}") from error
        units = self.actor.output_size
        self.policy = nn.Linear(units, actions.outputs)
        self.value = nn.Linear(units, 1)
        for head, gain in ((self.policy, 0.01), (self.value, 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)

    @property
    def recurrent(self) -> tuple[Recurrent, ...]:
        """The recurrent networks: the policy's, and the value's if it has its own."""
        return (self.actor,) if self.critic is None else (self.actor, self.critic)

    def check(self, environments: Environments) -> None:
        """Raise `UsageError` for environments with other observations or actions."""
        outputs = actions_for(environments.action_space).outputs
        if (environments.features, outputs) != (self.features, self.actions.outputs):
            raise UsageError(
                f"the policy reads {self.features} numbers and gives {self.actions.outputs}; these "
                f"environments have observations of {environments.features} numbers and "
                f"{environments.action_space}"
            )

    def initial_states(self, batch: int) -> States:
        """The states before an episode's first step."""
        return tuple(each.initial_state(batch) for each in self.recurrent)

    def forward(self, observations: Tensor, states: States, reset: Tensor) -> tuple[Tensor, Tensor]:
        x = self.standardise(observations)
        found = [
            layer(x, state, reset=reset)[0]
            for layer, state in zip(self.recurrent, states, strict=True)
        ]
        return self.policy(found[0]), self.value(found[-1]).squeeze(-1)

    def step(self, observations: Tensor, states: States) -> tuple[Tensor, Tensor, States]:
        """One step of B environments: outputs, values and the states after it."""
        x = self.standardise(observations)
        found, after = zip(
            *(each.step(x, state) for each, state in zip(self.recurrent, states, strict=True)),
            strict=True,
        )
        return self.policy(found[0]), self.value(found[-1]).squeeze(-1), after

    def start(self, states: States, begins: Tensor) -> States:
        """The states, with those of an episode's beginning where ``begins`` (B,) is True."""
        where, fresh = begins[:, None], self.initial_states(len(begins))
        return tuple(
            type(state)(*(torch.where(where, *each) for each in zip(first, state, strict=True)))
            for first, state in zip(fresh, states, strict=True)
        )


def network_for(environments: Environments, settings: PolicySettings) -> ActorCritic:
    """A network with fresh weights for these environments.

    Raises:
        UsageError: the action space is not supported, or the cell cannot be made.
    """
    actions = actions_for(environments.action_space)
    return ActorCritic(environments.features, actions, settings)
