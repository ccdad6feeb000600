"""Segmentation: the pixels of a picture that show what is heard."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepavfusion.metrics.segmentation import SegmentationMetrics
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.segmenter import Segmenter, decide, pixel_loss
from deepavfusion.tasks.base import FineTune, freeze_unread, load_pretrained
from deepavfusion.types import Batch
from deepavfusion.utils.errors import UserError

COUNTS = ("frames", "empty_frames")
WRONG_SOUND = 1  # number of the test loader whose pictures come with the sound of a clip of another class


class Segment(FineTune):
    """Mark the pixels of a frame that sound, or the class of what sounds there (Mo & Morgado, section 4.4; AVSBench).

    Test evaluates every annotated frame; where there is a second loader, once more with its wrong sounds
    (`…_wrong_audio`): how much the sound decides.

    Args:
        net: the backbone.
        num_classes: 1: sounding or not; else the classes of the data, with the background as class 0.
        head_dim: channels at the bottom of the head's U-Net; None: as wide as the encoder.
        min_head_dim: channels that no level of it goes below.
        batch_size: frames a step and process, for the learning rate.
        blr: learning rate for 256 frames; the run's is blr · effective batch / 256.
        weight_decay, betas: of AdamW; parameters of one dimension do not decay.
        warmup_epochs: linear warm-up, then a cosine to 0.
        layer_decay: factor of the learning rate from layer to layer, from the head down.
        pretrained: checkpoint of the encoder; "auto": `latest_pretraining` if it is there and fits; None: from scratch.
        latest_pretraining: checkpoint of the newest pre-training.
        seed: each step and process draws its own from it.

    Raises:
        UserError: a checkpoint that cannot be read or does not fit.
    """

    def __init__(
        self,
        net: DeepAVFusion,
        num_classes: int = 1,
        head_dim: int | None = None,
        min_head_dim: int = 128,
        batch_size: int = 16,
        blr: float = 2e-4,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_epochs: float = 20,
        layer_decay: float = 0.75,
        pretrained: str | None = "auto",
        latest_pretraining: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        load_pretrained(net, pretrained, latest_pretraining)
        freeze_unread(net)
        self.net = Segmenter(net, num_classes, head_dim, min_head_dim)
        self.val_metrics = SegmentationMetrics(num_classes)
        self.test_metrics = SegmentationMetrics(num_classes)
        self.wrong_audio_metrics = SegmentationMetrics(num_classes)

    def check_data(self, datamodule: Any) -> None:
        theirs, ours = (
            f"{count} classes apart" if count > 1 else "sounding from silent"
            for count in (datamodule.num_classes, self.net.num_classes)
        )
        if theirs != ours:
            raise UserError(
                f"the masks of {datamodule.dataset_name} tell {theirs}, the network tells {ours}: leave "
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
        """What `mark` gives; Lightning hands it to the callbacks."""
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
        if dataloader_idx == WRONG_SOUND:
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
        if isinstance(loaders, list) and len(loaders) > WRONG_SOUND:
            wrong = self.wrong_audio_metrics.compute()
            found |= {f"test/{name}_wrong_audio": value for name, value in wrong.items() if name not in COUNTS}
        self.log_dict(found)
