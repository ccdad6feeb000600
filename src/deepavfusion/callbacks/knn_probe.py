"""Nearest-neighbour accuracy of the embeddings while they are being learned."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from deepavfusion.metrics.neighbours import NeighbourAccuracy
from deepavfusion.types import STREAMS, Batch
from deepavfusion.utils.console import say_once


class KNNProbe(Callback):
    """Logs `knn/<stream>` (leave-one-out 1-NN among the test clips) and `knn_train/<stream>` (train → test k-NN).

    Streams are image, audio, fusion (means over tokens) and combined (sum of the three cosine similarities).
    It reads {"embeddings": {stream: [B, D]}} from `validation_step`: loader 0 has the test clips, loader 1 the
    gallery of train clips. Sets too small to compare log nothing.

    Args:
        k: neighbours that vote in `knn_train`.
    """

    def __init__(self, k: int = 5) -> None:
        self.metrics = {
            "knn": NeighbourAccuracy(STREAMS, k=1, leave_one_out=True),
            "knn_train": NeighbourAccuracy(STREAMS, k=k, leave_one_out=False),
        }

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0:
            self.metrics["knn"].update(outputs["embeddings"], batch.label)
        self.metrics["knn_train"].update(outputs["embeddings"], batch.label, gallery=dataloader_idx == 1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {
            f"{prefix}/{name}": value
            for prefix, metric in self.metrics.items()
            if metric.update_called  # not so when a split is empty
            for name, value in metric.compute().items()
        }
        pl_module.log_dict(found)
        if trainer.state.fn == "validate" and "knn/fusion" not in found:
            say_once("knn: fewer than two test clips, so there are no nearest neighbours to show", "yellow")
