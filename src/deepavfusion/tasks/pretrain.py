"""Masked pre-training: reconstruct picture and sound from the quarter of each that is left."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.mae import MaskedAutoencoder, random_patch_mask
from deepavfusion.optim.param_groups import param_groups
from deepavfusion.optim.schedules import half_cosine_rise
from deepavfusion.tasks.base import Group, Task
from deepavfusion.types import Batch, MAEOutput
from deepavfusion.utils.console import say_once
from deepavfusion.weights.weights import load_mae, load_vit


class Pretrain(Task):
    """Masked reconstruction of video frames and log-mel spectrograms (Mo & Morgado, CVPR 2024, section 3.3).

    Args:
        net: the backbone.
        decoder_embed_dim, decoder_depth, decoder_num_heads: size of both decoders.
        image_mask_ratio, audio_mask_ratio: part of the patches that is hidden.
        batch_size: clips a step and process, for the learning rate.
        blr: learning rate for 256 clips; the run's is blr · effective batch / 256, where the effective batch counts
            all processes and accumulated steps.
        weight_decay, betas: of AdamW; parameters of one dimension do not decay.
        warmup_epochs: linear warm-up, then a cosine to 0 at the end of the run; both by the step.
        pretrained: a checkpoint of this project or a published one, for the whole network.
        image_weights, audio_weights: MAE and AudioMAE checkpoints for the two encoders.
        branch_rise: encoders that start from such a file have their learning rate multiplied by half a cosine from 0
            to 1 over this part of the run.
        seed: of masks and dropped paths; each step and process draws its own from it.

    Raises:
        UserError: a checkpoint that cannot be read or does not fit.
    """

    def __init__(
        self,
        net: DeepAVFusion,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        image_mask_ratio: float = 0.75,
        audio_mask_ratio: float = 0.8,
        batch_size: int = 64,
        blr: float = 1.5e-4,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_epochs: float = 40,
        pretrained: str | None = None,
        image_weights: str | None = None,
        audio_weights: str | None = None,
        branch_rise: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.net = MaskedAutoencoder(net, decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.risen: list[str] = []  # encoders whose learning rate rises slowly
        if pretrained:
            say_once(str(load_mae(self.net, pretrained)))
        for branch, path in (("image", image_weights), ("audio", audio_weights)):
            if path:
                say_once(str(load_vit(getattr(net, branch), path)))
                self.risen.append(branch)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> MAEOutput:
        """Mask at random and reconstruct; the batch comes from the device transform."""
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
        losses = {"loss": out.loss, "loss_image": out.image_loss, "loss_audio": out.audio_loss}
        self.log_train({f"train/{name}": value for name, value in losses.items()}, len(batch))
        return out.loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Reconstruction losses of the test clips (loader 0), and the unmasked embeddings of both loaders."""
        if dataloader_idx == 0:
            generator = torch.Generator(device=batch.image.device).manual_seed(batch_idx)
            out = self(batch, generator)
            losses = {"loss": out.loss, "loss_image": out.image_loss, "loss_audio": out.audio_loss}
            self.log_dict(
                {f"val/{name}": value for name, value in losses.items()},
                batch_size=len(batch),
                add_dataloader_idx=False,
                sync_dist=True,
            )
        encoded = self.net.encoder(batch.image, batch.spectrogram)
        return {"embeddings": encoded.pooled()}

    def draw(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Pictures of the reconstruction with masks that are the same each time; see `MaskedAutoencoder.draw`."""
        assert batch.spectrogram is not None
        generator = torch.Generator(device=batch.image.device).manual_seed(0)
        return self.net.reconstruct(self(batch, generator), batch.image, batch.spectrogram)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        encoder = self.net.encoder
        branches = {"image_encoder": encoder.image, "audio_encoder": encoder.audio}

        def rise(group: Group, epoch: float, epochs: int) -> float:
            rises = group["branch"].removesuffix("_encoder") in self.risen
            return half_cosine_rise(epoch, self.hparams["branch_rise"] * epochs) if rises else 1.0

        return self.adamw(param_groups(self.net, self.hparams["weight_decay"], branches), rise)
