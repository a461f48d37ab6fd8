"""What a controller is worth: the damping fitness, and how long it balances from many starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from cellwright import cells
from cellwright.lang import CellSpec
from cellwright.nn import Recurrent
from cellwright.tasks.poles import controllers
from cellwright.tasks.poles.loop import PLANT, closed_loop
from cellwright.tasks.poles.motion import Cart, State
from cellwright.train.flat import FlatParameters

_POINTS = (0.05, 0.25, 0.5, 0.75, 0.95)
_RANGES = (2.16, 1.35, math.radians(3.6), math.radians(8.6))


def standard_start(degrees: float) -> list[State]:
    """The long pole so many degrees from upright, everything else at rest in the middle."""
    return [State(0.0, 0.0, math.radians(degrees), 0.0, 0.0, 0.0)]


def general_starts() -> list[State]:
    """The 625 starts of Gruau, Whitley & Pyeatt 1996; the short pole is upright and at rest."""
    axes = [[(2 * point - 1) * width for point in _POINTS] for width in _RANGES]
    starts = itertools.product(*axes)
    return [State(x, v, angle, rate, 0.0, 0.0) for x, v, angle, rate in starts]


def controller(reference: str) -> CellSpec:
    """A cell of `cellwright.tasks.poles.controllers`, or one that `cells.load` finds.

    Raises:
        UsageError: there is none of that name.
    """
    own = getattr(controllers, reference, None)
    return own if isinstance(own, CellSpec) else cells.load(reference)


class Trials:
    """Runs controllers, in float64; nothing goes on for those that have failed.

    Args:
        cell: the controller.
        units: its hidden size.
        cart: constants.
    """

    def __init__(self, cell: CellSpec, units: int, cart: Cart):
        loop = closed_loop(cell, cart)
        self.layer = Recurrent(loop, 0, units, sizes={PLANT: 1}, dtype=torch.float64)
        self.layer.requires_grad_(False)
        self.flat = FlatParameters(self.layer)

    def sways(self, population: Tensor, starts: Sequence[State], parts: Sequence[int]) -> Tensor:
        """`sway` after every step, infinite where it has failed: (N, steps, starts).

        Args:
            population: (N, parameters).
            starts: where each controller begins, one after the other.
            parts: numbers of steps; after each part only controllers go on that have not
                failed from every start.
        """
        count = len(population)
        result = torch.full((count, sum(parts), len(starts)), math.inf, dtype=torch.float64)
        going, done = torch.arange(count), 0
        state = self._begin(starts, count)
        for steps in parts:
            y, state = self._run(population[going], state, steps)
            result[going, done : done + steps] = y
            standing = y[:, -1].isfinite().any(-1)
            going, done = going[standing], done + steps
            state = type(state)(*(each[standing] for each in state))
            if not len(going):
                break
        return result

    def balanced(self, controller: Tensor, starts: Sequence[State], steps: int) -> Tensor:
        """How many steps one controller balances from each start, up to ``steps``."""
        result = torch.zeros(len(starts), dtype=torch.long)
        state, part = self._begin(starts, 1), 500
        while steps:
            part = min(steps, 2 * part)
            y, state = self._run(controller.unsqueeze(0), state, part)
            result += y[0].isfinite().sum(0)
            steps -= part
            if not y[0, -1].isfinite().any():
                break
        return result

    def _begin(self, starts: Sequence[State], count: int) -> Any:
        state = self.layer.initial_state(len(starts))
        for name, values in zip(State._fields, zip(*starts, strict=True), strict=True):
            getattr(state, name)[0, :, 0] = torch.tensor(values, dtype=torch.float64)
        return type(state)(*(each.expand(count, *each.shape) for each in state))

    def _run(self, population: Tensor, state: Any, steps: int) -> tuple[Tensor, Any]:
        """(N, steps, starts) and the states after them."""
        nothing = population.new_zeros(steps, state[0].shape[2], 0)

        def member(weights: dict[str, Tensor], state: Any) -> Any:
            return functional_call(self.layer, weights, (nothing, state))

        y, state = vmap(member)(self.flat.unflatten(population), state)
        return y[..., 0], state


def damping_fitness(sways: Tensor) -> Tensor:
    """0.1 t / steps + 0.9 * 0.75 / (sum of the last 100 sways); (N, steps) -> (N,).

    t counts the steps without failure; with less than 100 of them the second term is 0.
    Source: Gruau, Whitley & Pyeatt 1996, A comparison between cellular encoding and direct
    encoding for genetic neural networks.
    """
    steps = sways.shape[1]
    balanced = sways.isfinite().sum(1)
    place = (balanced.unsqueeze(1) - 100 + torch.arange(100)).clamp(min=0)
    total = sways.gather(1, place).sum(1)
    damping = torch.where(balanced >= 100, 0.75 / total, 0.0)
    return 0.1 * balanced.to(sways.dtype) / steps + 0.9 * damping
