"""Masked pre-training: reconstruct image and audio from the patches that are left visible."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.mae import MaskedAutoencoder, random_patch_mask
from deepavfusion.optim.param_groups import param_groups
from deepavfusion.optim.schedules import half_cosine_rise
from deepavfusion.tasks.base import ParamGroup, Task
from deepavfusion.types import Batch, MAEOutput


class Pretrain(Task):
    """Masked reconstruction of video frames and log-mel spectrograms (Mo & Morgado, CVPR 2024, section 3.3).

    Args:
        net: the backbone.
        decoder_embed_dim, decoder_depth, decoder_num_heads: size of both decoders.
        image_mask_ratio, audio_mask_ratio: share of the patches that is masked.
        image_weights, audio_weights: MAE and AudioMAE checkpoints for the two encoders, loaded by
            `runs.start_weights`.
        branch_rise: the learning rate of encoders that start from such a file rises along half a cosine over this
            share of the run.
        recipe: see `Task`.
    """

    def __init__(
        self,
        net: DeepAVFusion,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        image_mask_ratio: float = 0.75,
        audio_mask_ratio: float = 0.8,
        image_weights: str | None = None,
        audio_weights: str | None = None,
        branch_rise: float = 0.5,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.net = MaskedAutoencoder(net, decoder_embed_dim, decoder_depth, decoder_num_heads)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> MAEOutput:
        """Mask at random and reconstruct."""
        assert batch.spectrogram is not None
        encoder, clips, device = self.net.encoder, len(batch), batch.image.device
        self.check_shapes(batch)
        return self.net(
            batch.image,
            batch.spectrogram,
            random_patch_mask(clips, encoder.image.num_patches, self.hparams["image_mask_ratio"], device, generator),
            random_patch_mask(clips, encoder.audio.num_patches, self.hparams["audio_mask_ratio"], device, generator),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self(batch)
        self.log_train(_losses("train", out), len(batch))
        return out.loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Log the losses of the test clips (loader 0); return the unmasked embeddings of either loader."""
        if dataloader_idx == 0:
            generator = torch.Generator(device=batch.image.device).manual_seed(batch_idx)
            out = self(batch, generator)
            self.log_dict(_losses("val", out), batch_size=len(batch), add_dataloader_idx=False, sync_dist=True)
        return {"embeddings": self.net.encoder(batch.image, batch.spectrogram).pooled()}

    def draw(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Images of the reconstruction, with the same masks each time; see `MaskedAutoencoder.reconstruct`."""
        assert batch.spectrogram is not None
        generator = torch.Generator(device=batch.image.device).manual_seed(0)
        return self.net.reconstruct(self(batch, generator), batch.image, batch.spectrogram)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        encoder = self.net.encoder
        branches = {"image_encoder": encoder.image, "audio_encoder": encoder.audio}

        def rise(group: ParamGroup, epoch: float, epochs: int) -> float:
            rises = self.hparams.get(f"{group['branch'].removesuffix('_encoder')}_weights") is not None
            return half_cosine_rise(epoch, self.hparams["branch_rise"] * epochs) if rises else 1.0

        return self.adamw(param_groups(self.net, self.hparams["weight_decay"], branches), rise)


def _losses(stage: str, out: MAEOutput) -> dict[str, Tensor]:
    return {f"{stage}/loss": out.loss, f"{stage}/loss_image": out.image_loss, f"{stage}/loss_audio": out.audio_loss}
