"""An exponential moving average of the weights, by Lightning and torch."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.autograd.graph import increment_version

from cellwright.train.module import TrainingModule


class Average(EMAWeightAveraging):
    """Average the weights after every update; the average is what is validated and kept.

    Args:
        decay: what remains of the average at an update; the weights come in with the rest.
    """

    def __init__(self, decay: float):
        super().__init__(decay=decay, use_buffers=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TrainingModule)
        # The module is copied; its batches, which may be all of the data, need not be.
        batches, pl_module.batches = pl_module.batches, None  # type: ignore[assignment]
        try:
            super().setup(trainer, pl_module, stage)
        finally:
            pl_module.batches = batches

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        _seen(pl_module)

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        super()._copy_average_to_current(pl_module)
        _seen(pl_module)


def _seen(module: LightningModule) -> None:
    """Tell torch of weights that were changed through ``.data``: engines keep them packed."""
    for each in module.parameters():
        increment_version(each)
