"""What a run of policy optimisation can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cellwright.errors import UsageError
from cellwright.train.settings import (
    check_engine,
    check_number,
    check_whole,
    option,
    read_settings,
)

SCHEDULES = ("linear", "constant")
# None that draws: an action's probability is to be the same when it is taken and when it is learnt.
LAYER_OPTIONS = (
    "layer_norm", "heads", "learn_initial_state", "init", "grad_clip", "precision", "save"
)  # fmt: skip


@dataclass(frozen=True)
class PolicySettings:
    """Settings of recurrent proximal policy optimisation.

    Attributes:
        cell: a name in the catalogue, or "path/to/file.py:cell_name".
        hidden_size, num_layers: of the recurrent network.
        sizes: numbers for the cell's other sizes, as ``{"projection": 32}``.
        layer: other options of the recurrent layer, as ``{"init": "orthogonal"}``; see
            `cellwright.nn.Recurrent`.
        shared: whether policy and value share one recurrent network or have one each.
        normalise_observations: subtract their running mean, divide by their deviation.
        normalise_rewards: divide by the running deviation of discounted returns, so that values
            are of order 1 whatever the unit of the rewards.
        num_envs: environments side by side.
        rollout_steps: steps in each environment between two updates.
        total_steps: in all environments together; the part of a roll-out that is left over at
            the end is not made.
        epochs: passes over each roll-out.
        minibatches: parts of a roll-out, each of whole sequences; divides ``num_envs``.
        learning_rate: of Adam, at the start.
        clip_range: how far a probability may move in an update, as a ratio, at the start.
        schedule: "linear" (learning rate and clip range fall to zero over the run) or "constant".
        discount: γ, of rewards that come a step later.
        gae_lambda: λ, between one-step (0) and whole-return (1) estimates of the advantage.
        entropy_weight, value_weight: of these two in the objective.
        gradient_clip: largest norm of the gradient.
        checkpoint_every: updates from checkpoint to checkpoint. At each, all episodes are broken
            off and begun anew: see `cellwright.train.policy.learning.learn`.
        seed: of weights, environments, actions and order.
        threads: torch's threads.
        engine: the name of the engine; None for the one that suits.

    Raises:
        UsageError: a value is out of range; the message names the option.

    Example:
        >>> PolicySettings(num_envs=4, rollout_steps=16, total_steps=1000).updates
        15
    """

    cell: str = "lstm"
    hidden_size: int = 64
    num_layers: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    layer: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    normalise_observations: bool = True
    normalise_rewards: bool = True
    num_envs: int = 8
    rollout_steps: int = 128
    total_steps: int = 1_000_000
    epochs: int = 10
    minibatches: int = 4
    learning_rate: float = 3e-4
    clip_range: float = 0.2
    schedule: str = "linear"
    discount: float = 0.99
    gae_lambda: float = 0.95
    entropy_weight: float = 0.0
    value_weight: float = 0.5
    gradient_clip: float = 0.5
    checkpoint_every: int = 50
    seed: int = 0
    threads: int = 1
    engine: str | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0, 2**32 - 1)
        for name, (low, high, open_ends) in _RANGES.items():
            check_number(name, getattr(self, name), low, high, open_ends)
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"{option(name)}: expected a number from 0 to 1, got {getattr(self, name)!r}"
                )
        for name in ("shared", "normalise_observations", "normalise_rewards"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(
                    f"{option(name)}: expected true or false, got {getattr(self, name)!r}"
                )
        if not isinstance(self.cell, str) or not self.cell:
            raise UsageError(f"--cell: expected a name or path.py:cell, got {self.cell!r}")
        if self.schedule not in SCHEDULES:
            raise UsageError(
                f"--schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
            )
        if self.num_envs % self.minibatches:
            raise UsageError(
                f"--minibatches: {self.num_envs} environments do not make {self.minibatches} "
                f"equal parts; choose a divisor of --num-envs"
            )
        if self.updates == 0:
            raise UsageError(
                f"--total-steps: {self.total_steps} steps are less than one roll-out: "
                f"{self.num_envs} environments × {self.rollout_steps} steps"
            )
        self._check_layer()
        if self.engine is not None:
            check_engine(self.engine)

    def _check_layer(self) -> None:
        for name in ("sizes", "layer"):
            if not isinstance(getattr(self, name), Mapping):
                raise UsageError(
                    f"{option(name)}: expected names with values, got {getattr(self, name)!r}"
                )
            object.__setattr__(self, name, dict(getattr(self, name)))
        for name, value in self.sizes.items():
            check_whole(f"size {name}", value, 1)
        for name in self.layer:
            if name not in LAYER_OPTIONS:
                raise UsageError(
                    f"--layer: expected one of {', '.join(LAYER_OPTIONS)}, got {name!r}"
                )

    @property
    def updates(self) -> int:
        """How many roll-outs the run has."""
        return self.total_steps // (self.num_envs * self.rollout_steps)

    def replace(self, **changes: Any) -> PolicySettings:
        """A copy with other values."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicySettings:
        """The settings that `as_dict` gave.

        Raises:
            UsageError: a name is unknown or missing, or a value out of range.
        """
        return read_settings(cls, values)


_COUNTS = (
    "hidden_size", "num_layers", "num_envs", "rollout_steps", "total_steps", "epochs",
    "minibatches", "checkpoint_every", "threads",
)  # fmt: skip
_RANGES = {  # name: lowest, highest, which ends are left out
    "learning_rate": (0.0, math.inf, "both"),
    "clip_range": (0.0, 1.0, "both"),
    "discount": (0.0, math.inf, "high"),
    "gae_lambda": (0.0, math.inf, "high"),
    "entropy_weight": (0.0, math.inf, "high"),
    "value_weight": (0.0, math.inf, "high"),
    "gradient_clip": (0.0, math.inf, "both"),
}
