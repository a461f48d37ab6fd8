"""How a network's outputs are a distribution of actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.errors import UsageError
from cellwright.train.policy.environments import gymnasium

if TYPE_CHECKING:
    from gymnasium import Space


class Actions(nn.Module, ABC):
    """Distributions of actions, given ``outputs`` numbers for each.

    Attributes:
        outputs: how many numbers describe a distribution.

    Shapes:
        outputs: (..., outputs); actions: (...) or (..., components); both other results: (...).
    """

    outputs: int

    @abstractmethod
    def sample(self, outputs: Tensor) -> Tensor:
        """Draw an action from each distribution."""

    @abstractmethod
    def best(self, outputs: Tensor) -> Tensor:
        """The most probable action of each distribution."""

    @abstractmethod
    def measure(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of each action's probability (or density), and the distributions' entropy."""

    @abstractmethod
    def performed(self, actions: Tensor) -> np.ndarray:
        """The actions as the environments take them."""


class DiscreteActions(Actions):
    """One of n actions: the outputs are logarithms of their probabilities, up to a constant.

    Args:
        count: n.
        first: the number of the first action.

    Example:
        >>> DiscreteActions(3).best(torch.tensor([[0.1, 2.0, -1.0]]))
        tensor([1])
    """

    def __init__(self, count: int, first: int = 0):
        super().__init__()
        self.outputs, self.first = count, first

    def sample(self, outputs: Tensor) -> Tensor:
        # The largest of log p - log e is at i with probability p(i), e exponentially distributed.
        return (outputs - torch.empty_like(outputs).exponential_().log()).argmax(-1)

    def best(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def measure(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logarithms = F.log_softmax(outputs, -1)
        chosen = logarithms.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return chosen, -(logarithms.exp() * logarithms).sum(-1)

    def performed(self, actions: Tensor) -> np.ndarray:
        return actions.numpy() + self.first


class GaussianActions(Actions):
    """Vectors of numbers, each normally distributed around an output.

    The deviations are parameters, the same in all states. Between two finite bounds, -1 and 1 of
    the network are the bounds; what is drawn beyond a bound acts as the bound.

    Args:
        low, high: bounds of the components, in the shape in which environments take actions.

    Example:
        >>> actions = GaussianActions(np.array([-2.0, 0.0]), np.array([2.0, np.inf]))
        >>> actions.performed(torch.tensor([[0.5, 0.5], [3.0, -7.0]])).tolist()
        [[1.0, 0.5], [2.0, 0.0]]
    """

    def __init__(self, low: np.ndarray, high: np.ndarray):
        super().__init__()
        self._shape, self._dtype = low.shape, low.dtype
        self._low, self._high = low.reshape(-1), high.reshape(-1)
        self.outputs = self._low.size
        bounded = np.isfinite(self._low) & np.isfinite(self._high)
        lower, upper = (np.where(bounded, each, 0.0) for each in (self._low, self._high))
        self._centre = (lower + upper) / 2
        self._scale = np.where(bounded, (upper - lower) / 2, 1.0)
        self.log_deviation = nn.Parameter(torch.zeros(self.outputs))

    def sample(self, outputs: Tensor) -> Tensor:
        return outputs + self.log_deviation.exp() * torch.randn_like(outputs)

    def best(self, outputs: Tensor) -> Tensor:
        return outputs

    def measure(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (actions - outputs) * (-self.log_deviation).exp()
        constant = 0.5 * math.log(2 * math.pi)
        density = (-0.5 * scaled.square() - self.log_deviation - constant).sum(-1)
        entropy = (self.log_deviation + 0.5 + constant).sum()
        return density, entropy.expand_as(density)

    def performed(self, actions: Tensor) -> np.ndarray:
        taken = self._centre + self._scale * actions.numpy()
        bounded = np.clip(taken, self._low, self._high).astype(self._dtype)
        return bounded.reshape(-1, *self._shape)


def actions_for(space: Space) -> Actions:
    """The distributions of actions for a space of gymnasium.

    Raises:
        UsageError: it is neither a Discrete nor a Box of fractional numbers.
    """
    spaces = gymnasium().spaces
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(int(space.n), int(space.start))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianActions(space.low, space.high)
    raise UsageError(
        f"action space {space}: expected a Discrete, or a Box of floating-point numbers"
    )
