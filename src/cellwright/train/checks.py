"""Tests on the way: training ends once a set of sequences is right."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cellwright.train.examples import Examples
from cellwright.train.measure import until_wrong
from cellwright.train.module import TrainingModule


class Check(Callback):
    """Test after every epoch, and stop training when all sequences are right.

    The log's ``check_row`` is how many are right before the first wrong one. Every process tests
    for itself: they have the same weights, and so the same answer.

    Args:
        examples: the sequences.
        classes: in the order in which the model numbers them.
    """

    def __init__(self, examples: Examples, classes: tuple[str, ...]):
        self.examples, self.classes = examples, classes

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        row, right = until_wrong(pl_module.model, pl_module.objective, self.examples, self.classes)
        pl_module.log("check_row", float(row), on_step=False, on_epoch=True, batch_size=1)
        if right:
            pl_module.solved = trainer.should_stop = True
