"""``cellwright cells``, ``tasks`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cellwright as cw
from cellwright.errors import EngineError


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


PARTS = ["forward: the loop over time", "backward: the loop over time", "backward: inputs"]


@pytest.mark.parametrize(("form", "mark"), [("--llvm", "; "), ("--asm", "# ")])
def test_loops_as_llvm_ir_and_assembler(call, form, mark):
    out = call("cells", "gru", "--input-size", 3, "--hidden-size", 5, form).out
    heads = [line for line in out.splitlines() if line.startswith(f"{mark}gru, ")]
    assert len(heads) == len(PARTS)
    for line, part in zip(heads, PARTS, strict=True):
        assert line.startswith(f"{mark}gru, {part}")
    assert out.count("define void @run(") == (3 if form == "--llvm" else 0)
    assert out.count("\nrun:\n") == (3 if form == "--asm" else 0)
    assert "parameter.b.z" in out  # among the arguments


def test_loops_as_triton_source(call):
    out = call("cells", "gru", "--input-size", 3, "--hidden-size", 5, "--triton").out
    assert out.startswith("# gru, forward loop; form resident")
    assert "# gru, backward loop; form resident" in out
    assert out.count("@kernel") == 2
    assert "at_parameter_U_n" in out


def test_loops_depend_on_the_sizes(call):
    arguments = ("cells", "lstm_projection", "--hidden-size", 6, "--llvm")
    half, named, other = (
        call(*arguments, *more).out
        for more in ((), ("--size", "projection=3"), ("--size", "projection=2"))
    )
    assert half == named != other


def test_loops_of_a_cell_of_one_s_own(call):
    cell = f"{Path(__file__).parents[2] / 'examples' / 'my_cell.py'}:calm_gru"
    out = call("cells", cell, "--input-size", 3, "--hidden-size", 5, "--llvm").out
    assert out.startswith("; calm_gru, forward: ")


def test_a_recurrence_that_the_cpu_engine_cannot_run_has_no_listing(monkeypatch):
    from cellwright.engines.cpu import CpuEngine, listing

    monkeypatch.setattr(CpuEngine, "objection", lambda *given: "it is made of brass")
    layer = cw.nn.Recurrent("gru", 3, 4)
    signature = layer.signature(0, lengths=False, reset=False, trace=False)
    with pytest.raises(EngineError, match="cannot run cell gru: it is made of brass"):
        listing(signature, assembly=True)


def test_loops_of_a_convolution_are_those_between_torchs():
    from cellwright.engines.cpu import listing

    layer = cw.nn.ConvRecurrent("gru_v1", 3, 4)
    signature = layer.signature(0, lengths=False, reset=False, trace=False)
    text = listing(signature, assembly=False)
    for title in ("forward: a step, part 1 of 2", "forward: a step, part 2 of 2"):
        assert f"; gru_v1, {title}\n" in text
    assert "cellwright_micro" not in text


def test_other_sizes(call, refused):
    out = call("cells", "lstm_projection", "--size", "projection=7").out
    assert "projection size 7" in out
    refused("no size is named 'depth'; there are projection", "cells", "--size", "depth=3")
    refused("no size is named 'depth'; there are no other", "cells", "gru", "--size", "depth=3")
    refused("projection has to be at least 1", "cells", "--size", "projection=0")


def test_wrong_names(refused, tmp_path):
    refused("no cell is named 'lsmt' in the catalogue; did you mean", "cells", "lsmt")
    layer = "is a layer over it, such as cw.nn.ConvRecurrent('peephole_lstm', ...); did you mean "
    for name, near in (("conv_lstm", "lstm, "), ("ConvLSTM2d", "lstm, "), ("conv-gru", "gru, ")):
        refused(layer + near, "cells", name)
    refused("--latex: say of which cell", "cells", "--latex")
    refused("--asm: say of which cell", "cells", "--asm")
    refused("--latex and --plan exclude each other", "cells", "gru", "--latex", "--plan")
    refused("--plan and --llvm exclude each other", "cells", "gru", "--llvm", "--plan")
    refused("no size is named 'depth'", "cells", "gru", "--llvm", "--size", "depth=3")
    refused("Invalid value for '--hidden-size'", "cells", "--hidden-size", 0)
    (tmp_path / "mine.py").write_text("1 +")
    refused("mine.py", "cells", "mine.py:cell")


def test_tasks(call):
    out = call("tasks").out
    assert "japanese-vowels     Which of nine speakers" in out
    out = call("tasks", "japanese-vowels").out
    assert "Published: ResNet: accuracy 99.2% (Ismail Fawaz" in out
    assert "Licence of the data: CC BY 4.0" in out
    assert "Settings of its own: noise 0.5" in out


def test_doctor(call, monkeypatch):
    monkeypatch.setenv("CELLWRIGHT_DATA", "/nowhere/at/all")
    out = call("doctor").out
    assert f"cellwright {cw.__version__}" in out
    assert "engines: " in out
    assert "270 training and 370 test series" in out
    assert "7494 training and 3498 test series" in out
    assert "data of jsb-chorales: " in out
    assert "CELLWRIGHT_DATA: /nowhere/at/all, which is not a folder" in out


def test_doctor_tells_what_the_cpu_engine_compiles(call, monkeypatch, tmp_path):
    monkeypatch.setenv("CELLWRIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("CELLWRIGHT_CPU_FEATURES", raising=False)
    threads = torch.get_num_threads()
    out = call("doctor").out
    assert f"-bit vectors, all features, {threads} thread" in out
    assert f"compiled kernels: {tmp_path / 'kernels'}, 0 files, 0.0 MiB" in out
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a").write_bytes(bytes(3 << 20))
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "avx2")
    out = call("doctor").out
    assert "cpu engine: 256-bit vectors, avx2 at most (CELLWRIGHT_CPU_FEATURES), " in out
    assert f"compiled kernels: {tmp_path / 'kernels'}, 1 file, 3.0 MiB" in out


def test_doctor_tells_what_is_wrong_with_the_cpu_engine(call, monkeypatch, tmp_path):
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "mmx")
    monkeypatch.setenv("CELLWRIGHT_CACHE", "")
    out = call("doctor").out
    assert "cpu engine: cannot be used: CELLWRIGHT_CPU_FEATURES: expected nothing or 'avx2'" in out
    assert "compiled kernels: not kept on disk, for CELLWRIGHT_CACHE is empty" in out
    monkeypatch.setenv("CELLWRIGHT_CACHE", str(tmp_path))
    (tmp_path / "kernels").write_text("")
    assert f"{tmp_path / 'kernels'}, cannot be read: " in call("doctor").out


def test_version(call):
    assert call("--version").out.strip() == f"cellwright {cw.__version__}"
