"""Masked pre-training: reconstruct image and audio from the patches that are left visible."""

from __future__ import annotations

import random
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from deepavfusion.metrics.row_mean import RowMean
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.mae import MaskedAutoencoder, random_patch_mask
from deepavfusion.optim.param_groups import param_groups
from deepavfusion.optim.schedules import half_cosine_rise
from deepavfusion.tasks.base import ParamGroup, Task
from deepavfusion.types import Batch, MAEOutput, PatchMask

LOSSES = {"loss": "loss", "loss_image": "image_loss", "loss_audio": "audio_loss"}  # as logged -> of `MAEOutput`


class Pretrain(Task):
    """Masked reconstruction of video frames and log-mel spectrograms (Mo & Morgado, CVPR 2024, section 3.3).

    Args:
        net: the backbone.
        decoder_embed_dim, decoder_depth, decoder_num_heads: size of both decoders.
        image_mask_ratio, audio_mask_ratio: share of the patches that is masked.
        solo_share: share of the training steps in which one modality, image or audio as it happens, is masked entirely
            and reconstructed from the other through the fusion tokens; 0: as published.
        image_weights, audio_weights: MAE and AudioMAE checkpoints for the two encoders, loaded by
            `runs.start_weights`.
        branch_rise: the learning rate of encoders that start from such a file rises along half a cosine over this
            share of the run.
        recipe: see `Task`.
    """

    val_losses: Any  # name -> `RowMean`

    def __init__(
        self,
        net: DeepAVFusion,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        image_mask_ratio: float = 0.75,
        audio_mask_ratio: float = 0.8,
        solo_share: float = 0.0,
        image_weights: str | None = None,
        audio_weights: str | None = None,
        branch_rise: float = 0.5,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.net = MaskedAutoencoder(net, decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.val_losses = nn.ModuleDict({name: RowMean() for name in LOSSES})

    def forward(self, batch: Batch, fixed: bool = False, hidden: str | None = None) -> MAEOutput:
        """Mask and reconstruct.

        Args:
            batch: of clips.
            fixed: the masks of a clip follow from its position in the dataset, as for evaluation, which then does not
                depend on batches and processes; otherwise they are random.
            hidden: "image" or "audio", which is masked entirely.
        """
        assert batch.spectrogram is not None
        self.check_shapes(batch)
        items = batch.item.tolist() if fixed else []
        if not items:
            return self.net(batch.image, batch.spectrogram, *self._masks(len(batch), batch.image.device, hidden=hidden))
        generator = torch.Generator(device=batch.image.device)
        each = [self._masks(1, batch.image.device, generator.manual_seed(item)) for item in items]
        image, audio = (
            PatchMask(torch.cat([mask.keep for mask in masks]), torch.cat([mask.masked for mask in masks]))
            for masks in zip(*each, strict=True)
        )
        return self.net(batch.image, batch.spectrogram, image, audio)

    def _masks(
        self,
        clips: int,
        device: torch.device,
        generator: torch.Generator | None = None,
        hidden: str | None = None,
    ) -> tuple[PatchMask, PatchMask]:
        """Of image and audio."""

        def mask(stream: str) -> PatchMask:
            ratio = 1.0 if stream == hidden else self.hparams[f"{stream}_mask_ratio"]
            return random_patch_mask(clips, getattr(self.net.encoder, stream).num_patches, ratio, device, generator)

        return mask("image"), mask("audio")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        share, hidden = self.hparams["solo_share"], None
        if share and random.random() < share:  # seeded alike in all processes, see `on_train_batch_start`
            hidden = random.choice(("image", "audio"))
        out = self(batch, hidden=hidden)
        self.log_train({f"train/{name}": getattr(out, field) for name, field in LOSSES.items()}, len(batch))
        return out.loss

    def on_validation_epoch_start(self) -> None:
        for mean in self.val_losses.values():
            mean.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Add the losses of the test clips (loader 0); return the unmasked embeddings of either loader."""
        if dataloader_idx == 0:
            out = self(batch, fixed=True)
            for name, field in LOSSES.items():
                self.val_losses[name].update(getattr(out, field), len(batch))
        return {"embeddings": self.net.encoder(batch.image, batch.spectrogram).pooled()}

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses over all test clips."""
        means = {f"val/{name}": mean for name, mean in self.val_losses.items() if mean.update_called}
        self.log_dict({name: mean.compute() for name, mean in means.items()}, sync_dist=True)  # equal on all processes

    def draw(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Images of the reconstruction, with the same masks each time; see `MaskedAutoencoder.reconstruct`."""
        assert batch.spectrogram is not None
        return self.net.reconstruct(self(batch, fixed=True), batch.image, batch.spectrogram)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        encoder = self.net.encoder
        branches = {"image_encoder": encoder.image, "audio_encoder": encoder.audio}

        def rise(group: ParamGroup, epoch: float, epochs: int) -> float:
            rises = self.hparams.get(f"{group['branch'].removesuffix('_encoder')}_weights") is not None
            return half_cosine_rise(epoch, self.hparams["branch_rise"] * epochs) if rises else 1.0

        return self.adamw(param_groups(self.net, self.hparams["weight_decay"], branches), rise)
