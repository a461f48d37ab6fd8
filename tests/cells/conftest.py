"""Weights for a cell, and a layer that runs with them in float64."""

from __future__ import annotations

import numpy as np
import pytest

import cellwright as cw


def make_weights(spec, input_size, hidden_size, sizes=None, seed=0):
    """Random float64 weights by parameter name."""
    resolved = spec.resolve_sizes(input_size, hidden_size, sizes)
    rng = np.random.default_rng(seed)
    return {p.name: rng.normal(0.0, 0.7, p.shape(resolved)) for p in spec.parameters}


def run_layer(spec, weights, x, sizes=None, start=None):
    """Run one layer with these weights; returns (y, final states, trace) as arrays, time first.

    x has the shape (T, B, I); start maps states to (B, units) and is zero where it is silent.
    """
    torch = pytest.importorskip("torch")
    hidden_size = _hidden_size(spec, weights)
    layer = cw.nn.Recurrent(spec, x.shape[2], hidden_size, sizes=sizes, dtype=torch.float64)
    wanted = {p.name for p in spec.parameters}
    assert set(weights) == wanted, f"weights for {sorted(weights)}, parameters {sorted(wanted)}"
    with torch.no_grad():
        for name, value in weights.items():
            parameter = layer.parameter(name, layer=0, direction=0)
            value = torch.as_tensor(np.asarray(value, dtype=np.float64))
            assert parameter.shape == value.shape, name
            parameter.copy_(value)
        state = layer.initial_state(x.shape[1])
        for name, value in (start or {}).items():
            getattr(state, name)[0].copy_(torch.as_tensor(value))
        y, state, trace = layer(torch.as_tensor(x), state, trace=True)
    final = {each.name: getattr(state, each.name)[0].numpy() for each in spec.states}
    seen = (*(each.name for each in spec.states), *spec.watches)
    return y.numpy(), final, {name: trace[name][0].numpy() for name in seen}


def _hidden_size(spec, weights):
    for parameter in spec.parameters:
        shape = np.shape(weights[parameter.name])
        for name, size in zip(("rows", "columns"), shape, strict=False):
            if getattr(parameter.type, name, None) == "hidden":
                return size
    raise AssertionError(f"no matrix of {spec.name} has hidden units")


@pytest.fixture(name="make_weights")
def _make_weights():
    return make_weights


@pytest.fixture(name="run_layer")
def _run_layer():
    return run_layer
