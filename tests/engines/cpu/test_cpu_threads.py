"""Threads: torch's number of them, several callers at once, forked processes, no OpenMP."""

import ctypes
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engines.cpu.cpu_cases import assert_equal, share_units
from engines.cpu.test_cpu_layers import H, I, make, randn, train
from llvmlite import ir

import cellwright as cw
from cellwright.engines.cpu import jit, sharing, threads
from cellwright.engines.cpu.ops import I64, POINTER
from cellwright.lang import next_state, tanh

ROOM = 64  # numbers that each share of the recorder may write


@pytest.fixture(scope="module")
def recorder():
    """A loop that writes down, at the place of its share or first row, which part it was given."""
    module = ir.Module("recorder")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, *[I64] * 4]), "run")
    b = ir.IRBuilder(function.append_basic_block())
    memory, first, end, share, shares = function.args
    entry = b.mul(b.add(share, first), ir.Constant(I64, 4))
    with b.if_then(b.icmp_signed("<", first, end)):
        for number, value in enumerate((first, end, share, shares)):
            place = b.gep(memory, [b.add(entry, ir.Constant(I64, number))], source_etype=I64)
            b.store(value, place, align=8)
    b.ret_void()
    return jit.compile_ir(str(module))


def parts(recorder, rows, how, team):
    """(first row, end, share, shares) of all who were given any rows."""
    memory = (ctypes.c_int64 * (4 * ROOM))(*[-1] * (4 * ROOM))
    threads.launch(recorder.address("run"), ctypes.addressof(memory), rows, how, team)
    found = [tuple(memory[4 * number : 4 * number + 4]) for number in range(ROOM)]
    return [each for each in found if each != (-1, -1, -1, -1)]


@pytest.fixture(params=["OpenMP", "a pool"])
def library(request, monkeypatch):
    """With torch's OpenMP library, and as if there were none."""
    if request.param == "a pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("GNU's OpenMP library is not in this process")
    return request.param


@pytest.mark.parametrize("rows", [1, 2, 5, 48])
@pytest.mark.parametrize("team", [1, 2, 3])
def test_every_row_and_share_is_somebodys(library, recorder, team, rows):
    by_rows = parts(recorder, rows, threads.ROWS, team)
    assert [each[0] for each in by_rows] == [0, *(each[1] for each in by_rows[:-1])]
    assert by_rows[-1][1] == rows
    assert {each[2:] for each in by_rows} == {(0, 1)}
    sizes = [end - first for first, end, _, _ in by_rows]
    assert max(sizes) - min(sizes) <= 1
    shared = parts(recorder, rows, threads.SHARES, team)
    shares = len(shared)
    assert shared == [(0, rows, share, shares) for share in range(shares)]
    if library == "a pool":  # it may have less room
        team = min(team, (os.cpu_count() or 1) + 1)
    assert shares == team
    assert len(by_rows) == min(team, rows)


def test_torchs_number_is_obeyed(monkeypatch):
    teams = []
    original = threads.launch

    def launch(*given):
        teams.append(given[-1])
        original(*given)

    monkeypatch.setattr(threads, "launch", launch)
    monkeypatch.setattr(sharing, "ALONE_BELOW", 0)
    layer = make("lstm")
    for team in (1, 3, 2):
        torch.set_num_threads(team)
        assert threads.count() == team
        teams.clear()
        train(layer, randn(5, 8, I))
        assert max(teams) == team


def test_a_team_that_is_larger_than_the_machine(library, monkeypatch):
    """torch lets its number be anything; shares wait for each other, and none may be missing."""
    share_units(monkeypatch)
    layer = make("lstm", hidden_size=70)
    x = randn(9, 2, I)
    expected = train(layer, x)
    torch.set_num_threads(2 * (os.cpu_count() or 1) + 1)
    assert_equal(in_time(lambda: train(layer, x)), expected, "many threads")


def in_time(work, seconds=60):
    """The result of ``work``, which has to come; a hang is a failure and not the end of tests."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"no result in {seconds} s"
    return found[0]


def together(count, work):
    """Run ``work(number)`` in as many Python threads, begun at the same time."""
    barrier = threading.Barrier(count)

    def begin(number):
        barrier.wait()
        return work(number)

    def run():
        with ThreadPoolExecutor(count) as pool:
            return [each.result() for each in [pool.submit(begin, n) for n in range(count)]]

    return in_time(run)


@pytest.mark.parametrize("shared", ["batch", "units"])
def test_callers_at_the_same_time(library, shared, monkeypatch):
    """Each has its own working memory and arguments, also of a layer that they share."""
    monkeypatch.setattr(sharing, "ALONE_BELOW", 0)
    if shared == "units":
        share_units(monkeypatch)
    torch.set_num_threads(2)
    layer = make("lstm", hidden_size=33, num_layers=2)
    inputs = [randn(12, 3 + number, I, seed=number) for number in range(4)]

    def forward_and_back(number):
        x = inputs[number].clone().requires_grad_()
        y, state = layer(x)
        (d_x,) = torch.autograd.grad(y.square().sum() + state.c.sum(), [x])
        with torch.no_grad():
            again, _ = layer(x)
        assert torch.equal(again, y)
        return y.detach(), d_x

    expected = [forward_and_back(number) for number in range(4)]
    found = together(4, lambda number: [forward_and_back(number) for _ in range(8)])
    for number, results in enumerate(found):
        for y, d_x in results:
            assert torch.equal(y, expected[number][0])
            assert torch.equal(d_x, expected[number][1])


def test_callers_of_a_cell_that_is_not_compiled_yet():
    @cw.cell(state="h")
    def new_to_all(x, h, W, U):
        return next_state(h=tanh(W @ x + U @ h) + 0.0625 * h)

    layer = make(new_to_all)
    x = randn(5, 3, I)
    found = together(4, lambda _: layer(x)[0].detach())
    with cw.engine("reference"):
        expected, _ = layer(x)
    for each in found:
        assert torch.equal(each, found[0])
        # Sums in another order: 1e-16 each, ten terms, five steps.
        torch.testing.assert_close(each, expected.detach(), rtol=1e-13, atol=1e-13)


def test_callers_that_stream():
    layer = make("gru", hidden_size=40)
    x = randn(20, 2, I)
    expected, _ = layer(x)

    def stream(_):
        state, outputs = layer.initial_state(2), []
        with torch.no_grad():
            for x_t in x:
                y, state = layer.step(x_t, state)
                outputs.append(y)
        return torch.stack(outputs)

    for found in together(4, stream):
        assert torch.equal(found, expected)


# --- forked processes --------------------------------------------------------------------------

START = f"""
import hashlib, os, signal, sys, warnings
import torch
import cellwright as cw

torch.manual_seed(0)
torch.set_num_threads(2)
layer = cw.nn.Recurrent("lstm", {I}, 160)
x = torch.randn(20, 32, {I})

def digest():
    # Nothing of torch's own: its loops wait for ever where its threads are gone.
    layer.zero_grad()
    y, state = layer(x)
    torch.autograd.backward([y, state.c], [y.detach(), state.c.detach()])
    found = [y.detach(), *(p.grad for p in layer.parameters())]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in found)).hexdigest()
"""

FORK = """
def in_a_child():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.write(writing, digest().encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.close(writing)
    assert status == 0, f"the child ended with status {status}"
    return os.read(reading, 100).decode()

early = in_a_child()  # nothing has been compiled, no team used
here = digest()
late = in_a_child()
assert early == here, "a child forked before use computes something else"
assert late == here, "a child forked after use computes something else"
assert digest() == here, "the parent computes something else afterwards"
print("forked")
"""

LOADER = """
class Encoded(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        with torch.no_grad():
            return layer(x[:, index])[0]

if __name__ == "__main__":
    digest()
    expected = [each.clone() for each in Encoded()]
    loader = torch.utils.data.DataLoader(
        Encoded(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    for _ in range(2):
        found = list(loader)
        assert len(found) == 3
        assert all(torch.equal(a, b) for a, b in zip(found, expected)), "other numbers"
    print("loaded")
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def in_a_process(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@needs_fork
def test_forked_children():
    """Inference and training, with gradients large enough for torch to share out their zeros."""
    assert in_a_process(START + FORK) == ["forked"]


@needs_fork
def test_a_worker_of_a_data_loader():
    assert in_a_process(START + LOADER) == ["loaded"]


def test_sizes_of_these_tests_are_shared_out():
    """What the forked child computes is large enough for teams in the parent."""
    torch.set_num_threads(2)
    used = []
    original = threads.launch

    def launch(*given):
        used.append(given[-1])
        original(*given)

    layer = make("lstm", hidden_size=160, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "launch", launch)
        layer(randn(20, 32, I, dtype=torch.float32))
    assert 2 in used
    assert layer.U_l0.numel() > 32768, "from here torch uses several threads"
    assert H < 160
