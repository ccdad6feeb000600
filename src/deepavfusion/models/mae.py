"""The masked autoencoder: an encoder that gets a quarter of each clip, two decoders that reconstruct the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.layers import Block, init_linear, patchify, sincos_pos_embed, take_tokens, unpatchify
from deepavfusion.models.vit import ViT
from deepavfusion.types import STREAMS, EncoderOutput, MAEOutput, PatchMask
from deepavfusion.utils.shared_rows import draw_rows


def random_patch_mask(
    batch_size: int,
    num_patches: int,
    ratio: float,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> PatchMask:
    """A random mask of patches for every clip, which decides what the encoder gets in pre-training.

    int(num_patches · (1 − ratio)) patches are kept. (Other masks: of a source in a spectrogram, see
    `separator.target_mask`; the pixel labels of segmentation data, see `segmenter.pixel_loss`.)
    """

    def noise(rows: int) -> Tensor:
        return torch.rand(rows, num_patches, device=device, generator=generator)

    # A generator of the caller's is for these clips alone.
    order = (draw_rows(noise, batch_size) if generator is None else noise(batch_size)).argsort(dim=1)
    num_kept = int(num_patches * (1 - ratio))
    return PatchMask(keep=order[:, :num_kept], masked=order[:, num_kept:])


def patch_targets(x: Tensor, patch_size: int, normalise: bool = True) -> Tensor:
    """What a decoder has to predict: the pixels of each patch, ordered row, column, channel.

    Args:
        x: [B, C, rows · p, columns · p].
        normalise: zero mean and unit (unbiased) variance within each patch, as in MAE.

    Returns:
        [B, N, p · p · C]
    """
    patches = patchify(x, patch_size).permute(0, 1, 3, 4, 2).flatten(2)  # [B, N, p, p, C] -> [B, N, p · p · C]
    if normalise:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        patches = (patches - mean) / (variance + 1e-6).sqrt()
    return patches


class MAEDecoder(nn.Module):
    """Predicts the patches of one modality from the encoded kept patches and fusion tokens.

    Plain ViT blocks over concat(fusion tokens, all patches). The position embedding is trainable; fusion tokens have
    none. The last block computes outputs for the requested patches only: everything else serves it as context, and no
    later layer reads it.

    Args:
        vit: the modality's encoder; gives grid, patch size and channels.
        embed_dim, depth, num_heads: size of the decoder.
    """

    def __init__(self, vit: ViT, embed_dim: int = 512, depth: int = 8, num_heads: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(vit.embed_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.pos_embed = nn.Parameter(sincos_pos_embed(embed_dim, vit.grid).unsqueeze(0))  # parity: trainable
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, norm_eps=1e-5) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.pred = nn.Linear(embed_dim, vit.patch_size**2 * vit.in_chans)
        self.apply(init_linear)

    def forward(self, tokens: Tensor | None, fusion: Tensor, mask: PatchMask, all_patches: bool = False) -> Tensor:
        """Predict the masked patches, or all of them.

        Args:
            tokens: [B, K, D], encoded kept patches in the order of `mask.keep`; None: no patch was kept.
            fusion: [B, F, D], encoded fusion tokens.
            mask: which patches were kept.
            all_patches: predict the kept patches too.

        Returns:
            [B, P, pixels] in the order of `mask.masked`, or [B, N, pixels] in the order of the grid.
        """
        kept = take_tokens(self.pos_embed, mask.keep)
        if tokens is not None:
            kept = self.embed(tokens) + kept
        masked = self.mask_token + take_tokens(self.pos_embed, mask.masked)
        # Attention is permutation-equivariant and positions are already added, so there is no need to restore the grid
        # order: context first, requested patches last.
        x = torch.cat([self.embed(fusion), kept, masked], dim=1)
        num_context = fusion.shape[1] + (0 if all_patches else kept.shape[1])
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        context, x = x.split([num_context, x.shape[1] - num_context], dim=1)
        prediction = self.pred(self.norm(last(x, context=context)))
        if all_patches:
            prediction = take_tokens(prediction, torch.cat([mask.keep, mask.masked], dim=1).argsort(dim=1))
        return prediction


class MaskedAutoencoder(nn.Module):
    """Masked reconstruction of image and audio (Mo & Morgado, CVPR 2024, section 3.3).

    Args:
        encoder: the backbone.
        decoder_embed_dim, decoder_depth, decoder_num_heads: size of both decoders.
    """

    def __init__(
        self, encoder: DeepAVFusion, decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16
    ) -> None:
        super().__init__()
        self.encoder = encoder
        size = (decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.image_decoder = MAEDecoder(encoder.image, *size)
        self.audio_decoder = MAEDecoder(encoder.audio, *size)

    def forward(self, image: Tensor, audio: Tensor, image_mask: PatchMask, audio_mask: PatchMask) -> MAEOutput:
        """Encode the kept patches, predict the masked ones, compare.

        Args:
            image: [B, 3, H, W], ImageNet-normalised.
            audio: [B, 1, M, F], log10 power mel spectrogram.
            image_mask, audio_mask: from `random_patch_mask`. One of them may keep no patch: the encoder does without
                this modality, which is reconstructed from the fusion tokens.

        Returns:
            `MAEOutput`; `loss` is the sum of the two mean squared errors over masked patches. An empty batch has
            loss 0 and zero gradients.
        """
        encoded = self.encoder(
            image if image_mask.keep.shape[1] else None,
            audio if audio_mask.keep.shape[1] else None,
            image_keep=image_mask.keep,
            audio_keep=audio_mask.keep,
        )
        image_prediction, image_loss = self.predict("image", encoded, image, image_mask)
        audio_prediction, audio_loss = self.predict("audio", encoded, audio, audio_mask)
        loss = image_loss + audio_loss
        if len(encoded.tokens) < len(STREAMS):
            # Of parameters without a gradient, DDP waits for one, and an optimizer would do otherwise in one process.
            loss = loss + 0 * sum(p.flatten()[0] for p in self.parameters() if p.requires_grad)
        return MAEOutput(
            loss=loss,
            image_loss=image_loss,
            audio_loss=audio_loss,
            image_prediction=image_prediction,
            audio_prediction=audio_prediction,
            image_mask=image_mask,
            audio_mask=audio_mask,
            encoded=encoded,
        )

    def predict(self, stream: str, encoded: EncoderOutput, x: Tensor, mask: PatchMask) -> tuple[Tensor, Tensor]:
        """Predict the masked patches of "image" or "audio", the input x: predictions in normalised units, and loss."""
        decoder, patch_size = getattr(self, f"{stream}_decoder"), getattr(self.encoder, stream).patch_size
        prediction = decoder(getattr(encoded, stream), encoded.fusion, mask)
        target = take_tokens(patch_targets(x, patch_size), mask.masked)
        return prediction, F.mse_loss(prediction, target, reduction="sum") / max(prediction.numel(), 1)

    def reconstruct(self, out: MAEOutput, image: Tensor, audio: Tensor) -> dict[str, dict[str, Tensor]]:
        """Which part of the input the encoder did not get, and the decoders' predictions in units of the input.

        Args:
            out: of `forward` on the same input.
            image, audio: the input.

        Returns:
            {"image", "audio"} -> {"hidden": bool [B, 1, rows, columns], the pixels of masked patches; "reconstructed":
            the input with predicted patches in their place}. Predictions are of normalised patches; they get mean and
            variance of the true ones, as is usual for MAE figures.
        """
        return {
            "image": self._reconstruct(out.image_prediction, image, self.encoder.image, out.image_mask),
            "audio": self._reconstruct(out.audio_prediction, audio, self.encoder.audio, out.audio_mask),
        }

    def _reconstruct(self, prediction: Tensor, x: Tensor, vit: ViT, mask: PatchMask) -> dict[str, Tensor]:
        patches = patch_targets(x, vit.patch_size, normalise=False)
        variance, mean = torch.var_mean(take_tokens(patches, mask.masked), dim=-1, keepdim=True)
        predicted = prediction.to(patches.dtype) * (variance + 1e-6).sqrt() + mean
        index = mask.masked.unsqueeze(-1).expand_as(predicted)
        is_masked = torch.zeros_like(patches[..., :1]).scatter(1, index[..., :1], 1.0)
        size = vit.patch_size
        hidden = unpatchify(is_masked.unsqueeze(-1).expand(-1, -1, size, size).unsqueeze(2), vit.grid)
        filled = patches.scatter(1, index, predicted).unflatten(2, (size, size, vit.in_chans))
        return {"hidden": hidden > 0, "reconstructed": unpatchify(filled.permute(0, 1, 4, 2, 3), vit.grid)}
