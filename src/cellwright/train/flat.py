"""A module's parameters as one flat vector, and vectors as the parameters of a population."""

from __future__ import annotations

from torch import Tensor, nn


class FlatParameters:
    """The order and shapes of a module's parameters.

    Example:
        >>> import torch
        >>> flat = FlatParameters(torch.nn.Linear(3, 2))
        >>> flat.count
        8
        >>> {name: tuple(each.shape) for name, each in flat.unflatten(torch.zeros(5, 8)).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}
    """

    def __init__(self, module: nn.Module):
        self._shapes = {name: each.shape for name, each in module.named_parameters()}
        self.count = sum(shape.numel() for shape in self._shapes.values())

    def unflatten(self, vectors: Tensor) -> dict[str, Tensor]:
        """(..., count) as parameters by name, (..., *shape) each."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = vectors.split(sizes, dim=-1)
        lead = vectors.shape[:-1]
        return {
            name: part.reshape(*lead, *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def load(self, vector: Tensor, module: nn.Module) -> None:
        """Write a vector (count,) into the module's parameters."""
        found = self.unflatten(vector)
        for name, parameter in module.named_parameters():
            parameter.data.copy_(found[name])
