"""Training speed in clips per second."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from deepavfusion.types import Batch


class Throughput(Callback):
    """Logs `clips_per_second` of the training loop: those that were used, of all processes.

    Includes waiting for data; excludes validation and the first step, in which workers start and kernels are chosen.
    """

    def __init__(self) -> None:
        self.clips, self.seconds = torch.zeros((), dtype=torch.int64), 0.0
        self.since: float | None = None  # end of the previous step, or start of the epoch
        self.warm = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic() if self.warm else None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self.since is not None:
            self.clips = self.clips + cast(Any, pl_module).counts.total()[0]  # on a GPU, nothing waits for it
            self.seconds += now - self.since
            pl_module.log("clips_per_second", self.clips / self.seconds, batch_size=1, rank_zero_only=True)
        self.since, self.warm = now, True
