"""``cellwright cells``, ``tasks`` and ``doctor``."""

from __future__ import annotations

import pytest

import cellwright as cw


def test_cells_lists_all(call):
    out = call("cells", "--input-size", 10, "--hidden-size", 20).out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name in cw.cells.names():
        assert name in rows
    assert "2000" in rows["lstm"]
    assert "i f g o" in rows["lstm"]
    assert rows["lstm"].split()[-1] == "2,480"
    assert "Parameters at input size 10, hidden size 20, projection size 10." in out


@pytest.mark.parametrize("name", cw.cells.names())
def test_a_cell_s_page(call, name):
    spec = cw.cells.get(name)
    out = call("cells", name).out
    assert spec.title in out
    assert spec.source in out
    for line in spec.equations().splitlines():
        assert line in out
    sizes = dict.fromkeys(spec.size_names, 64)
    assert f"{spec.num_parameters(128, 128, **sizes):,}" in out


def test_latex_and_plan(call):
    assert call("cells", "gru", "--latex").out.strip() == cw.cells.get("gru").latex().strip()
    assert "backward of gru" in call("cells", "gru", "--plan").out


def test_other_sizes(call, refused):
    out = call("cells", "lstm_projection", "--size", "projection=7").out
    assert "projection size 7" in out
    refused("no size is named 'depth'; there are projection", "cells", "--size", "depth=3")
    refused("no size is named 'depth'; there are no other", "cells", "gru", "--size", "depth=3")
    refused("projection has to be at least 1", "cells", "--size", "projection=0")


def test_wrong_names(refused, tmp_path):
    refused("no cell is named 'lsmt' in the catalogue; did you mean", "cells", "lsmt")
    refused("--latex: say of which cell", "cells", "--latex")
    refused("exclude each other", "cells", "gru", "--latex", "--plan")
    refused("Invalid value for '--hidden-size'", "cells", "--hidden-size", 0)
    (tmp_path / "mine.py").write_text("1 +")
    refused("mine.py", "cells", "mine.py:cell")


def test_tasks(call):
    out = call("tasks").out
    assert "accuracy 99.2%  ResNet" in out
    assert "CC BY 4.0" in out
    assert "--noise 0.5" in out


def test_doctor(call, monkeypatch):
    monkeypatch.setenv("CELLWRIGHT_DATA", "/nowhere/at/all")
    out = call("doctor").out
    assert f"cellwright {cw.__version__}" in out
    assert "engines: " in out
    assert "270 training and 370 test series" in out
    assert "CELLWRIGHT_DATA: /nowhere/at/all, which is not a folder" in out


def test_version(call):
    assert call("--version").out.strip() == f"cellwright {cw.__version__}"
