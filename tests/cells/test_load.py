"""Finding a cell: by name, by file, and what is said where there is none."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap

import pytest

import cellwright as cw

LEAKY = """
    import cellwright as cw

    @cw.cell(state="h")
    def leaky(x, h, W, U, a):
        \"\"\"Leaky integrator. Jaeger 2001.\"\"\"
        h = cw.sigmoid(a) * h + cw.tanh(W @ x + U @ h)
        return cw.next_state(h=h)
"""
TWO = (
    LEAKY
    + """
    @cw.cell(state="h")
    def plain(x, h, W, U):
        return cw.next_state(h=cw.tanh(W @ x + U @ h))

    half = 0.5
"""
)


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def test_names_are_new_each_time():
    cw.cells.names().clear()
    assert cw.cells.names()


def test_get_and_load_give_the_same_cell():
    for name in cw.cells.names():
        assert cw.cells.load(name) is cw.cells.get(name)


def test_catalogue_cells_can_be_pickled():
    for name in cw.cells.names():
        spec = cw.cells.get(name)
        assert pickle.loads(pickle.dumps(spec)) is spec


@pytest.mark.parametrize("name", ["lstn", "LSTM", "peephole"])
def test_an_unknown_name_is_answered_with_near_ones(name):
    with pytest.raises(cw.UsageError, match=f"{name!r}.*did you mean .*lstm"):
        cw.cells.get(name)
    with pytest.raises(cw.UsageError, match=r"did you mean .*lstm.*path/to/file.py:cell_name"):
        cw.cells.load(name)


def test_a_name_with_nothing_near_lists_the_catalogue():
    with pytest.raises(cw.UsageError, match=r"the catalogue has elman, .*lstm_projection"):
        cw.cells.get("qqqqqq")


@pytest.mark.parametrize("name", [None, 3, ["lstm"]])
def test_a_name_that_is_not_text(name):
    with pytest.raises(cw.UsageError):
        cw.cells.get(name)
    with pytest.raises(cw.UsageError, match=r"path/to/file.py:cell_name"):
        cw.cells.load(name)


def test_a_cell_from_a_file(write):
    path = write(TWO)
    spec = cw.cells.load(f"{path}:leaky")
    assert (spec.name, spec.title, spec.year) == ("leaky", "Leaky integrator", 2001)
    assert cw.cells.load(f"{path}:leaky") is spec
    assert pickle.loads(pickle.dumps(spec)) is spec


def test_a_cell_from_a_file_comes_back_in_another_process(write):
    spec = cw.cells.load(f"{write(TWO)}:leaky")
    script = f"""
        import pickle
        spec = pickle.loads({pickle.dumps(spec)!r})
        assert spec.fingerprint == {spec.fingerprint!r}
        assert pickle.loads(pickle.dumps(spec)) is spec
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_a_cell_whose_file_is_gone_says_so(write):
    path = write(LEAKY)
    content = pickle.dumps(cw.cells.load(f"{path}:leaky"))
    path.unlink()
    script = f"""
        import pickle
        import cellwright as cw
        try:
            pickle.loads({content!r})
        except cw.UsageError as error:
            assert "mine.py" in str(error)
        else:
            raise AssertionError("it was found")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_a_file_with_one_cell_needs_no_name(write):
    path = write(LEAKY)
    assert cw.cells.load(path).name == "leaky"
    assert cw.cells.load(str(path)) is cw.cells.load(path)


def test_a_path_from_here(write, monkeypatch):
    path = write(LEAKY)
    monkeypatch.chdir(path.parent)
    assert cw.cells.load("mine.py:leaky") is cw.cells.load(f"{path}:leaky")


def test_files_of_one_name_do_not_meet(write, tmp_path):
    (tmp_path / "other").mkdir()
    first = cw.cells.load(f"{write(LEAKY)}:leaky")
    second = cw.cells.load(f"{write(LEAKY, 'other/mine.py')}:leaky")
    assert first is not second
    assert pickle.loads(pickle.dumps(first)) is first


def test_a_changed_file_is_run_again(write):
    path = write(LEAKY)
    before = cw.cells.load(f"{path}:leaky")
    write(LEAKY.replace("cw.tanh", "cw.relu"))
    after = cw.cells.load(f"{path}:leaky")
    assert "tanh" in before.equations()
    assert "relu" in after.equations()


def test_a_missing_file(tmp_path):
    with pytest.raises(cw.UsageError, match=r"no file .*gone.py"):
        cw.cells.load(f"{tmp_path / 'gone.py'}:leaky")


def test_a_folder(tmp_path):
    with pytest.raises(cw.UsageError, match="not a file"):
        cw.cells.load(f"{tmp_path}:leaky")


def test_a_cell_that_is_not_in_the_file(write):
    found = "'other' in .*mine.py; cells in the file: leaky, plain"
    with pytest.raises(cw.UsageError, match=found):
        cw.cells.load(f"{write(TWO)}:other")


def test_a_thing_that_is_not_a_cell(write):
    with pytest.raises(cw.UsageError, match=r"'half' in .*mine.py is a float, not a cell; .*@cell"):
        cw.cells.load(f"{write(TWO)}:half")


def test_a_file_with_two_cells_needs_a_name(write):
    with pytest.raises(cw.UsageError, match=r"which cell of .*leaky, plain"):
        cw.cells.load(write(TWO))


def test_a_file_without_cells(write):
    with pytest.raises(cw.UsageError, match="cells in the file: none"):
        cw.cells.load(write("half = 0.5\n"))


@pytest.mark.parametrize("name", ["", "two words", "a.b"])
def test_a_name_that_cannot_be_one(write, name):
    with pytest.raises(cw.UsageError, match="does not name a cell"):
        cw.cells.load(f"{write(LEAKY)}:{name}")


def test_a_syntax_error_is_reported_with_its_line(write):
    path = write("import cellwright as cw\n\ndef broken(:\n    pass\n")
    with pytest.raises(cw.CellError, match=r"mine\.py:3: SyntaxError: "):
        cw.cells.load(f"{path}:broken")


def test_an_exception_in_the_file_is_reported_with_its_line(write):
    path = write("import cellwright as cw\n\nnothing.here\n")
    found = r"mine\.py:3: running the file raised NameError"
    with pytest.raises(cw.CellError, match=found) as info:
        cw.cells.load(f"{path}:leaky")
    assert isinstance(info.value.__cause__, NameError)


def test_a_wrong_equation_keeps_its_own_message(write):
    path = write(LEAKY.replace("W @ x", "x * h"))
    with pytest.raises(cw.CellError, match=r"mine\.py:7: x may enter a cell only through @"):
        cw.cells.load(f"{path}:leaky")


def test_a_file_that_fails_leaves_no_module_behind(write):
    path = write("raise ValueError('no')\n")
    before = set(sys.modules)
    with pytest.raises(cw.CellError):
        cw.cells.load(f"{path}:leaky")
    assert set(sys.modules) == before


def test_a_file_that_breaks_later_keeps_the_cells_that_were_loaded(write):
    path = write(LEAKY)
    spec = cw.cells.load(f"{path}:leaky")
    write("raise ValueError('no')\n")
    with pytest.raises(cw.CellError):
        cw.cells.load(f"{path}:leaky")
    assert pickle.loads(pickle.dumps(spec)) is spec


def test_the_catalogue_needs_no_torch_and_imports_one_family_at_a_time():
    script = """
        import sys
        import cellwright as cw
        cw.cells.names()
        families = [m for m in sys.modules if m.startswith("cellwright.cells.")]
        assert families == [], families
        cw.cells.get("gru")
        families = [m for m in sys.modules if m.startswith("cellwright.cells.")]
        assert families == ["cellwright.cells.gru"], families
        for name in cw.cells.names():
            cw.cells.get(name).latex()
        assert "torch" not in sys.modules
        assert "numpy" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
