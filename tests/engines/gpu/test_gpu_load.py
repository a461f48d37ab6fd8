"""Emitted source on disk: kept under its hash, mended, or done without."""

import pytest
from engines.cases import CATALOGUE, Shape, make_call

from cellwright.engines.gpu import GpuEngine, listing, load

TEXT = "NUMBER = 41\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache; nothing is remembered in memory."""
    monkeypatch.setenv("CELLWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "_modules", {})
    return tmp_path / "triton"


def test_a_module_is_kept_under_the_hash_of_its_text(folder):
    assert load.load(TEXT).NUMBER == 41
    (kept,) = folder.glob("*.py")
    assert len(kept.stem.removeprefix("cellwright_kernel_")) == 64
    assert kept.read_text() == TEXT
    assert load.load(TEXT) is load.load(TEXT)


def test_a_damaged_file_is_written_again(folder):
    load.load(TEXT)
    (kept,) = folder.glob("*.py")
    kept.write_text("NUMBER = 42\n")
    load._modules.clear()
    assert load.load(TEXT).NUMBER == 41
    assert kept.read_text() == TEXT


def test_an_empty_setting_keeps_nothing(folder, monkeypatch):
    monkeypatch.setenv("CELLWRIGHT_CACHE", "")
    assert load.load(TEXT).NUMBER == 41
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_told(folder, monkeypatch):
    folder.parent.joinpath("file").write_text("")
    monkeypatch.setenv("CELLWRIGHT_CACHE", str(folder.parent / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert load.load(TEXT).NUMBER == 41


def test_a_whole_call_leaves_source_that_can_be_read(folder):
    call = make_call(CATALOGUE["elman"], None, Shape(2, 1, 2, 3))
    GpuEngine("resident").forward(call, keep=False)
    (kept,) = folder.glob("*.py")
    assert "def walk(" in kept.read_text()


def test_the_listing_shows_both_loops_as_they_are_compiled():
    text = listing(make_call(CATALOGUE["lstm"], None, Shape(2, 1, 2, 3)).signature)
    assert text.count("def walk(") == 2
    assert "interpreted" not in text
    text = listing(make_call(CATALOGUE["gru_v1"], None, Shape(2, 1, 2, 200)).signature)
    assert "def stage1_hidden(" in text
