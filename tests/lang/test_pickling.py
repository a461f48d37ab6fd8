"""Cells are pickled by reference, and their fingerprints are the same in every process."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap

import pytest

import cellwright as cw
from cellwright import CellError
from cellwright.lang import next_state, tanh


@cw.cell(state="h")
def at_the_top(x, h, W):
    return next_state(h=tanh(W @ x + h))


class Holder:
    @staticmethod
    @cw.cell(state="h")
    def in_a_class(x, h, W):
        return next_state(h=tanh(W @ x - h))


OWN_FILE = """
from cellwright.lang import cell, next_state, tanh

@cell(state="h")
def of_my_own(x, h, W, U):
    return next_state(h=tanh(W @ x + U @ h))
"""


def run(code, folder, seed="0"):
    """Run code in a fresh process; its last line of output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_cells_of_the_catalogue_come_back_as_themselves(protocol):
    for name in cw.cells.names():
        spec = cw.cells.get(name)
        assert pickle.loads(pickle.dumps(spec, protocol)) is spec


def test_a_cell_at_the_top_of_a_module_and_one_in_a_class():
    assert pickle.loads(pickle.dumps(at_the_top)) is at_the_top
    assert pickle.loads(pickle.dumps([Holder.in_a_class]))[0] is Holder.in_a_class


def test_a_cell_in_a_file_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_own_cells.py").write_text(OWN_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_own_cells

    spec = my_own_cells.of_my_own
    content = pickle.dumps(spec)
    assert pickle.loads(content) is spec
    code = f"""
        import pickle
        spec = pickle.loads({content!r})
        print(spec.name, spec.fingerprint)
    """
    # Another process has to find the module, as for every pickle.
    assert run(code, tmp_path) == f"of_my_own {spec.fingerprint}"


def test_a_cell_of_a_script(tmp_path):
    code = (
        OWN_FILE
        + "import pickle\nspec = pickle.loads(pickle.dumps(of_my_own))\nprint(spec is of_my_own)\n"
    )
    assert run(code, tmp_path) == "True"


def test_a_cell_inside_a_function_says_why_it_cannot_be_pickled():
    @cw.cell(state="h")
    def local(x, h, W):
        return next_state(h=tanh(W @ x + h))

    with pytest.raises(CellError) as caught:
        pickle.dumps(local)
    for word in ("local", "pickled", "module"):
        assert word in str(caught.value)


def test_a_cell_that_was_replaced_says_so():
    namespace = {"__name__": __name__}
    source = "@cell(state='h')\ndef at_the_top(x, h, W):\n    return next_state(h=W @ x + h)\n"
    exec(source, {"cell": cw.cell, "next_state": next_state} | namespace, namespace)
    with pytest.raises(CellError, match="at_the_top"):
        pickle.dumps(namespace["at_the_top"])


def test_copies_are_the_cell_itself():
    assert copy.copy(at_the_top) is at_the_top
    assert copy.deepcopy({"cell": at_the_top})["cell"] is at_the_top


def test_fingerprints_tell_cells_apart():
    prints = {}
    for name in cw.cells.names():
        spec = cw.cells.get(name)
        assert spec.fingerprint not in prints, (name, prints[spec.fingerprint])
        prints[spec.fingerprint] = name


def test_fingerprints_are_the_same_in_every_process(tmp_path):
    code = """
        import cellwright as cw
        print(*(cw.cells.get(name).fingerprint for name in cw.cells.names()))
    """
    here = " ".join(cw.cells.get(name).fingerprint for name in cw.cells.names())
    assert run(code, tmp_path, seed="1") == here
    assert run(code, tmp_path, seed="2") == here


def test_a_fingerprint_changes_with_the_equations():
    def make(factor, watched):
        @cw.cell(state="h")
        def mine(x, h, W):
            h = tanh(W @ x + factor * h)
            return next_state(h=h, watch={watched: h})

        return mine.fingerprint

    same, other_number, other_name = make(2, "a"), make(3, "a"), make(2, "b")
    assert make(2, "a") == same
    assert len({same, other_number, other_name}) == 3
