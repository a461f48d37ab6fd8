"""The report of recurrent matrices against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import cellwright as cw
from cellwright.train.spectral import spectra, table


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def by_numpy(block):
    block = block.detach().double().numpy()
    values = np.linalg.svd(block, compute_uv=False)
    return np.abs(np.linalg.eigvals(block)).max(), values[0], values[0] / values[-1]


def test_every_gate_layer_direction_and_head():
    model = nn.ModuleDict({
        "a": cw.nn.Recurrent("lstm", 3, 6, 2, bidirectional=True, heads=2),
        "b": cw.nn.LSTM(3, 4),
        "c": nn.Linear(2, 2),
        "d": cw.nn.Recurrent("indrnn", 3, 4),
    })  # fmt: skip
    rows = spectra(model)
    assert [row.module for row in rows].count("a") == 4 * 2 * 2 * 2
    assert [row.matrix for row in rows if row.module == "b"] == ["U.i", "U.f", "U.g", "U.o"]
    assert {row.module for row in rows} == {"a", "b"}
    for row in rows:
        if row.module == "a":
            weight = model["a"].parameter(row.matrix, row.layer, row.direction).chunk(2)[row.head]
        else:
            weight = model["b"].weight_hh_l0.chunk(4)["ifgo".index(row.matrix[-1])]
        expected = by_numpy(weight)
        assert (row.radius, row.norm, row.condition) == pytest.approx(expected, rel=1e-6)


def test_matrices_that_are_not_square_are_singular_or_broken():
    layer = cw.nn.Recurrent("lstm_projection", 3, 6, sizes={"projection": 2})
    rows = {row.matrix: row for row in spectra(layer)}
    assert rows["U.i"].radius is rows["P"].radius is None
    assert rows["P"].norm > 0
    with torch.no_grad():
        layer.parameter("U.f").zero_()
        layer.parameter("U.g")[0, 0] = torch.nan
    rows = {row.matrix: row for row in spectra(layer)}
    assert rows["U.f"].condition == float("inf")
    assert np.isnan(rows["U.g"].norm)


def test_a_convolution_is_what_it_does_to_a_plane():
    layer = cw.nn.ConvRecurrent("lstm", 1, 3, kernel_size=3)
    row = spectra(layer)[0]
    plane = layer.parameter("U.i").detach().sum((2, 3))
    assert (row.radius, row.norm, row.condition) == pytest.approx(by_numpy(plane), rel=1e-5)


def test_the_table_shows_every_row():
    layer = cw.nn.Recurrent("gru", 2, 4, init="orthogonal")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table(spectra(layer)))
    lines = captured.get().splitlines()
    assert len(lines) == 1 + 3
    assert "radius" in lines[0]
    assert "U.r" in lines[1]
    assert lines[1].split()[-2:] == ["1", "1"]  # norm and condition of an orthogonal matrix
