"""The peephole LSTM as ``jax.lax.scan``, jitted, with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def run(weights: dict[str, Any], x: Any) -> Any:
    """y (T, B, H) for x (T, B, I), from a state of zeros; weights as in the plain loop."""
    U, V = weights["U"], weights["V"]
    V_i, V_f, V_o = jnp.split(V, 3)
    start = jnp.zeros((x.shape[1], U.shape[1]), x.dtype)

    def step(state: Any, from_x: Any) -> Any:
        h, c = state
        i_pre, f_pre, g_pre, o_pre = jnp.split(from_x + h @ U.T, 4, axis=1)
        i = jax.nn.sigmoid(i_pre + V_i * c)
        f = jax.nn.sigmoid(f_pre + V_f * c)
        c = f * c + i * jnp.tanh(g_pre)
        o = jax.nn.sigmoid(o_pre + V_o * c)
        h = o * jnp.tanh(c)
        return (h, c), h

    return jax.lax.scan(step, (start, start), x @ weights["W"].T + weights["b"])[1]


def training(
    weights: dict[str, np.ndarray], x: np.ndarray, gradient: np.ndarray
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """A call that returns y and the gradients of the weights, when they are there."""
    held = {name: jnp.asarray(value) for name, value in weights.items()}
    x, gradient = jnp.asarray(x), jnp.asarray(gradient)

    @jax.jit
    def both(weights: dict[str, Any]) -> Any:
        y, pull = jax.vjp(lambda w: run(w, x), weights)
        return y, pull(gradient)[0]

    return lambda: jax.block_until_ready(both(held))
