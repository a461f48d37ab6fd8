"""``cellwright bench`` and the benchmark of the CPU engine: what they write, never how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cellwright as cw
from cellwright.apps import bench_compile, bench_measure, bench_sides
from cellwright.apps.bench_compile import Readiness
from cellwright.apps.bench_measure import Timing, interleave
from cellwright.apps.bench_peak import Peak
from cellwright.apps.bench_shapes import FULL, Shape, parse_shapes
from cellwright.apps.bench_sides import PythonLoop, Work, multiplications, recurrent

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--shapes", "3,2,4,5", "--seconds", "0.01", "--threads", "1", "--output", "out")
TIMING = {"median_ms", "low_ms", "high_ms", "rounds", "calls_a_round"}


@pytest.fixture
def no_process(monkeypatch):
    """Leave out the processes that measure compile times."""
    both = Readiness(0.5, 0.25, 0.001), Readiness(0.1, 0.02, 0.001)
    monkeypatch.setattr(bench_compile, "measure_compile", lambda *arguments: both)


def check_timing(found: dict) -> None:
    assert found.keys() >= TIMING
    assert 0 < found["low_ms"] <= found["median_ms"] <= found["high_ms"]
    assert found["rounds"] >= bench_measure.FEWEST
    assert found["calls_a_round"] >= 1


def check_sample(found: dict) -> None:
    check_timing(found["ours"])
    check_timing(found["peer"])
    ours, peer = found["ours"]["median_ms"], found["peer"]["median_ms"]
    assert found["ratio"] == pytest.approx(peer / ours)
    assert found["peer_gflops"] == pytest.approx(found["gflops"] / found["ratio"])
    assert found["share_of_peak"] == pytest.approx(found["gflops"] / found["peak_gflops"])
    assert 0 <= found["difference"] <= bench_sides.AGREE


def test_from_the_shapes_to_the_files(call, tmp_path):
    threads = torch.get_num_threads()
    out = call("bench", *TINY, "--shapes", "2,1,3,4").out
    assert torch.get_num_threads() == threads
    assert "Cell lstm; the peer is torch.nn.LSTM" in out
    assert (tmp_path / "out" / "ratios.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert found["format"] == 1
    assert found["machine"]["threads"] == 1
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"].keys() >= {"processor", "python", "llvmlite", "load_average"}
    shapes = [Shape(3, 2, 4, 5).as_dict(), Shape(2, 1, 3, 4).as_dict()]
    assert [(each["shape"], each["mode"]) for each in found["samples"]] == [
        (shape, mode) for shape in shapes for mode in ("train", "infer")
    ]
    for each in found["samples"]:
        assert each["cell"] == "lstm"
        assert each["peer"]["name"] == "torch.nn.LSTM"
        check_sample(each)
    assert [(each["input"], each["hidden"]) for each in found["streaming"]] == [(4, 5), (3, 4)]
    for each in found["streaming"]:
        check_timing(each["ours"])
        assert set(each["peers"]) == {"torch.nn.LSTM, T=1", "torch.nn.LSTMCell"}
        for peer in each["peers"].values():
            check_timing(peer)
            assert peer["ratio"] == pytest.approx(peer["median_ms"] / each["ours"]["median_ms"])
    for cache in ("empty_cache", "disk_cache"):
        assert set(found["compiling"][cache]) == {"start_ms", "ready_ms", "call_ms"}
        assert min(found["compiling"][cache].values()) >= 0


def test_a_cell_that_torch_does_not_have(call, no_process, tmp_path):
    out = call("bench", "lstm_projection", *TINY, "--mode", "infer").out
    assert "the peer is a Python loop" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert [each["mode"] for each in found["samples"]] == ["infer"]
    check_sample(found["samples"][0])
    assert set(found["streaming"][0]["peers"]) == {"Python loop"}


def test_a_cell_of_one_s_own(call, no_process, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import cellwright as cw\n\n"
        "@cw.cell(state='h')\n"
        "def lstm(x, h, W, U):\n"
        "    return cw.next_state(h=cw.tanh(W @ x + U @ h))\n"
    )
    out = call("bench", "mine.py:lstm", *TINY, "--mode", "train").out
    assert "the peer is a Python loop" in out, "torch.nn.LSTM is no peer of another cell"
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert found["streaming"] == []


def test_what_differs_is_not_timed(refused, no_process, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_sides, "AGREE", -1.0)
    refused("of the largest value; no time is measured", "bench", *TINY)
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_earlier_run_is_kept(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("mine")
    refused("--output: out has the results of an earlier run; name another", "bench", *TINY)
    assert (tmp_path / "out" / "results.json").read_text() == "mine"
    (tmp_path / "file").write_text("")
    refused("--output: file/out cannot be made", "bench", *TINY[:-1], "file/out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lsmt",), "no cell is named 'lsmt' in the catalogue; did you mean"),
        (("--mode", "trian"), "--mode: expected train, infer or both, got 'trian'"),
        (("--shapes", "1,2,3"), "--shapes: expected quick, full or T,B,I,H, as 100,16,128,128"),
        (("--shapes", "1,2,3,x"), "got '1,2,3,x'"),
        (("--shapes", "1,2,-3,4"), "got '1,2,-3,4'"),
        (("--shapes", "0,1,1,1"), "--shapes: T, B, I and H have to be at least 1"),
        (("--shapes", " "), "--shapes: expected quick, full or T,B,I,H, got nothing"),
        (("--shapes", "9000000,9000000,1,1"), "--shapes: 9000000,9000000,1,1 needs about"),
        (("--threads", "0"), "--threads: this process may use"),
        (("--threads", "100000"), "--threads: this process may use"),
        (("--threads", "two"), "Invalid value for '--threads'"),
        (("--seconds", "0"), "--seconds: expected a number above 0"),
        (("--seconds", "nan"), "--seconds: expected a number above 0"),
    ],
)
def test_mistakes(refused, tmp_path, arguments, message):
    refused(message, "bench", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_process_for_compile_times_says_why_it_failed(monkeypatch):
    monkeypatch.setattr(bench_compile, "_CHILD", "raise SystemExit('no such thing')")
    with pytest.raises(cw.EngineError, match=r"compile times: .* failed: no such thing"):
        bench_compile.measure_compile("lstm", 1, 1, 1, 1, 1)


def test_shapes():
    assert parse_shapes(["full"]) == list(FULL)
    assert parse_shapes(["2,1,3,4 quick", "2,1,3,4"])[0] == Shape(2, 1, 3, 4)
    assert len(parse_shapes(["quick", "quick"])) == len(parse_shapes(["quick"]))


def test_sides_take_turns():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleave(sides, seconds=1e-9)
    rounds = bench_measure.FEWEST
    assert [timing.rounds for timing in times.values()] == [rounds] * 3
    turn = [name for name in "abc" for _ in range(times[name].calls)]
    assert calls[-rounds * len(turn) :] == turn * rounds


def test_a_timing():
    timing = Timing.of([4.0, 2.0, 6.0, 8.0, 10.0], calls=2)
    assert (timing.low, timing.median, timing.high) == (2.0, 3.0, 4.0)
    assert (timing.rounds, timing.calls) == (5, 2)


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(bench_measure, "processors", lambda: 4)
    assert bench_measure.warning(4, 9.0, 0.01) is None
    assert "other programs took 30% of the processors" in bench_measure.warning(4, 0.0, 0.3)
    assert bench_measure.warning(1, 0.0, 0.3) is None
    assert "the load average was 3.0" in bench_measure.warning(4, 3.0, None)
    assert bench_measure.warning(1, 3.0, None) is None
    assert bench_measure.warning(4, None, None) is None


def test_the_peak_runs_on_every_thread():
    peak = Peak()
    peak()
    numbers = peak._numbers
    assert numbers.shape[0] == torch.get_num_threads()
    # 0.5 s + 0.5, many times over, is 1.
    assert (numbers[:, 2:] == 1.0).all()
    assert (numbers[:, :2] == 0.5).all()


def test_multiplications():
    I, H = 6, 8
    gates = 4 * H * (I + H)
    lstm = recurrent(cw.cells.get("lstm"), I, H)
    assert multiplications(lstm, training=False) == gates
    # Gradients of the weights, and of the states but not of x.
    assert multiplications(lstm, training=True) == 2 * gates + 4 * H * H
    stacked = cw.nn.LSTM(I, H, num_layers=2, bidirectional=True)
    above = 4 * H * (2 * H + H)
    assert multiplications(stacked, training=False) == 2 * (gates + above)
    assert multiplications(stacked, training=True) == 2 * (2 * gates + 4 * H * H + 3 * above)
    # A projection: h has 4 units, the matrix that makes it is 4 x 8.
    projected = recurrent(cw.cells.get("lstm_projection"), I, H)
    assert multiplications(projected, training=False) == 4 * H * (I + 4) + 4 * H


@pytest.mark.parametrize("name", ["elman_relu", "gru", "peephole_lstm", "slstm"])
def test_the_peers_are_peers(name):
    work = Work.of(cw.cells.get(name), Shape(4, 3, 2, 5))
    assert (work.peer_name == "Python loop") == (name not in bench_sides.STANDARD)
    assert work.difference(training=True) <= bench_sides.AGREE


def test_the_python_loop_takes_a_state():
    layer = recurrent(cw.cells.get("lstm"), 2, 3)
    x = torch.randn(5, 2, 2)
    loop = PythonLoop(layer)
    whole, _ = loop(x)
    first, state = loop(x[:2])
    second, _ = loop(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_the_benchmark_script(tmp_path):
    """The parts that need no process of their own, at tiny sizes."""
    done = subprocess.run(
        [
            sys.executable, ROOT / "benchmarks" / "cpu.py", "--small", "--seconds", "0.001",
            "--threads", "1", "--part", "gru,streaming,population,directions,layers",
            "--output", tmp_path,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert list(found["parts"]) == ["gru", "streaming", "population", "directions", "layers"]
    assert found["failed"] == []
    for each in found["parts"]["gru"]:
        check_sample(each)
    assert {each["met"] for each in found["bars"]} == {None}, "tiny sizes are not judged"
    text = (tmp_path / "results.md").read_text("utf-8")
    assert "## GRU against torch.nn.GRU" in text
    assert f"Of {len(found['bars'])} bars: 0 met, 0 missed" in text
