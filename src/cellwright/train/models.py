"""A trained model as one file: the weights, and all that is needed to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cellwright import cells
from cellwright.errors import CellError, CellwrightError, CheckpointError, UsageError
from cellwright.lang import CellSpec
from cellwright.train import objectives, storage
from cellwright.train.settings import Settings

KIND = "cellwright-model"


@dataclass(frozen=True)
class Description:
    """All that is needed to build a model, without its weights.

    Attributes:
        task: the task's name, or the data file's.
        objective: see `objectives.get`.
        settings: of the run; ``settings.cell`` says which cell.
        cell: the cell's own name.
        equations: the cell's equations when it was trained.
        features: names of the input's features.
        classes: names of the output's classes.
        features_by_name: whether new data must have features of these names, or only as many.
    """

    task: str
    objective: str
    settings: Settings
    cell: str
    equations: str
    features: tuple[str, ...]
    classes: tuple[str, ...]
    features_by_name: bool

    def as_dict(self) -> dict[str, Any]:
        """The description as plain values."""
        return {**self.__dict__, "settings": self.settings.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Description:
        """The description that `as_dict` gave; KeyError or TypeError if it is not one."""
        return cls(**{**values, "settings": Settings.from_dict(values["settings"])})

    def build(self, spec: CellSpec) -> nn.Module:
        """The model with fresh weights."""
        make = objectives.get(self.objective).model
        return make(spec, len(self.features), len(self.classes), self.settings)


def save_model(path: Path, model: nn.Module, description: Description) -> None:
    """Write weights and description as one safetensors file, whole or not at all."""
    content = {"model": dict(model.state_dict()), "description": description.as_dict()}
    storage.save(path, KIND, content)


def load_model(path: Path, cell: str | None = None) -> tuple[nn.Module, Description]:
    """Read a model that `save_model` wrote, ready to be used.

    A cell of the user's own is read from the file in which it was when it was trained: that
    file is Python and is run.

    Args:
        path: the file.
        cell: take the cell from here ("path/to/file.py:cell_name"), where its file has moved.

    Raises:
        CheckpointError: the file is missing, truncated, of a newer format or of another cell.
    """
    content = storage.load(path, KIND)
    try:
        description = Description.from_dict(content["description"])
        weights = dict(content["model"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"{path}: its description is damaged ({error})") from error
    spec = _find_cell(path, description, cell)
    try:
        model = description.build(spec)
    except CellwrightError as error:
        raise CheckpointError(f"{path}: the model cannot be built: {error}") from error
    _fill(path, model, weights)
    return model.eval(), description


def _find_cell(path: Path, description: Description, cell: str | None) -> CellSpec:
    reference = cell or description.settings.cell
    try:
        spec = cells.load(reference)
    except (UsageError, CellError) as error:
        hint = "" if cell else "; if its file has moved, say where it is with --cell FILE.py:NAME"
        raise CheckpointError(
            f"{path}: its cell {description.cell} cannot be loaded: {error}{hint}"
        ) from error
    if spec.name != description.cell:
        raise CheckpointError(
            f"{path}: these are weights of the cell {description.cell}, not of {spec.name}"
        )
    if reference not in cells.names() and spec.equations() != description.equations:
        raise CheckpointError(
            f"{path}: the equations of {description.cell} in {reference} are not those that were "
            f"trained, which were:\n{description.equations}"
        )
    return spec


def _fill(path: Path, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    wanted = model.state_dict()
    for name in [*wanted, *weights]:
        if name not in weights or name not in wanted:
            what = "is missing" if name in wanted else "is not of this model"
            raise CheckpointError(f"{path}: the weight {name!r} {what}")
        if wanted[name].shape != weights[name].shape:
            raise CheckpointError(
                f"{path}: the weight {name!r} has shape {tuple(weights[name].shape)}, "
                f"expected {tuple(wanted[name].shape)}"
            )
    model.load_state_dict(weights)
