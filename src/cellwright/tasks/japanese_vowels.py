"""Japanese Vowels: tell nine speakers apart by one utterance of /ae/."""

from __future__ import annotations

from pathlib import Path

from cellwright.tasks.task import Data, Published, task
from cellwright.tasks.ts_file import read_ts

_FOLDER = Path(__file__).parent / "data" / "japanese-vowels"
_FAWAZ = "Ismail Fawaz et al. 2019, Deep learning for time series classification: a review"


@task(
    "japanese-vowels",
    title="Which of nine speakers said it: 12 cepstrum coefficients, 7 to 29 frames",
    source=(
        "Kudo, Toyama & Shimbo 1999, Multidimensional curve classification using "
        "passing-through regions; UCI Machine Learning Repository"
    ),
    licence="CC BY 4.0",
    objective="classification",
    # Chosen by cross-validation inside the training series: for each speaker, ten utterances in
    # a row were left out and the other twenty trained on. The test series had no part in it.
    defaults={"noise": 0.5, "offset": 0.4, "crop": 0.3},
    published=(
        Published("FCN", 0.993, _FAWAZ, "mean of ten runs"),
        Published("ResNet", 0.992, _FAWAZ, "mean of ten runs"),
        Published("MLP", 0.976, _FAWAZ, "mean of ten runs"),
        Published("TWIESN", 0.965, _FAWAZ, "mean of ten runs"),
    ),
)
def japanese_vowels() -> Data:
    """The published split: 270 series for training, 370 for testing, 12 features."""
    return Data(
        train=read_ts(_FOLDER / "JapaneseVowels_TRAIN.ts.gz"),
        test=read_ts(_FOLDER / "JapaneseVowels_TEST.ts.gz"),
    )
