"""What a training run can be told: one record, checked, that goes to ``config.yaml`` and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from cellwright.errors import UsageError

POOLINGS = ("last", "mean", "max", "mean-max")
OPTIMIZERS = ("adamw", "adam", "rmsprop", "sgd")
SCHEDULES = ("cosine", "constant", "step", "plateau")
NONFINITE = ("error", "skip")
PRECISIONS = ("32-true", "bf16-mixed")
LAYER_OPTIONS = (
    "recurrent_dropout", "zoneout", "layer_norm", "heads", "learn_initial_state", "init",
    "grad_clip", "gradient", "precision", "save",
)  # fmt: skip


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
        optimizer: "adamw", "adam", "rmsprop" or "sgd".
        momentum: of "rmsprop" and "sgd".
        learning_rate: the largest.
        schedule: "cosine" (the learning rate rises over the first tenth of training and falls to
            zero along a cosine), "constant", "step" (it is multiplied by ``decay`` every
            ``decay_epochs`` epochs) or "plateau" (the same after ``decay_epochs`` epochs without a
            lower loss).
        decay, decay_epochs: of the schedules "step" and "plateau".
        weight_decay: of the optimiser.
        gradient_clip: largest norm of the gradient.
        gradient_clip_value: largest absolute value of a gradient's component; None for no limit.
        nonfinite: what is done where the loss or the gradient is not finite: "error" stops, and
            tells where it began; "skip" leaves the update out and counts it.
        accumulate: batches whose gradients are averaged for one update; with ``tbptt``, windows.
        average: decay of an exponential moving average of the weights, which is what is validated
            and kept; None for the weights themselves.
        patience: stop after so many epochs without a lower loss; None to go on.
        precision: "32-true", or "bf16-mixed" for bfloat16 in what torch computes; the recurrent
            layer has an option of its own, see ``layer``.
        devices: processes that share each batch.
        tbptt: steps of a window in truncated backpropagation through time: states are carried
            over from window to window, gradients are not. None for whole sequences.
        validation: share of the training series set apart to choose the best epoch by.
        seed: of weights, order, noise and splits.
        threads: torch's threads.
        engine: the name of the engine; None for the one that suits.
        layer: other options of the recurrent layer, as ``{"init": "chrono:100"}``; see
            `cellwright.nn.Recurrent`.

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
    optimizer: str = "adamw"
    momentum: float = 0.0
    schedule: str = "cosine"
    tbptt: int | None = None
    decay: float = 0.1
    decay_epochs: int = 10
    gradient_clip_value: float | None = None
    nonfinite: str = "error"
    accumulate: int = 1
    average: float | None = None
    patience: int | None = None
    precision: str = "32-true"
    devices: int = 1
    layer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0, 2**32 - 1)
        for name, (low, high, open_ends) in _RANGES.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                check_number(name, getattr(self, name), low, high, open_ends)
        if not isinstance(self.cell, str) or not self.cell:
            raise UsageError(f"--cell: expected a name or path.py:cell, got {self.cell!r}")
        if not isinstance(self.bidirectional, bool):
            raise UsageError(f"--bidirectional: expected true or false, got {self.bidirectional!r}")
        for name, known in (
            ("pooling", POOLINGS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES),
            ("nonfinite", NONFINITE), ("precision", PRECISIONS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{option(name)}: expected one of {', '.join(known)}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("tbptt", "patience"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.devices > self.batch_size:
            raise UsageError(
                f"--devices: {self.devices} processes cannot share batches of {self.batch_size}; "
                "expected a --batch-size of at least as many"
            )
        if not isinstance(self.layer, Mapping):
            raise UsageError(f"--layer: expected names with values, got {self.layer!r}")
        for name in self.layer:
            if name not in LAYER_OPTIONS:
                raise UsageError(
                    f"--layer: expected one of {', '.join(LAYER_OPTIONS)}, got {name!r}"
                )
        if not isinstance(self.sizes, Mapping):
            raise UsageError(f"--size: expected names with numbers, got {self.sizes!r}")
        for name, value in self.sizes.items():
            check_whole(f"size {name}", value, 1)
        if self.engine is not None:
            check_engine(self.engine)
        object.__setattr__(self, "sizes", dict(self.sizes))
        object.__setattr__(self, "layer", dict(self.layer))

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
        return read_settings(cls, values, _ADDED)


Record = TypeVar("Record")


def read_settings(
    kind: type[Record], values: Mapping[str, Any], later: Sequence[str] = ()
) -> Record:
    """A dataclass of settings from plain values.

    Args:
        kind: the dataclass.
        values: as `dataclasses.asdict` gives them.
        later: names that may be missing: earlier records do not have them.

    Raises:
        UsageError: a name is unknown or missing, or a value out of range.
    """
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UsageError(f"unknown setting {name!r}; known are {', '.join(known)}")
    missing = [name for name in known if name not in values and name not in later]
    if missing:
        raise UsageError(f"the setting {missing[0]!r} is missing")
    return kind(**values)


# Settings of which runs made by version 0.1.0 have no record; their defaults are what was then.
_ADDED = (
    "optimizer", "momentum", "schedule", "tbptt", "layer", "decay", "decay_epochs",
    "gradient_clip_value", "nonfinite", "accumulate", "average", "patience", "precision", "devices",
)  # fmt: skip

_COUNTS = (
    "hidden_size", "num_layers", "epochs", "batch_size", "threads", "decay_epochs", "accumulate",
    "devices",
)  # fmt: skip
_OPTIONAL = ("gradient_clip_value", "average")

_RANGES = {  # name: lowest, highest, whether the ends are left out
    "dropout": (0.0, 1.0, "high"),
    "noise": (0.0, math.inf, "high"),
    "offset": (0.0, math.inf, "high"),
    "crop": (0.0, 1.0, "high"),
    "learning_rate": (0.0, math.inf, "both"),
    "momentum": (0.0, 1.0, "high"),
    "weight_decay": (0.0, math.inf, "high"),
    "gradient_clip": (0.0, math.inf, "both"),
    "gradient_clip_value": (0.0, math.inf, "both"),
    "average": (0.0, 1.0, "high"),
    "decay": (0.0, 1.0, "both"),
    "validation": (0.0, 1.0, "high"),
}


def option(name: str) -> str:
    """The name of a setting on the command line: ``hidden_size`` is ``--hidden-size``."""
    return "--" + name.replace("_", "-")


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise `UsageError` unless a setting is a whole number in a range."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not fits or (high is not None and int(value) > high):  # type: ignore[call-overload]
        upper = f" to {high}" if high is not None else " or more"
        raise UsageError(f"{option(name)}: expected a whole number, {low}{upper}, got {value!r}")


def check_number(name: str, value: object, low: float, high: float, open_ends: str) -> None:
    """Raise `UsageError` unless a setting is a number in a range.

    Args:
        name, value: the setting.
        low, high: the range's ends.
        open_ends: which ends are left out: "high" or "both".
    """
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
    check_number(name, value, 0.0, 1.0, "both")
