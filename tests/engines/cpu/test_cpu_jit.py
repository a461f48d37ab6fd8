"""Compiled code is kept, in memory and on disk, and only ever used for what it was made from."""

import ctypes
import json
import os
import subprocess
import sys
import warnings

import llvmlite
import pytest
from llvmlite import ir

from cellwright.engines.cpu import jit
from cellwright.errors import EngineError


def text_of(number):
    """A module whose function ``answer`` returns a number."""
    module = ir.Module("answers")
    function = ir.Function(module, ir.FunctionType(ir.IntType(64), []), "answer")
    ir.IRBuilder(function.append_basic_block()).ret(ir.Constant(ir.IntType(64), number))
    return str(module)


def answer(number, limit=None):
    """Compile the module, or fetch it, and call its function."""
    code = jit.compile_ir(text_of(number), limit)
    return ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("answer"))()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, on disk and in memory, in which nothing has been warned of."""
    monkeypatch.setenv("CELLWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_memory", {})
    monkeypatch.setattr(jit, "_warned", False)
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    """What is compiled from now on."""
    seen = []
    original = jit.optimise

    def optimise(text, wanted):
        seen.append(text)
        return original(text, wanted)

    monkeypatch.setattr(jit, "optimise", optimise)
    return seen


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(jit, "_memory", {})
    monkeypatch.setattr(jit, "_warned", False)


def the_file(folder):
    (found,) = folder.iterdir()
    return found


# --- what is kept ------------------------------------------------------------------------------


def test_compiled_once_and_read_afterwards(folder, compilations, monkeypatch):
    assert answer(17) == 17
    assert answer(17) == 17
    assert len(compilations) == 1, "from memory"
    forget(monkeypatch)
    assert answer(17) == 17
    assert len(compilations) == 1, "from disk"
    the_file(folder).unlink()
    forget(monkeypatch)
    assert answer(17) == 17
    assert len(compilations) == 2, "neither"


def test_the_key_depends_on_the_code(folder, compilations):
    assert [answer(1), answer(2), answer(1)] == [1, 2, 1]
    assert len(compilations) == 2
    assert len(list(folder.iterdir())) == 2


def test_the_key_depends_on_the_target(folder, compilations):
    answer(3, "")
    answer(3, jit.AVX2)
    assert jit.target("").features != jit.target(jit.AVX2).features
    assert len(compilations) == len(list(folder.iterdir())) == 2


def test_the_key_depends_on_versions(folder, compilations, monkeypatch):
    answer(4)
    forget(monkeypatch)
    monkeypatch.setattr(llvmlite, "__version__", "0.0.1")
    answer(4)
    assert len(compilations) == len(list(folder.iterdir())) == 2


def test_the_limit_is_read_at_every_call(monkeypatch):
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "avx2")
    assert jit.features_limit() == jit.AVX2
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "")
    assert jit.features_limit() == ""
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "sse9")
    with pytest.raises(EngineError, match="sse9"):
        jit.features_limit()


def test_a_limited_target_has_fewer_features():
    def enabled(target):
        return {each for each in target.features.split(",") if each.startswith("+")}

    wide, narrow = enabled(jit.target("")), enabled(jit.target(jit.AVX2))
    assert narrow <= wide | {"+prefer-256-bit"}
    assert not any("avx512" in each for each in narrow)
    assert jit.target(jit.AVX2).width == 32


# --- what goes wrong with files ----------------------------------------------------------------


def flipped(content, place):
    """One bit changed."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one bit": lambda content: flipped(content, len(content) - 200),
    "one bit of the checksum": lambda content: flipped(content, 25),
    "something else": lambda content: b"PK\x03\x04" + b"x" * 3000,
    "another format": lambda content: content.replace(b"kernel 1", b"kernel 0", 1),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(damage, folder, compilations, monkeypatch):
    answer(5)
    file = the_file(folder)
    content = file.read_bytes()
    damaged = DAMAGE[damage](content)
    assert damaged != content
    file.write_bytes(damaged)
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert answer(5) == 5
    assert len(caught) == 1
    assert len(compilations) == 2
    forget(monkeypatch)
    assert answer(5) == 5
    assert len(compilations) == 2, "the file is whole again"
    assert the_file(folder).read_bytes() == content


def test_one_warning_is_enough(folder, monkeypatch):
    for number in (6, 7, 8):
        answer(number)
    for file in folder.iterdir():
        file.write_bytes(b"")
    forget(monkeypatch)
    with pytest.warns(UserWarning) as caught:
        assert [answer(number) for number in (6, 7, 8)] == [6, 7, 8]
    assert len(caught) == 1


def test_a_folder_that_cannot_be_written(tmp_path, folder, compilations, monkeypatch):
    """A file stands where the folder should be: that stops the superuser too."""
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept on disk") as caught:
        assert [answer(9), answer(10), answer(9)] == [9, 10, 9]
    assert len(caught) == 1
    assert len(compilations) == 2, "memory keeps them still"
    assert (tmp_path / "cache").read_text() == "in the way"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0,
                    reason="the superuser may write anywhere")  # fmt: skip
def test_a_folder_without_permission(folder, compilations):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    try:
        with pytest.warns(UserWarning, match="cannot be written") as caught:
            assert [answer(11), answer(12)] == [11, 12]
    finally:
        folder.chmod(0o700)
    assert len(caught) == 1


def test_a_folder_in_the_place_of_a_file(folder, compilations):
    """Nothing half written stays behind."""
    answer(13)
    file = the_file(folder)
    file.unlink()
    file.mkdir()
    jit._memory.clear()
    with pytest.warns(UserWarning) as caught:
        assert answer(13) == 13
    assert len(caught) == 1
    assert [each.name for each in folder.iterdir()] == [file.name]


def test_a_disk_that_is_full(folder, monkeypatch):
    """Nothing half written stays behind, and nothing of it is ever read."""
    original = jit.tempfile.NamedTemporaryFile

    def too_small(*arguments, **options):
        file = original(*arguments, **options)

        def write(content):
            file.file.write(content[:100])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(file, "write", write, raising=False)
        return file

    with monkeypatch.context() as patch:
        patch.setattr(jit.tempfile, "NamedTemporaryFile", too_small)
        with pytest.warns(UserWarning, match="No space left") as caught:
            assert answer(14) == 14
        assert len(caught) == 1
    assert list(folder.iterdir()) == []


def test_a_file_appears_whole(folder, monkeypatch):
    """It is written beside its place and then put there, in one step."""
    seen = []
    original = os.replace

    def replace(source, target):
        seen.append((os.path.dirname(source), os.path.exists(target), os.path.getsize(source)))
        original(source, target)

    monkeypatch.setattr(jit.os, "replace", replace)
    answer(15)
    file = the_file(folder)
    assert seen == [(str(folder), False, file.stat().st_size)]


# --- where it is kept --------------------------------------------------------------------------


def test_no_cache_if_the_variable_is_empty(tmp_path, folder, compilations, monkeypatch):
    monkeypatch.setenv("CELLWRIGHT_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    assert jit.cache_folder() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(16) == 16
        forget(monkeypatch)
        assert answer(16) == 16
    assert len(compilations) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_users_cache_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.delenv("CELLWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit.cache_folder() == tmp_path / "cellwright" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit.cache_folder() == tmp_path / ".cache" / "cellwright" / "kernels"


# --- several processes -------------------------------------------------------------------------

LAYER = """
import hashlib, json
import torch
import cellwright as cw
from cellwright.engines.cpu import jit

torch.set_num_threads(1)
compiled = []
original = jit.optimise
jit.optimise = lambda *given: compiled.append(1) or original(*given)
torch.manual_seed(0)
layer = cw.nn.Recurrent("gru", 3, 5)
x = torch.randn(4, 2, 3, requires_grad=True)
y, state = layer(x)
y.square().sum().backward()
with torch.no_grad():
    layer(x)
found = [y, x.grad, *(p.grad for p in layer.parameters())]
digest = hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in found)).hexdigest()
engine = cw.explain(layer, x).engine
print(json.dumps({"compiled": len(compiled), "digest": digest, "engine": engine}))
"""


def start_process(cache):
    environment = {
        **os.environ, "CELLWRIGHT_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", LAYER], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def result_of(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def test_processes_share_the_cache(tmp_path):
    """Two begin together with nothing; a third compiles nothing, and computes the same."""
    together = [start_process(tmp_path / "cache") for _ in range(2)]
    first = [result_of(process) for process in together]
    files = sorted((tmp_path / "cache" / "kernels").iterdir())
    assert all(found["engine"] == "cpu" for found in first)
    assert sum(found["compiled"] for found in first) >= len(files) > 3
    third = result_of(start_process(tmp_path / "cache"))
    assert third["compiled"] == 0
    assert {found["digest"] for found in (*first, third)} == {third["digest"]}
    assert sorted((tmp_path / "cache" / "kernels").iterdir()) == files, "nothing else was left"
    for file in files:
        assert len(file.name) == 64, file.name
