"""Segmentation: the pixels of a frame that show what is heard."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepavfusion.metrics.segmentation import SegmentationMetrics
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.segmenter import Segmenter, decide, pixel_loss
from deepavfusion.tasks.finetune import FineTune, freeze_unread
from deepavfusion.types import Batch
from deepavfusion.utils.errors import UserError


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

    second_test = "wrong_audio"  # of a clip of another class

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

    def evaluate(self, batch: Batch, part: str, metrics: SegmentationMetrics) -> Tensor:
        """Update the metrics; return what `mark` does."""
        assert batch.mask is not None
        logits = self.net(batch.image, batch.spectrogram)
        if part != self.second_test:
            getattr(self, f"{part}_loss").update(pixel_loss(logits, batch.mask), batch.items)
        metrics.update(logits, batch.mask, batch.item)
        return decide(logits)
