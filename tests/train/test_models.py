"""A model's file: it comes back as it was, and no other file passes for it."""

from __future__ import annotations

import pytest
import torch

import cellwright as cw
from cellwright.errors import CheckpointError
from cellwright.train import models, storage
from cellwright.train.models import Description, load_model, save_model
from cellwright.train.settings import Settings

OWN = """
import cellwright as cw
from cellwright import tanh

@cw.cell(state=("h",))
def mine(x, h, W, U, b):
    h = tanh(W @ x + U @ h + b)
    return cw.next_state(h=h)
"""


def describe(spec, reference, **changes):
    return Description(
        task="t",
        objective="classification",
        settings=Settings(cell=reference, hidden_size=3, **changes),
        cell=spec.name,
        equations=spec.equations(),
        features=("a", "b"),
        classes=("x", "y"),
        features_by_name=True,
    )


def save(path, reference="gru"):
    spec = cw.cells.load(reference)
    description = describe(spec, reference)
    model = description.build(spec)
    save_model(path, model, description)
    return model, description


def test_a_model_comes_back(tmp_path):
    path = tmp_path / "model.safetensors"
    model, description = save(path)
    found, again = load_model(path)
    assert again == description
    assert not found.training
    x, lengths = torch.randn(4, 2, 2), torch.tensor([4, 2])
    assert torch.equal(model.eval()(x, lengths), found(x, lengths))


def refused(path, message, cell=None):
    with pytest.raises(CheckpointError) as caught:
        load_model(path, cell)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_other_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    refused(path, "there is no such file")
    _, description = save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(path, "damaged or truncated")
    path.write_bytes(whole)
    refused(path, "weights of the cell gru, not of lstm", cell="lstm")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT_VERSION", 2)
        save(path)
    refused(path, "version 2")
    storage.save(path, models.KIND, {"description": {"task": "t"}, "model": {}})
    refused(path, "its description is damaged")
    content = {"description": description.as_dict(), "model": {}}
    storage.save(path, models.KIND, content)
    refused(path, "is missing")


def test_weights_of_other_shapes_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    model, description = save(path)
    weights = dict(model.state_dict())
    content = {"description": description.as_dict(), "model": weights}
    storage.save(path, models.KIND, {**content, "model": {**weights, "more": torch.zeros(1)}})
    refused(path, "the weight 'more' is not of this model")
    weights["head.bias"] = torch.zeros(5)
    storage.save(path, models.KIND, content)
    refused(path, "the weight 'head.bias' has shape (5,), expected (2,)")


def test_a_cell_of_one_s_own_has_to_be_the_one_that_was_trained(tmp_path):
    path, file = tmp_path / "model.safetensors", tmp_path / "mine.py"
    file.write_text(OWN)
    save(path, f"{file}:mine")
    assert load_model(path)[1].cell == "mine"
    moved = file.rename(tmp_path / "moved.py")
    refused(path, "if its file has moved, say where it is with --cell FILE.py:NAME")
    assert load_model(path, f"{moved}:mine")[1].cell == "mine"
    moved.write_text(OWN.replace("tanh(W @ x", "tanh(2 * W @ x").replace("2 * W @ x", "W @ x - b"))
    refused(path, "are not those that were trained, which were:\nh[t] = tanh", f"{moved}:mine")
    moved.write_text(OWN.replace("def mine", "def other"))
    refused(path, "", f"{moved}:mine")
