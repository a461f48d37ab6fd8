"""The benchmark's script, at tiny sizes: with a GPU there, and in the interpreter without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_script_checks_and_times_every_case(tmp_path):
    done = run("--smoke", "--output", tmp_path, CELLWRIGHT_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text("utf-8"))["cases"]
    assert len(found) == 10
    for each in found:
        assert each["times"]["ours"]["median_ms"] > 0
        assert {"output", "x"} < set(each["errors"])
        assert each["engine"] == "gpu"
        assert each["floors_ms"]["arithmetic"] > 0
    assert "cuDNN" in next(e for e in found if e["case"].startswith("population"))["times"]
    assert "cuDNN, padded" in next(e for e in found if e["case"].startswith("resets"))["times"]
    assert (tmp_path / "times.png").stat().st_size > 0
    assert "| dense: gru" in (tmp_path / "results.md").read_text("utf-8")


def test_a_layer_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    import importlib.util

    import torch

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "LIMIT", dict.fromkeys(script.LIMIT, 0.0))
    (case, *_) = [each for each in script.cases(True) if each.cell == "gru"]
    limits = script.Limits({torch.float32: 1.0}, 1.0)
    (found,) = script.measure(case, torch.device("cpu"), limits, True, float("inf"))
    assert "times" not in found
    assert found["wrong"]
    script._write(tmp_path, "none", limits, [found])
    assert "wrong:" in (tmp_path / "results.md").read_text("utf-8")
