"""Data files: the one that is meant, from the user's folder or the cache, or one clear error."""

from __future__ import annotations

import hashlib

import pytest

from cellwright.errors import DataError
from cellwright.tasks import jsb_chorales
from cellwright.tasks.data_files import DataFile

CONTENT = b"a data file"
FILE = DataFile(
    "set", "file.txt", "https://example.invalid/file.txt", hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("CELLWRIGHT_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "cellwright"


def put(folder, content=CONTENT):
    (folder / "set").mkdir(parents=True)
    (folder / "set" / "file.txt").write_bytes(content)
    return folder / "set" / "file.txt"


def test_a_folder_of_the_user_s_comes_first(tmp_path, monkeypatch, cache):
    put(cache)
    given = put(tmp_path / "data")
    assert FILE.path() == cache / "set" / "file.txt"
    monkeypatch.setenv("CELLWRIGHT_DATA", str(tmp_path / "data"))
    assert FILE.path() == given
    assert FILE.here()


def test_another_file_of_that_name_is_refused(tmp_path, monkeypatch):
    given = put(tmp_path / "data", b"something else")
    monkeypatch.setenv("CELLWRIGHT_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=f"{given}: this is another file"):
        FILE.path()


def test_what_cannot_be_downloaded_says_what_to_do(monkeypatch):
    def fail(*arguments):
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", fail)
    assert not FILE.here()
    with pytest.raises(DataError, match=r"\(no network\); if you have the file, put it into"):
        FILE.path()


def test_chorales(data_dir, monkeypatch):
    monkeypatch.setenv("CELLWRIGHT_DATA", str(data_dir))
    data = jsb_chorales.load()
    assert [len(each) for each in (data.train, data.validation, data.test)] == [229, 76, 77]
    first = data.train.inputs[0]
    assert first[0].nonzero().flatten().tolist() == [60 - 21, 72 - 21, 79 - 21, 88 - 21]
    # Each chord is the target of the one before it.
    assert all(
        (x[1:] == y[:-1]).all() for x, y in zip(data.test.inputs, data.test.targets, strict=True)
    )
    assert sum(len(each) for each in data.test.inputs) == 4725 - 77


def test_damaged_chorales(tmp_path, monkeypatch):
    given = tmp_path / "jsb.json"
    given.write_text('{"train": [[[60, "x"]]]}')
    monkeypatch.setattr(DataFile, "path", lambda self: given)
    with pytest.raises(DataError, match=r"jsb.json: its content is damaged"):
        jsb_chorales.load()
