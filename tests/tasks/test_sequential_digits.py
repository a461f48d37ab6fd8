"""Digits in sequence: the files as published, small ones made here, and damaged ones."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from cellwright import tasks
from cellwright.errors import DataError
from cellwright.tasks import runs, sequential_digits
from cellwright.tasks.data_files import DataFile
from cellwright.tasks.sources import Source
from cellwright.tasks.use import evaluate

PEN = "47,100,27,81,57,37,26,0,0,23,56,53,100,90,40,98"


def test_pen_digits_are_the_published_split():
    data = tasks.get("sequential-digits").load()
    assert (len(data.train), len(data.test)) == (7494, 3498)
    for part, least in ((data.train, 719), (data.test, 335)):
        assert part.classes == tuple("0123456789")
        assert min(part.labels.count(each) for each in part.classes) == least
        assert set(part.lengths) == {8}
        values = np.stack(part.values)
        assert (values.min(), values.max()) == (0, 100)
    assert data.train.features == ("x", "y")
    assert data.train.labels[:2] == ("8", "2")
    assert data.train.values[0].tolist()[:2] == [[47, 100], [27, 81]]


def test_nearest_neighbours_are_right_as_often_as_published():
    data = tasks.get("sequential-digits").load()
    one, two = (
        torch.from_numpy(np.stack(each.values)).flatten(1) for each in (data.train, data.test)
    )
    nearest = torch.cdist(two, one).argmin(1)
    right = np.array(data.train.labels)[nearest.numpy()] == np.array(data.test.labels)
    published = tasks.get("sequential-digits").published[0]
    assert published.method == "nearest neighbour"
    assert round(right.mean(), 4) == published.value


def test_the_task_is_learnt_and_measured(tmp_path):
    run = runs.prepare(Source.parse("sequential-digits"), {"epochs": 1}, tmp_path / "run")
    found = runs.execute(run)
    assert found["test_accuracy"] > 0.8
    again, _, name = evaluate(tmp_path / "run")
    assert again.metric == found["test_accuracy"]
    assert name == "the test series of sequential-digits"


@pytest.mark.parametrize(
    "line",
    [
        f"{PEN},8",
        f"{PEN},0000000000",
        f"{PEN},0000000011",
        f"{PEN},00000001000",
        f"{PEN[3:]},0000000010",
        f"101{PEN[2:]},0000000010",
        f"nan{PEN[2:]},0000000010",
        f"-1{PEN[2:]},0000000010",
        "",
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "pendigits.tra"
    path.write_text(f"{PEN},0000000010\n{line}\n{PEN},0000000010\n")
    with pytest.raises(DataError, match=r"tra:2: expected 16 whole numbers from 0 to 100"):
        sequential_digits.read_pen(path)


def idx(values):
    values = np.asarray(values, np.uint8)
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return gzip.compress(head + values.tobytes())


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Twelve and four images of 2 by 3 pixels, in the place of the published ones."""
    random = np.random.default_rng(0)
    values = {}
    (tmp_path / "mnist").mkdir()
    files = []
    for each, count in zip(sequential_digits.MNIST, (12, 12, 4, 4), strict=True):
        shape = (count, 2, 3) if "images" in each.name else (count,)
        values[each.name] = random.integers(0, 256 if len(shape) == 3 else 10, shape)
        content = idx(values[each.name])
        (tmp_path / "mnist" / each.name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files.append(DataFile("mnist", each.name, each.url, digest))
    for name, file in zip(
        ("IMAGES_TRAIN", "LABELS_TRAIN", "IMAGES_TEST", "LABELS_TEST"), files, strict=True
    ):
        monkeypatch.setattr(sequential_digits, name, file)
    monkeypatch.setenv("CELLWRIGHT_DATA", str(tmp_path))
    return list(values.values())


def test_images_are_read_pixel_by_pixel(small_mnist):
    images, labels, tested, tested_labels = small_mnist
    data = tasks.get("sequential-mnist").load()
    assert [len(each) for each in (data.train, data.validation, data.test)] == [11, 1, 4]
    for part, pixels, digits in (
        (data.train, images[:11], labels[:11]),
        (data.validation, images[11:], labels[11:]),
        (data.test, tested, tested_labels),
    ):
        assert part.targets.tolist() == digits.tolist()
        for x, image in zip(part.inputs, pixels, strict=True):
            expected = torch.tensor(image).flatten()[:, None] / 255
            torch.testing.assert_close(x, expected, check_dtype=False)
    permuted = tasks.get("sequential-mnist").load(permuted=True)
    moved = [each[:, 0].tolist() for each in (permuted.train.inputs[0], permuted.test.inputs[0])]
    plain = [each[:, 0].tolist() for each in (data.train.inputs[0], data.test.inputs[0])]
    assert moved != plain
    order = [plain[0].index(value) for value in moved[0]]
    assert sorted(order) == list(range(6))
    assert moved[1] == [plain[1][place] for place in order]


def test_images_are_trained_on(small_mnist, tmp_path):
    changes = {"epochs": 1, "hidden_size": 4, "batch_size": 4}
    source = Source.parse("sequential-mnist", options={"permuted": True})
    found = runs.execute(runs.prepare(source, changes, tmp_path / "run"))
    assert (found["train_series"], found["validation_series"], found["test_series"]) == (11, 1, 4)


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        gzip.compress(b""),
        gzip.compress(b"\0\0\x08\x03\0\0"),
        idx(np.zeros((2, 3))),
        idx(np.zeros((2, 3, 3)))[:-9],
        gzip.compress(gzip.decompress(idx(np.zeros((2, 3, 3))))[:-1]),
        gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(idx(np.zeros((2, 3, 3))))[4:]),
    ],
    # an archive has the time in it: no name for a test
    ids=["no-archive", "empty", "cut-head", "two-axes", "cut-archive", "cut-body", "floats"],
)
def test_a_damaged_array_is_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ubyte\.gz: its content is damaged"):
        sequential_digits.read_idx(path, 3)


def test_images_need_a_label_each():
    images, order = np.zeros((2, 2, 2), np.uint8), torch.arange(4)
    for labels in ([1], [1, 10]):
        with pytest.raises(DataError, match=r"2 images with . labels; expected a digit each"):
            sequential_digits.as_sequences(images, np.array(labels, np.uint8), order)
