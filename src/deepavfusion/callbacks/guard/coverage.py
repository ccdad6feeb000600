"""Which fraction of the listed clips an evaluation, and an epoch of training, could use; logged with every metric."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import LightningModule, Trainer

from deepavfusion.callbacks.evaluation import EvaluationCallback, first_loader
from deepavfusion.types import Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError


class Coverage(EvaluationCallback):
    """Logs `data/coverage`, `data/used` and `data/listed` of every evaluation, and stops the run below `min_coverage`.

    Counts the items (clips, mixtures or annotated frames) of the first loader over all processes. An evaluation cut
    short by `trainer.limit_*_batches` is counted, but never stops the run.

    Of each epoch of training it logs `data/train_drawn`, how many items the sampler drew, repetitions included,
    `data/train_used`, how many of these the network was trained on, and `data/train_coverage`, the share of the listed
    items that can be used: of what is on disk, by what was drawn. What an epoch leaves out on purpose, such as an
    incomplete last batch, is not drawn. It never stops the run, but for an epoch without any clip, see `DataReport`.

    Args:
        min_coverage: 0…1.
    """

    tests = True

    def __init__(self, min_coverage: float = 0.0) -> None:
        self.min_coverage = min_coverage
        self.used = 0
        self.trained = torch.zeros(2, dtype=torch.int64)  # items used and drawn in this epoch, over all processes

    def state_dict(self) -> dict[str, Any]:
        used, drawn = self.trained.tolist()
        return {"used": used, "drawn": drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trained = torch.tensor([state_dict["used"], state_dict["drawn"]])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = torch.zeros(2, dtype=torch.int64)  # not called when an epoch is resumed

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        used_and_drawn = cast(Any, pl_module).counts.total()[1:]
        self.trained = self.trained.to(used_and_drawn.device) + used_and_drawn  # on a GPU, nothing waits for it

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dataset: Any = cast(Any, trainer.train_dataloader).dataset
        used, drawn = self.trained.tolist()
        if not drawn:  # resumed at the very end of an epoch, from a checkpoint of an earlier commit
            return
        coverage = used / drawn * len(dataset) / dataset.listed
        values = {"data/train_coverage": coverage, "data/train_used": float(used), "data/train_drawn": float(drawn)}
        pl_module.log_dict(values, batch_size=1, sync_dist=True)  # equal on all processes
        if used < drawn:
            say_once(
                f"data: {used} of the {drawn} {dataset.unit} drawn in epoch {trainer.current_epoch} were used; "
                "data_problems.csv names the others",
                "yellow",
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.used = 0

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        self.used += batch.items if loader == 0 else 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dataset = first_loader(trainer).dataset
        used = int(trainer.strategy.reduce(torch.tensor(self.used, device=pl_module.device), reduce_op="sum"))
        listed = dataset.listed
        coverage = used / listed if listed else 1.0
        values = {"data/coverage": coverage, "data/used": float(used), "data/listed": float(listed)}
        pl_module.log_dict(values, batch_size=1, add_dataloader_idx=False, sync_dist=True)  # equal on all processes
        if coverage < 1:
            say_once(f"data: {used} of the {listed} items that {dataset.list.split} lists were evaluated", "yellow")
        limit = trainer.limit_test_batches if trainer.testing else trainer.limit_val_batches
        if coverage < self.min_coverage and isinstance(limit, float) and limit == 1.0:  # the integer 1 is one batch
            raise UserError(
                f"the evaluation used {used} of {listed} items of the {dataset.list.split} split ({coverage:.1%}), but "
                f"this protocol requires {self.min_coverage:.0%}: fix the clips listed in data_problems.csv, or set "
                f"data.min_coverage={int(coverage * 100) / 100:g} to accept the result."
            )

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end
