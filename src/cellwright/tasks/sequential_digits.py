"""Digits read in sequence: as a pen's way over the tablet, or one pixel of an image after another.

A pen's digit has 8 steps, an image 784, so that figures for the one say nothing of the other.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import DataError
from cellwright.tasks.data_files import DataFile
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.tasks.text import read_text
from cellwright.train.sequences import Sequences
from cellwright.train.series import SeriesSet

_PEN = Path(__file__).parent / "data" / "pendigits"
POINTS = 8
"""Positions of the pen in a digit."""

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
IMAGES_TRAIN, LABELS_TRAIN, IMAGES_TEST, LABELS_TEST = MNIST = tuple(
    DataFile("mnist", f"{name}-ubyte.gz", f"{_MNIST}/{name}-ubyte.gz", sha256)
    for name, sha256 in (
        (
            "train-images-idx3",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train-labels-idx1",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            "t10k-images-idx3",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "t10k-labels-idx1",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
)

_UCI = "Alpaydin & Alimoglu 1996, Pen-based recognition of handwritten digits; UCI repository"
_BAI = "Bai, Kolter & Koltun 2018, An empirical evaluation of generic convolutional networks"
_OTHER = "another setting: images of MNIST, 784 steps"
DIGITS = tuple("0123456789")


def read_pen(path: Path) -> SeriesSet:
    """Read a file of pen digits.

    A line has x and y of 8 points, whole numbers from 0 to 100, and the digit as ten characters,
    of which the one in the digit's place, counted from the left, is 1.

    Raises:
        DataError: the file is missing or malformed.
    """
    digits, labels = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        *points, label = line.split(",")
        fits = len(points) == 2 * POINTS and all(_is_position(each) for each in points)
        if not fits or len(label) != 10 or sorted(label) != sorted("0000000001"):
            raise DataError(
                f"{path}:{number}: expected {2 * POINTS} whole numbers from 0 to 100 and ten "
                f"characters, one of them 1 and the others 0, got {line[:80]!r}"
            )
        digits.append(np.array(points, dtype=np.float64).reshape(POINTS, 2))
        labels.append(str(label.index("1")))
    found = SeriesSet.of(digits, labels, str(path))
    return replace(found, features=("x", "y"), classes=DIGITS)


def _is_position(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 100


@task(
    "sequential-digits",
    title="Which digit a pen wrote: 8 points of its way over the tablet",
    source=_UCI,
    licence="CC BY 4.0",
    objective="classification",
    # Chosen by --validation 0.2, digits of the training file. They are by the writers of the
    # others (the file does not say who wrote which, and its order does not tell), while the test
    # is on other writers.
    defaults={
        "bidirectional": False, "pooling": "last", "epochs": 30, "batch_size": 64,
    },
    published=(
        Published("nearest neighbour", 0.9774, _UCI),
        Published("the nearest three", 0.9780, _UCI),
        Published("LSTM, 68,000 parameters", 0.872, _BAI, _OTHER),
        Published("GRU, 68,000 parameters", 0.962, _BAI, _OTHER),
    ),
    cases=(Case("LSTM"), Case("GRU", changes={"cell": "gru"})),
    report=("test_accuracy", "test_loss", "parameters"),
)  # fmt: skip
def sequential_digits() -> Data:
    """The published split: 7,494 digits by 30 writers for training, 3,498 by 14 others to test."""
    return Data(train=read_pen(_PEN / "pendigits.tra.gz"), test=read_pen(_PEN / "pendigits.tes.gz"))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an array of bytes from a compressed IDX file.

    Raises:
        DataError: the file is missing, damaged, or has another number of dimensions.

    The header is two zeros, 8 for bytes, the number of dimensions, and each dimension as a whole
    number of four bytes, the highest first.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        *kind, found = struct.unpack_from(">HBB", content)
        if kind != [0, 8] or found != dimensions:
            raise ValueError(f"expected bytes in {dimensions} dimensions")
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path}: its content is damaged: {error}") from error


def as_sequences(images: np.ndarray, labels: np.ndarray, order: Tensor) -> Sequences:
    """Images (count, rows, columns) as sequences of pixels from 0 to 1, in an order of them.

    Raises:
        DataError: there is not a label from 0 to 9 for each image.
    """
    if len(images) != len(labels) or (len(labels) and labels.max() > 9):
        raise DataError(f"{len(images)} images with {len(labels)} labels; expected a digit each")
    pixels = torch.from_numpy(images.astype(np.float32) / 255).flatten(1)[:, order, None]
    return Sequences(list(pixels), torch.from_numpy(labels.astype(np.int64)), ("pixel",), DIGITS)


@task(
    "sequential-mnist",
    title="Which digit an image shows, one of its 784 pixels at a step",
    source="LeCun, Cortes & Burges 1998, The MNIST database; sequential: Le, Jaitly & Hinton 2015",
    licence="CC BY-SA 3.0",
    objective="class",
    # One layer with as many parameters as the published ones; not chosen by any search.
    defaults={
        "hidden_size": 130, "batch_size": 64, "epochs": 10, "optimizer": "adam",
        "learning_rate": 0.002, "layer": {"init": "chrono:784"},
    },
    published=tuple(
        Published("68,000 parameters", value, _BAI, "10 epochs", case=case)
        for case, value in (
            ("LSTM", 0.872), ("GRU", 0.962), ("LSTM, permuted", 0.857), ("GRU, permuted", 0.873)
        )
    ),
    cases=tuple(
        Case(f"{name}, permuted" if permuted else name, {"permuted": permuted}, changes, seeds=3)
        for permuted in (False, True)
        for name, changes in (("LSTM", {}), ("GRU", {"cell": "gru", "hidden_size": 150}))
    ),
    report=("test_accuracy", "validation_accuracy", "parameters"),
    files=MNIST,
)  # fmt: skip
def sequential_mnist(permuted: bool = False) -> Data:
    """55,000 images for training, 5,000 to choose the epoch by, 10,000 to test.

    Args:
        permuted: take the pixels in an order drawn once, the same for all images.
    """
    images, labels = read_idx(IMAGES_TRAIN.path(), 3), read_idx(LABELS_TRAIN.path(), 1)
    count = images[0].size if len(images) else 0
    drawn = np.random.default_rng(92916).permutation(count) if permuted else np.arange(count)
    order, kept = torch.from_numpy(drawn), len(images) * 11 // 12
    return Data(
        train=as_sequences(images[:kept], labels[:kept], order),
        validation=as_sequences(images[kept:], labels[kept:], order),
        test=as_sequences(read_idx(IMAGES_TEST.path(), 3), read_idx(LABELS_TEST.path(), 1), order),
    )
