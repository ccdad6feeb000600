"""Before a training of retrieval, measure what is found without it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from rich import get_console

from deepavfusion.callbacks.terminal.results import results_table
from deepavfusion.utils.console import say_once


class RetrievalBaselines(Callback):
    """Measures, once a run, retrieval among the clips to test by mean tokens without any training here, and prints it;
    the task keeps it, and logs it beside its results. See `tasks.retrieve`.

    Args:
        headline: name -> label of the metrics that are shown, see `RunSummary`.
    """

    def __init__(self, headline: Mapping[str, str]) -> None:
        self.headline = dict(headline)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task, datamodule = cast(Any, pl_module), trainer.datamodule  # type: ignore[attr-defined]
        if trainer.global_step or task.baselines or getattr(trainer, "fast_dev_run", False):
            return
        loader = datamodule.test_dataloader()[0]
        limit = trainer.limit_test_batches
        batches = limit if isinstance(limit, int) else int(len(loader) * limit)
        dim, names = task.net.encoder.embed_dim, ("untrained", "zero_shot", "joint")
        metrics = {name: task.new_metric(dim).to(task.device) for name in names}
        task.eval()
        # In full precision, as it is compared with that of other runs.
        with torch.autocast(task.device.type, enabled=False), closing(iter(loader)) as given:
            for _, batch in zip(range(batches), given, strict=False):
                batch = datamodule.on_after_batch_transfer(batch.to(task.device), 0)
                if len(batch):
                    for name, means in task.baseline_means(batch).items():
                        task.update(metrics[name], means, batch)
        task.train()
        found = task.keep_baselines(loader.dataset, metrics)
        if trainer.is_global_zero and found:
            values = {f"test/{name}": value for name, value in found.items()}
            get_console().print(results_table(values, self.headline, {}, title="Before training"))
            say_once("joint is no retrieval: in a joint pass, each embedding has met what it is to find")
