"""The house around the code: a light import, one version, examples that run, no stray paths."""

import doctest
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch

import cellwright

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"


# --- importing ---------------------------------------------------------------------------------

IMPORT_PROBE = """
import json, os, sys
import torch
modules, environment, threads = set(sys.modules), dict(os.environ), torch.get_num_threads()
import cellwright
import cellwright.nn
print(json.dumps({
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - modules}),
    "environment": dict(os.environ) == environment,
    "threads": torch.get_num_threads() == threads,
}))
"""

HEAVY = """
cma gymnasium lightning llvmlite matplotlib pandas pooch pytorch_lightning rich soundfile
tensorboard triton typer yaml
"""


@pytest.fixture(scope="module")
def import_effects() -> dict:
    """What importing the library and its layers adds to a process that has imported torch."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_PROBE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_nothing_heavy(import_effects):
    heavy = set(HEAVY.split())
    assert not heavy.intersection(import_effects["loaded"])


def test_import_changes_nothing(import_effects):
    assert import_effects["environment"], "import cellwright changed os.environ"
    assert import_effects["threads"], "import cellwright changed torch's number of threads"


# --- version and files -------------------------------------------------------------------------


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert cellwright.__version__ == project["version"]


def test_version_is_that_of_the_installed_package():
    try:
        installed = metadata.version("cellwright")
    except metadata.PackageNotFoundError:
        pytest.skip("cellwright runs from its sources and is not installed")
    assert cellwright.__version__ == installed


def test_package_is_typed():
    assert (Path(cellwright.__file__).parent / "py.typed").is_file()


def test_no_file_names_a_path_of_one_machine():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of the repository's files")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    folders = "Users|home|mnt|opt|private|root|tmp|work"
    local = re.compile(rf"(?<![\w.~*)}}\]-])/(?:{folders})/\w|\b[A-Z]:\\Users|file:/{{3}}")
    found = []
    for name in filter(None, listing.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content:
            continue
        lines = content.decode("utf-8", "replace").splitlines()
        found += [f"{name}:{n}: {line}" for n, line in enumerate(lines, 1) if local.search(line)]
    assert not found, "\n".join(found)


def test_fresh_memory_is_poisoned():
    assert torch.empty(5).isnan().all()
    assert torch.ones(2).new_empty(3, 2).isnan().all()
    assert (torch.empty(5, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


@pytest.mark.unpoisoned("checks the marker itself")
def test_poison_can_be_left_out():
    assert torch.get_deterministic_debug_mode() == 0


# --- examples ----------------------------------------------------------------------------------

FENCE = re.compile(
    r"^(?P<indent> *)```python(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```", re.M | re.S
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path: Path) -> str:
    """Name a test after the file it runs."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_examples_run(page, tmp_path, monkeypatch):
    """Run the ```python blocks of a page in order, in one namespace, in an empty folder.

    A block opened with ```python notest is left out.
    """
    text = page.read_text("utf-8")
    module = types.ModuleType("examples_of_a_page")
    module.__file__ = str(page)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    for block in FENCE.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        info = block["info"].strip()
        assert info in ("", "notest"), f"{page.name}:{line}: ```python {info}: only notest is known"
        if info == "notest":
            continue
        code = re.sub(f"^{block['indent']}", "", block["code"], flags=re.M)
        # Empty lines in front: a traceback, and a cell's error, name the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)


MODULES = [
    path for path in sorted(SOURCES.glob("cellwright/**/*.py")) if ">>>" in path.read_text("utf-8")
]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstring_examples_run(path, tmp_path, monkeypatch):
    """Run the >>> examples of a module's docstrings, in an empty folder."""
    if "gpu" in path.parts:
        pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples: see the output"
