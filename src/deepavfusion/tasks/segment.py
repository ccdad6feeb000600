"""Segmentation: the pixels of a frame that show what is heard."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepavfusion.metrics.segmentation import SegmentationMetrics
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.segmenter import Segmenter, decide, pixel_loss
from deepavfusion.tasks.base import FineTune, freeze_unread
from deepavfusion.types import Batch
from deepavfusion.utils.errors import UserError

COUNTS = ("frames", "empty_frames")
WRONG_AUDIO = 1  # index of the test loader that pairs frames with the audio of a clip of another class


class Segment(FineTune):
    """Mark the sounding pixels of a frame, or their classes (Mo & Morgado, section 4.4; AVSBench).

    Test evaluates every annotated frame and, if there is a second loader, once more with the wrong audio
    (`…_wrong_audio`), which shows how much the audio matters.

    Args:
        net: the backbone.
        num_classes: 1 for sounding or not, otherwise the classes of the data, class 0 being the background.
        head_dim: channels at the bottom of the head's U-Net; None: as wide as the encoder.
        min_head_dim: minimum number of channels at any of its levels.
        recipe: see `FineTune`.
    """

    def __init__(
        self,
        net: DeepAVFusion,
        num_classes: int = 1,
        head_dim: int | None = None,
        min_head_dim: int = 128,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        freeze_unread(net)
        self.net = Segmenter(net, num_classes, head_dim, min_head_dim)
        self.val_metrics = SegmentationMetrics(num_classes)
        self.test_metrics = SegmentationMetrics(num_classes)
        self.wrong_audio_metrics = SegmentationMetrics(num_classes)

    def check_data(self, datamodule: Any) -> None:
        theirs, ours = (
            f"{count} classes" if count > 1 else "sounding and silent"
            for count in (datamodule.num_classes, self.net.num_classes)
        )
        if theirs != ours:
            raise UserError(
                f"the masks of {datamodule.dataset_name} distinguish {theirs}, the network {ours}: leave "
                f"model.num_classes out, or choose other masks with data.samples.semantic."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_shapes(batch)
        assert batch.mask is not None
        loss = pixel_loss(self.net(batch.image, batch.spectrogram), batch.mask)
        self.log_train({"train/loss": loss}, batch.items)
        return loss

    def mark(self, batch: Batch) -> Tensor:
        """The class of each pixel, or whether it sounds: uint8 [B, H, W]"""
        return decide(self.net(batch.image, batch.spectrogram))

    def _evaluate(self, batch: Batch, loss_name: str | None, metrics: SegmentationMetrics) -> Tensor | None:
        """Update the metrics; return what `mark` does, which Lightning passes on to the callbacks."""
        if not len(batch):
            return None
        self.check_shapes(batch)
        assert batch.mask is not None
        logits = self.net(batch.image, batch.spectrogram)
        if loss_name:
            loss = pixel_loss(logits, batch.mask)
            self.log(loss_name, loss, batch_size=batch.items, sync_dist=True, add_dataloader_idx=False)
        metrics.update(logits, batch.mask, batch.item)
        return decide(logits)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        return self._evaluate(batch, "val/loss", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        if dataloader_idx == WRONG_AUDIO:
            return self._evaluate(batch, None, self.wrong_audio_metrics)
        return self._evaluate(batch, "test/loss", self.test_metrics)

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()
        self.wrong_audio_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.val_metrics.compute().items()})

    def on_test_epoch_end(self) -> None:
        found = {f"test/{name}": value for name, value in self.test_metrics.compute().items()}
        loaders = self.trainer.test_dataloaders
        if isinstance(loaders, list) and len(loaders) > WRONG_AUDIO:
            wrong = self.wrong_audio_metrics.compute()
            found |= {f"test/{name}_wrong_audio": value for name, value in wrong.items() if name not in COUNTS}
        self.log_dict(found)
