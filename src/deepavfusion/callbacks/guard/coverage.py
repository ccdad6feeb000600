"""How much of its list an evaluation rests on; it stands next to every number."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from deepavfusion.types import Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError


class Coverage(Callback):
    """Logs `data/coverage`, `data/used` and `data/listed` of every evaluation, and stops below `min_coverage`.

    Counted are the items (clips, mixtures or annotated frames) of the first loader that were evaluated, over all
    processes, of those that its list expects. An evaluation that is cut short by `trainer.limit_*_batches` is counted
    and not judged.

    Args:
        min_coverage: 0…1.
    """

    def __init__(self, min_coverage: float = 0.0) -> None:
        self.min_coverage = min_coverage
        self.used = 0

    def _begin(self) -> None:
        self.used = 0

    def _count(self, batch: Batch, dataloader_idx: int) -> None:
        self.used += batch.items if dataloader_idx == 0 else 0

    def _end(self, trainer: Trainer, pl_module: LightningModule, loaders: Any, limit: int | float) -> None:
        dataset = (loaders[0] if isinstance(loaders, list) else loaders).dataset
        split = dataset.list.split
        used = int(trainer.strategy.reduce(torch.tensor(self.used, device=pl_module.device), reduce_op="sum"))
        listed = dataset.listed
        coverage = used / listed if listed else 1.0
        values = {"data/coverage": coverage, "data/used": float(used), "data/listed": float(listed)}
        pl_module.log_dict(values, batch_size=1, add_dataloader_idx=False, sync_dist=True)  # they are equal
        if coverage < 1:
            say_once(f"data: {used} of the {listed} items that {split} lists were evaluated", "yellow")
        if coverage < self.min_coverage and isinstance(limit, float) and limit == 1.0:  # 1 is one batch
            raise UserError(
                f"the evaluation rests on {used} of {listed} items of the {split} split ({coverage:.1%}), a number of "
                f"this protocol needs {self.min_coverage:.0%}: mend the clips that data_problems.csv names, or set "
                f"data.min_coverage={int(coverage * 100) / 100:g} to accept it."
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, trainer.val_dataloaders, trainer.limit_val_batches)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, trainer.test_dataloaders, trainer.limit_test_batches)
