"""At the end of a training, learn what its clips look like to the network, so that predictions can mark other ones."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from deepavfusion.metrics.by_item import Rows
from deepavfusion.utils.console import say


class FitNoveltyDetector(Callback):
    """Fits the novelty detector of a classifier after the last epoch, before its checkpoint is written.

    Training clips give the distribution of embeddings, validation clips the threshold; nothing is fitted where these
    are too few, which is said.

    Args:
        max_clips: of each, evenly spread over the list.
        windows: of each validation clip.
    """

    def __init__(self, max_clips: int = 4000, windows: int = 5) -> None:
        self.max_clips, self.windows = max_clips, windows

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs and not trainer.should_stop:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        loaders = datamodule.novelty_dataloaders(self.max_clips, self.windows)
        pl_module.eval()
        train, held_out = (_embeddings(pl_module, datamodule, loader) for loader in loaders)
        pl_module.train()
        pl_module.fit_novelty(train, held_out)  # type: ignore[operator]
        if trainer.is_global_zero and getattr(pl_module, "novelty", None) is None:
            say(
                f"novelty: {len(train)} windows of train clips and {len(held_out)} of validation clips are too few, "
                "or too alike, to tell unknown clips by; predictions mark none",
                "yellow",
            )


@torch.no_grad()
def _embeddings(task: Any, datamodule: Any, loader: Any) -> Tensor:
    """Of all windows of a loader [N, D], by all processes, on the CPU; in full precision, as in prediction."""
    net = task.net
    dtype = next(net.parameters()).dtype
    rows = Rows(net.embedding_dim).to(task.device)
    with torch.autocast(task.device.type, enabled=False):
        for batch in loader:
            batch = datamodule.on_after_batch_transfer(batch.to(task.device), 0)
            if len(batch):
                window = torch.arange(len(batch), device=task.device) % batch.group
                embedding = net.embedding(net.pooled(batch.image.to(dtype), batch.spectrogram.to(dtype)))
                rows.update(batch.item * batch.group + window, embedding)
    found: Tensor = rows.compute()
    return found
