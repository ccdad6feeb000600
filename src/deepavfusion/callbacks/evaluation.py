"""The base of callbacks that look at the batches of validations and tests."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from deepavfusion.types import Batch


class EvaluationCallback(Callback):
    """Maps Lightning's hooks for a validation batch and for a test batch, of seven parameters each, to `on_batch`."""

    tests = False  # whether `on_batch` is called in tests, too

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        """After each batch: `outputs` is what the step returned, `loader` the number of the data loader."""
        raise NotImplementedError

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        outputs, batch, _, loader = step if len(step) == 4 else (*step, 0)  # Lightning leaves out an only loader
        self.on_batch(trainer, pl_module, outputs, batch, loader)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        if self.tests:
            self.on_validation_batch_end(trainer, pl_module, *step)


def first_loader(trainer: Trainer) -> Any:
    """The first loader of the test or validation under way; its dataset is a `ClipDataset`."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return loaders[0] if isinstance(loaders, list) else loaders


def read_again(trainer: Trainer, pl_module: LightningModule, loader: Any, item: int) -> Batch:
    """An item of a loader's dataset as a batch on the device; empty if its files are gone by now."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    batch = loader.collate_fn([loader.dataset[item, 0]])
    return datamodule.on_after_batch_transfer(batch.to(pl_module.device), 0)
