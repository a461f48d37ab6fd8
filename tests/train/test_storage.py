"""Files without pickle: what is stored comes back, and damage is one clear error."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cellwright.errors import CheckpointError, UsageError
from cellwright.train import storage
from cellwright.train.files import replacing, sweep, write_text

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
tensors = st.sampled_from([
    torch.arange(6.0).reshape(2, 3),
    torch.tensor(7),
    torch.zeros(0),
    torch.tensor([True, False]),
    torch.arange(6.0).reshape(2, 3).T,
    torch.tensor([1.5], dtype=torch.bfloat16),
])  # fmt: skip
trees = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=12,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(trees)
def test_any_state_comes_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    storage.save(path, "state", tree)
    assert same(storage.load(path, "state"), tree)


def test_equal_states_give_equal_bytes(tmp_path):
    state = {"a": torch.ones(3), "b": [1, 2.5, None], "c": {0: torch.zeros(2)}}
    for name in "xyz":
        storage.save(tmp_path / name, "state", state)
    assert len({(tmp_path / name).read_bytes() for name in "xyz"}) == 1


def test_a_file_is_plain_safetensors_with_telling_names(tmp_path):
    path = tmp_path / "state"
    storage.save(path, "state", {"model": {"head.weight": torch.ones(2)}, "steps": [torch.ones(1)]})
    assert set(load_file(path)) == {"model.head.weight", "steps.0"}


def test_names_that_would_collide_are_kept_apart(tmp_path):
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    storage.save(tmp_path / "state", "state", state)
    assert same(storage.load(tmp_path / "state", "state"), state)


def refused(path, message):
    with pytest.raises(CheckpointError) as caught:
        storage.load(path, "state")
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "state"
    refused(path, "there is no such file")
    storage.save(path, "state", {"a": torch.arange(100.0)})
    whole = path.read_bytes()
    for size in (0, 4, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "damaged or truncated")
    path.write_bytes(b"x" * 200)
    refused(path, "damaged or truncated")
    save_file({"a": torch.zeros(1)}, path)
    refused(path, "a safetensors file that cellwright did not write")
    storage.save(path, "other", {})
    refused(path, "expected a state, got other")
    head = {"format": "state", "format_version": 1, "content": {"tensor": "nowhere"}}
    save_file({}, path, {"cellwright": json.dumps(head)})
    refused(path, "its content is damaged")
    save_file({}, path, {"cellwright": "{"})
    refused(path, "its content is damaged")
    refused(tmp_path, "cannot be read")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT_VERSION", 7)
        storage.save(path, "state", {})
    refused(path, "its format is version 7, and this cellwright reads versions up to 1")


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "state"
    torch.save({"a": torch.zeros(1)}, path)
    refused(path, "damaged or truncated")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "text")


def test_left_overs_of_a_killed_process_are_swept(tmp_path):
    (tmp_path / ".partial-1-log.csv").write_text("half")
    (tmp_path / "log.csv").write_text("whole")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
