"""Bach's chorales: foretell the next chord, as a set of keys of a piano."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import DataError
from cellwright.tasks.data_files import DataFile
from cellwright.tasks.task import Case, Data, Published, task
from cellwright.train.sequences import Sequences

FILE = DataFile(
    folder="jsb-chorales",
    name="jsb-chorales-quarter.json",
    url=(
        "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/"
        "9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d/jsb-chorales-quarter.json"
    ),
    sha256="2db9329f1881a1d3f49703ec556bf1d6f84b4f6c1d702c156536e93cf31e1c91",
)
LOWEST, HIGHEST = 21, 108  # MIDI numbers of a piano's keys
KEYS = tuple(f"key {number}" for number in range(LOWEST, HIGHEST + 1))

_CHUNG = "Chung et al. 2014, Empirical evaluation of gated recurrent neural networks"
_BAI = "Bai, Kolter & Koltun 2018, An empirical evaluation of generic convolutional networks"
_GREFF = "Greff et al. 2017, LSTM: A search space odyssey"


def piano_roll(chords: list[list[int]]) -> Tensor:
    """Chords as (steps, 88) of 0 and 1.

    >>> piano_roll([[21, 108], []]).sum(1).tolist()
    [2.0, 0.0]
    """
    roll = torch.zeros(len(chords), len(KEYS))
    for step, chord in enumerate(chords):
        for note in chord:
            roll[step, note - LOWEST] = 1.0
    return roll


def read(part: list[list[list[int]]]) -> Sequences:
    """Chorales as sequences: each chord is to be foretold from those before it.

    The first chord of a chorale is given and not foretold.
    """
    rolls = [piano_roll(chorale) for chorale in part]
    return Sequences([roll[:-1] for roll in rolls], [roll[1:] for roll in rolls], KEYS, KEYS)


def load() -> Data:
    """The published split: 229 chorales for training, 76 for validation, 77 for testing."""
    path = FILE.path()
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        return Data(
            train=read(parts["train"]), test=read(parts["test"]), validation=read(parts["valid"])
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: its content is damaged: {error!r}") from error


_SMALL: dict[str, Any] = {
    "learning_rate": 0.02, "epochs": 120, "dropout": 0.0, "gradient_clip": 100.0,
    "weight_decay": 0.1, "layer": {"recurrent_dropout": 0.1},
}  # fmt: skip
_COMMON: dict[str, Any] = {
    "title": "Foretell the next chord of a chorale: 88 keys, in nats a frame",
    "source": (
        "Boulanger-Lewandowski, Bengio & Vincent 2012, Modeling temporal dependencies in "
        "high-dimensional sequences; quarter notes"
    ),
    "licence": "music: public domain; encoding: none stated",
    "objective": "keys",
    "files": (FILE,),
}


@task(
    "jsb-chorales",
    **_COMMON,
    # Chosen by the loss on the validation chorales. The loss is a sum over keys and its gradient
    # is long: a norm of 1 would hold training back.
    defaults={
        "hidden_size": 200,
        "batch_size": 8,
        "learning_rate": 0.01,
        "epochs": 80,
        "dropout": 0.4,
        "gradient_clip": 10.0,
        "layer": {"recurrent_dropout": 0.3},
    },
    published=(
        Published("GRU-46", 8.54, _CHUNG, case="GRU-46"),
        Published("LSTM-36", 8.67, _CHUNG, case="LSTM-36"),
        Published("LSTM, 300,000 parameters", 8.45, _BAI, case="best"),
        Published("GRU, 300,000 parameters", 8.43, _BAI, case="best"),
        Published("RNN, 300,000 parameters", 8.91, _BAI, case="best"),
    ),
    cases=(
        Case("GRU-46", changes={"cell": "gru", "hidden_size": 46, **_SMALL}),
        Case("LSTM-36", changes={"hidden_size": 36, **_SMALL}),
        Case("best"),
    ),
    report=("test_nats", "validation_nats", "epoch_of_weights"),
)
def jsb_chorales() -> Data:
    """Bach's chorales."""
    return load()


VARIANTS = (
    "vanilla", "nig", "nfg", "nog", "niaf", "noaf", "cifg", "np", "fgr",
)  # fmt: skip


def draw_settings(random: np.random.Generator) -> dict[str, Any]:
    """One trial of the random search, the same for every variant of the cell.

    Greff et al. drew the learning rate, the momentum, the number of units and the deviation of
    noise on the input; here the momentum is Adam's and stays, and dropout is drawn in place of
    the noise.
    """
    return {
        "learning_rate": float(10 ** random.uniform(-1.8, -1.1)),
        "hidden_size": round(10 ** random.uniform(1.5, 2.1)),
        "dropout": float(random.uniform(0.0, 0.5)),
    }


@task(
    "odyssey",
    **{**_COMMON, "title": "Nine variants of the LSTM on Bach's chorales, ranked"},
    defaults={
        "cell": "odyssey_vanilla",
        "batch_size": 8,
        "epochs": 40,
        "gradient_clip": 100.0,
        "weight_decay": 0.1,
    },
    published=(Published("best of nine variants", 8.38, _GREFF, "200 trials a variant"),),
    cases=tuple(
        Case(name.upper(), changes={"cell": f"odyssey_{name}"}, seeds=10, search=draw_settings)
        for name in VARIANTS
    ),
    report=("test_nats",),
    baseline="VANILLA",
)
def odyssey() -> Data:
    """Bach's chorales again; the cell is what is asked about."""
    return load()
