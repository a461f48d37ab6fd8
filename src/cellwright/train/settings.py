"""What a training run can be told: one record, checked, that goes to ``config.yaml`` and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from cellwright.errors import UsageError

POOLINGS = ("last", "mean", "max", "mean-max")


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        cell: a name in the catalogue, or "path/to/file.py:cell_name".
        hidden_size, num_layers, bidirectional: of the recurrent layer.
        sizes: numbers for the cell's other sizes, as ``{"projection": 32}``.
        pooling: how a sequence's outputs become one vector: the last one ("last"; a backward
            layer's last is at the first step), their mean, their maximum, or both ("mean-max").
        dropout: probability, between layers and before the head.
        noise: standard deviation of noise added in training to each value of the standardised
            input.
        offset: standard deviation of noise added in training to each feature, the same at all
            steps of a series.
        crop: largest share of a series' steps that training leaves out, at its two ends.
        epochs, batch_size: of training.
        learning_rate: the largest; it rises over the first tenth of training and falls to zero
            along a cosine.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        validation: share of the training series set apart to choose the best epoch by.
        seed: of weights, order, noise and splits.
        threads: torch's threads.
        engine: the name of the engine; None for the one that suits.

    Raises:
        UsageError: a value is out of range; the message names the option.

    Example:
        >>> Settings(hidden_size=32).replace(epochs=10).epochs
        10
    """

    cell: str = "lstm"
    hidden_size: int = 64
    num_layers: int = 1
    bidirectional: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)
    pooling: str = "mean-max"
    dropout: float = 0.3
    noise: float = 0.1
    offset: float = 0.0
    crop: float = 0.0
    epochs: int = 60
    batch_size: int = 16
    learning_rate: float = 0.006
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    validation: float = 0.0
    seed: int = 0
    threads: int = 1
    engine: str | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "epochs", "batch_size", "threads"):
            _check_whole(name, getattr(self, name), 1)
        _check_whole("seed", self.seed, 0, 2**32 - 1)
        for name, (low, high, open_ends) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high, open_ends)
        if not isinstance(self.cell, str) or not self.cell:
            raise UsageError(f"--cell: expected a name or path.py:cell, got {self.cell!r}")
        if not isinstance(self.bidirectional, bool):
            raise UsageError(f"--bidirectional: expected true or false, got {self.bidirectional!r}")
        if self.pooling not in POOLINGS:
            raise UsageError(
                f"--pooling: expected one of {', '.join(POOLINGS)}, got {self.pooling!r}"
            )
        if not isinstance(self.sizes, Mapping):
            raise UsageError(f"--size: expected names with numbers, got {self.sizes!r}")
        for name, value in self.sizes.items():
            _check_whole(f"size {name}", value, 1)
        if self.engine is not None:
            check_engine(self.engine)
        object.__setattr__(self, "sizes", dict(self.sizes))

    def replace(self, **changes: Any) -> Settings:
        """A copy with other values."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The settings that `as_dict` gave.

        Raises:
            UsageError: a name is unknown or missing, or a value out of range.
        """
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(f"unknown setting {name!r}; known are {', '.join(known)}")
        missing = [name for name in known if name not in values]
        if missing:
            raise UsageError(f"the setting {missing[0]!r} is missing")
        return cls(**values)


_RANGES = {  # name: lowest, highest, whether the ends are left out
    "dropout": (0.0, 1.0, "high"),
    "noise": (0.0, math.inf, "high"),
    "offset": (0.0, math.inf, "high"),
    "crop": (0.0, 1.0, "high"),
    "learning_rate": (0.0, math.inf, "both"),
    "weight_decay": (0.0, math.inf, "high"),
    "gradient_clip": (0.0, math.inf, "both"),
    "validation": (0.0, 1.0, "high"),
}


def option(name: str) -> str:
    """The name of a setting on the command line: ``hidden_size`` is ``--hidden-size``."""
    return "--" + name.replace("_", "-")


def _check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not fits or (high is not None and int(value) > high):  # type: ignore[call-overload]
        upper = f" to {high}" if high is not None else " or more"
        raise UsageError(f"{option(name)}: expected a whole number, {low}{upper}, got {value!r}")


def _check_number(name: str, value: object, low: float, high: float, open_ends: str) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if fits:
        number = float(value)  # type: ignore[arg-type]
        fits = (low < number if open_ends == "both" else low <= number) and number < high
    if not fits:
        lower = f"above {low:g}" if open_ends == "both" else f"{low:g} or more"
        upper = "" if high == math.inf else f" and below {high:g}"
        raise UsageError(f"{option(name)}: expected a number {lower}{upper}, got {value!r}")


def check_engine(name: object) -> None:
    """Raise `UsageError` unless there is an engine of that name."""
    from cellwright import engines  # here, for it loads torch

    known = engines.names()
    if name not in known:
        raise UsageError(f"--engine: expected one of {', '.join(known)}, got {name!r}")


def check_share(name: str, value: float) -> None:
    """Raise `UsageError` unless a share lies between 0 and 1, both left out."""
    _check_number(name, value, 0.0, 1.0, "both")
