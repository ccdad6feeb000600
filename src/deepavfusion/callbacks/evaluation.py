"""The base of callbacks that look at the batches of validations and tests."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from deepavfusion.types import Batch


class EvaluationCallback(Callback):
    """Maps Lightning's hooks for a validation batch and for a test batch, of seven parameters each, to `on_batch`."""

    tests = True  # whether `on_batch` is called in tests, too

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        """After each batch: `outputs` is what the step returned, `loader` the number of the data loader."""
        raise NotImplementedError

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.on_batch(trainer, pl_module, outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.tests:
            self.on_batch(trainer, pl_module, outputs, batch, dataloader_idx)


def first_loader(trainer: Trainer) -> Any:
    """The first loader of the test or validation under way; its dataset is a `ClipDataset`."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return loaders[0] if isinstance(loaders, list) else loaders
