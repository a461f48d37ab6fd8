"""A cart that carries two poles: equations of motion, written once.

They are arithmetic and a few functions, so that numbers, arrays and the values of a cell go
through the same lines. Equations and constants: Wieland 1991, Evolving neural network
controllers for unstable systems; with the cart's friction and the least force, Gomez,
Schmidhuber & Miikkulainen 2008, Accelerated neural evolution through cooperatively coevolved
synapses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cellwright import lang


@dataclass(frozen=True)
class Functions:
    """What the equations need beside arithmetic, for one kind of value."""

    sin: Callable[[Any], Any]
    cos: Callable[[Any], Any]
    abs: Callable[[Any], Any]
    maximum: Callable[[Any, Any], Any]
    where: Callable[[Any, Any, Any], Any]


NUMBERS = Functions(
    math.sin, math.cos, abs, max, lambda condition, chosen, other: chosen if condition else other
)
ARRAYS = Functions(np.sin, np.cos, np.abs, np.maximum, np.where)
VALUES = Functions(lang.sin, lang.cos, lang.abs, lang.maximum, lang.where)
"""Values of a cell."""


class State(NamedTuple):
    """Where the cart is and how the poles stand: metres, radians from upright, and seconds."""

    position: Any
    velocity: Any
    angle_1: Any
    rate_1: Any
    angle_2: Any
    rate_2: Any


@dataclass(frozen=True)
class Cart:
    """The constants.

    Attributes:
        gravity: m/s².
        mass, mass_1, mass_2: of the cart and of the poles, in kg.
        length_1, length_2: of the poles, in metres.
        friction: of the cart on its track, in newtons.
        hinge_friction: of each pole, in newton metres a radian per second.
        force: the largest, in newtons.
        least_force: no smaller one acts, so that nothing can be balanced by doing nothing.
        track: the cart may be so far from the middle, in metres.
        fallen: a pole has fallen at this angle, in radians.
        interval: seconds from one action to the next.
        substeps: Runge-Kutta steps of fourth order within it.
    """

    gravity: float = 9.8
    mass: float = 1.0
    mass_1: float = 0.1
    mass_2: float = 0.01
    length_1: float = 1.0
    length_2: float = 0.1
    friction: float = 5e-4
    hinge_friction: float = 2e-6
    force: float = 10.0
    least_force: float = 10.0 / 256
    track: float = 2.4
    fallen: float = math.radians(36)
    interval: float = 0.02
    substeps: int = 2

    def push(self, action: Any, f: Functions) -> Any:
        """The force for an action between -1 and 1."""
        force = action * self.force
        least = f.where(force < 0, -self.least_force, self.least_force)
        return f.where(f.abs(force) < self.least_force, least, force)

    def derivative(self, state: State, force: Any, f: Functions) -> State:
        """How fast each number of the state changes."""
        share_1, mass_1, pull_1 = self._pole(state.angle_1, state.rate_1, self.mass_1,
                                             self.length_1 / 2, f)  # fmt: skip
        share_2, mass_2, pull_2 = self._pole(state.angle_2, state.rate_2, self.mass_2,
                                             self.length_2 / 2, f)  # fmt: skip
        v = state.velocity
        rubbing = f.where(v > 0, self.friction, f.where(v < 0, -self.friction, 0.0))
        acceleration = (force - rubbing + share_1 + share_2) / (mass_1 + mass_2 + self.mass)
        turning_1 = pull_1 - acceleration * f.cos(state.angle_1) * (1.5 / self.length_1)
        turning_2 = pull_2 - acceleration * f.cos(state.angle_2) * (1.5 / self.length_2)
        return State(v, acceleration, state.rate_1, turning_1, state.rate_2, turning_2)

    def _pole(
        self, angle: Any, rate: Any, mass: float, half: float, f: Functions
    ) -> tuple[Any, Any, Any]:
        """A pole's force on the cart, the mass that it adds to it, its own angular acceleration."""
        sine, cosine = f.sin(angle), f.cos(angle)
        pull = sine * self.gravity - rate * (self.hinge_friction / (mass * half))
        force = rate * rate * sine * (mass * half) - cosine * pull * (0.75 * mass)
        return force, mass - cosine * cosine * (0.75 * mass), pull * (0.75 / half)

    def step(self, state: State, action: Any, f: Functions) -> State:
        """The state after one interval with the same action."""
        force, h = self.push(action, f), self.interval / self.substeps
        for _ in range(self.substeps):
            k1 = self.derivative(state, force, f)
            k2 = self.derivative(_moved(state, k1, h / 2), force, f)
            k3 = self.derivative(_moved(state, k2, h / 2), force, f)
            k4 = self.derivative(_moved(state, k3, h), force, f)
            rates = zip(k1, k2, k3, k4, strict=True)
            mean = State(*(a + (b + c) * 2 + d for a, b, c, d in rates))
            state = _moved(state, mean, h / 6)
        return state

    def tilt(self, state: State, f: Functions) -> Any:
        """How far the state is on its way to failure: beyond 1 it has failed."""
        steepest = f.maximum(f.abs(state.angle_1), f.abs(state.angle_2))
        return f.maximum(f.abs(state.position) * (1 / self.track), steepest * (1 / self.fallen))


OBSERVED = {"position": 1.0, "angle_1": 0.1, "angle_2": 0.1}
"""What a controller without velocities sees, and by what it is divided.

A metre and a tenth of a radian: the scales at which a controller has to act, so that weights of
order 1 are of use. (The literature divides by the limits, 2.4 m and 0.52 or 0.63 radians.)
"""


def observe(state: State) -> list[Any]:
    """Position and angles, scaled; no velocities."""
    return [getattr(state, name) * (1 / scale) for name, scale in OBSERVED.items()]


def _moved(state: State, rates: State, time: float) -> State:
    return State(*(value + rate * time for value, rate in zip(state, rates, strict=True)))


def sway(state: State, f: Functions) -> Any:
    """What Gruau's fitness adds up: |x| + |x'| + |angle 1| + |rate of angle 1|."""
    return f.abs(state.position) + f.abs(state.velocity) + f.abs(state.angle_1) + f.abs(
        state.rate_1
    )  # fmt: skip
