"""What tasks share that start from a pre-trained encoder: layer decay, and metrics of validation and test."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import Metric

from deepavfusion.metrics.row_mean import RowMean
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.optim.param_groups import layer_decay_groups
from deepavfusion.tasks.base import Task
from deepavfusion.types import Batch
from deepavfusion.utils.errors import UserError

COUNTS = ("clips", "frames", "empty_frames")  # of metrics: equal for all loaders of a test


class FineTune(Task):
    """A task that starts from a pre-trained encoder and has a metric for each data loader.

    It logs `val/…` by `val_metrics`, `test/…` by `test_metrics`, and `test/…_<name>` by the metrics in `more_metrics`;
    of the losses that `evaluate` adds to `val_loss` and `test_loss`, the mean over all items.

    Args:
        layer_decay: factor of the learning rate from layer to layer, from the head down.
        recipe: see `Task`.
    """

    second_test = ""  # what a second test loader evaluates, by `<second_test>_metrics`

    def __init__(self, layer_decay: float = 0.75, **recipe: Any) -> None:
        super().__init__(**recipe)
        self.val_loss, self.test_loss = RowMean(), RowMean()

    def evaluate(self, batch: Batch, part: str, metrics: Any) -> Any:
        """Update the metrics with a batch that is not empty; Lightning passes the return value on to the callbacks.

        Args:
            batch: from a loader of the validation or the test.
            part: "val", "test" or `second_test`.
            metrics: `<part>_metrics`.
        """
        raise NotImplementedError

    def _evaluate(self, batch: Batch, part: str) -> Any:
        if not len(batch):
            return None
        self.check_shapes(batch)
        return self.evaluate(batch, part, getattr(self, f"{part}_metrics"))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self._evaluate(batch, self.second_test if dataloader_idx else "test")

    def on_validation_epoch_start(self) -> None:
        for metrics in self.children():
            if isinstance(metrics, Metric):
                metrics.reset()

    on_test_epoch_start = on_validation_epoch_start

    def results(self, metrics: Any, loss: RowMean) -> dict[str, Tensor]:
        """What is logged of the metrics and the losses of all items, by name: independent of batches and processes.

        All processes have to call it, those without a usable item, too.
        """
        found, mean = metrics.compute(), loss.compute()
        return {**found, "loss": mean} if len(metrics.table()["item"]) else found

    def more_metrics(self) -> dict[str, Any]:
        """Further metrics of a test, by name."""
        loaders, name = self.trainer.test_dataloaders, self.second_test
        return {name: getattr(self, f"{name}_metrics")} if isinstance(loaders, list) and len(loaders) > 1 else {}

    def on_validation_epoch_end(self) -> None:
        found = self.results(self.val_metrics, self.val_loss)
        # Equal on all processes: what `sync_dist` adds is that Lightning does not warn.
        self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        found = {f"test/{name}": value for name, value in self.results(self.test_metrics, self.test_loss).items()}
        for suffix, metrics in self.more_metrics().items():
            found |= {f"test/{n}_{suffix}": value for n, value in metrics.compute().items() if n not in COUNTS}
        self.log_dict(found, sync_dist=True)

    def setup(self, stage: str) -> None:
        if getattr(self.net, "frozen", False):
            warnings.filterwarnings("ignore", r".*in eval mode at the start of training")  # intended

    def check_classes(self, datamodule: Any) -> None:
        """For `check_data` of a task with `num_classes` and `multi_label`."""
        ours = (self.hparams["num_classes"], self.hparams["multi_label"])
        theirs = (datamodule.num_classes, datamodule.multi_label)
        if ours != theirs:
            there, here = (f"{count} classes, {'several' if many else 'one'} a clip" for count, many in (theirs, ours))
            raise UserError(
                f"{datamodule.dataset_name} has {there}, the network {here}: leave model.num_classes and "
                f"model.multi_label out, or choose other data."
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        weight_decay, layer_decay = self.hparams["weight_decay"], self.hparams["layer_decay"]
        return self.adamw(layer_decay_groups(self.net, weight_decay, layer_decay, self.net.encoder.depth))


def freeze_unread(encoder: DeepAVFusion) -> None:
    """Freeze what heads on the layers of image and audio do not use: the final norms and the last fusion block.

    Distributed training would wait for gradients that never come.
    """
    unread: list[nn.Module] = [encoder.image.norm, encoder.audio.norm, encoder.fusion_norm]
    unread += list(encoder.fusion_blocks.values())[-1:]
    for module in unread:
        module.requires_grad_(False)
    if not encoder.fusion_blocks:
        encoder.fusion_tokens.requires_grad_(False)
