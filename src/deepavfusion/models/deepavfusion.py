"""The backbone: two ViTs that exchange information through fusion tokens from the first layer on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepavfusion.models.fusion import FUSION_ATTENTION, FusionBlock
from deepavfusion.models.vit import ViT
from deepavfusion.types import EncoderOutput
from deepavfusion.utils.errors import UserError


class DeepAVFusion(nn.Module):
    """DeepAVFusion encoder (Mo & Morgado, CVPR 2024, section 3.2).

    Layer ℓ reads the three streams of layer ℓ−1 and writes all three: image tokens attend to {fusion, image}, audio
    tokens to {fusion, audio}, fusion tokens to both modalities by the chosen fusion block.

    Args:
        image, audio: the two encoders, of equal embed_dim and depth.
        fusion: "factorized" (the paper's), "dense" or "token".
        fusion_layers: "all", "none", or the list of layers that fuse. A layer without fusion runs the two ViT
            blocks alone and passes the fusion tokens on.
        num_fusion_tokens: sizes of the groups (fusion, image aggregates, audio aggregates).
        fusion_num_heads: heads of the fusion attention; None: as many as the encoders have.
        fusion_attn_ratio: width of the fusion attention relative to embed_dim.
        fusion_mlp_ratio: hidden width of the fusion MLP relative to embed_dim.
        drop_path: rate of dropped residual branches of the fusion blocks.

    Raises:
        UserError: unknown fusion, a layer that does not exist, encoders that do not match.
    """

    def __init__(
        self,
        image: ViT,
        audio: ViT,
        fusion: str = "factorized",
        fusion_layers: str | Sequence[int] = "all",
        num_fusion_tokens: Sequence[int] = (16, 8, 8),
        fusion_num_heads: int | None = None,
        fusion_attn_ratio: float = 0.25,
        fusion_mlp_ratio: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim, depth = image.embed_dim, image.depth
        if (audio.embed_dim, audio.depth) != (dim, depth):
            raise UserError(
                f"the image encoder has embed_dim {dim} and depth {depth}, the audio encoder {audio.embed_dim} and "
                f"{audio.depth}: give both the same (keys model.net.image and model.net.audio)."
            )
        if fusion not in FUSION_ATTENTION:
            raise UserError(f"model.net.fusion is {fusion!r}: choose one of {', '.join(FUSION_ATTENTION)}.")
        self.embed_dim, self.depth = dim, depth
        self.image, self.audio = image, audio
        groups = tuple(num_fusion_tokens)
        assert len(groups) == 3, f"num_fusion_tokens names three groups, got {groups}"
        self.fusion_tokens = nn.Parameter(torch.randn(1, sum(groups), dim) * 0.02)
        self.fusion_blocks = nn.ModuleDict(
            {
                str(layer): FusionBlock(
                    fusion,
                    dim,
                    fusion_num_heads or image.num_heads,
                    fusion_attn_ratio,
                    fusion_mlp_ratio,
                    groups,
                    drop_path,
                )
                for layer in _layer_list(fusion_layers, depth)
            }
        )
        self.fusion_norm = nn.LayerNorm(dim)

    def forward(
        self,
        image: Tensor,
        audio: Tensor,
        image_keep: Tensor | None = None,
        audio_keep: Tensor | None = None,
        return_layers: bool = False,
    ) -> EncoderOutput:
        """Encode a batch of clips, or the kept patches of each.

        Args:
            image: [B, 3, H, W], ImageNet-normalised.
            audio: [B / n, 1, M, F], log10 power mel spectrogram. With n > 1, each is heard with n pictures that follow
                each other; layers in which the sound does not know of the picture yet run once for all of them.
            image_keep, audio_keep: [B, K] and [B / n, K] patch indices to look at; None: all.
            return_layers: also return the output of every layer.

        Returns:
            `EncoderOutput`; tokens in the order of the keep indices (of the grid, row by row, where None).
        """
        image_tokens = self.image.embed(image, image_keep)
        audio_tokens = self.audio.embed(audio, audio_keep)
        fusion = self.fusion_tokens.expand(image.shape[0], -1, -1)
        pictures = image.shape[0] // max(audio.shape[0], 1)
        assert image.shape[0] == pictures * audio.shape[0], (image.shape, audio.shape)
        layers: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for layer, (image_block, audio_block) in enumerate(zip(self.image.blocks, self.audio.blocks, strict=True)):
            if str(layer) in self.fusion_blocks:
                # Until the first fusion the fusion tokens are the same for every clip, so any rows will do.
                heard = audio_block(audio_tokens, context=fusion[: audio_tokens.shape[0]])
                audio_tokens = _repeat(audio_tokens, pictures)
                image_tokens, audio_tokens, fusion = (
                    image_block(image_tokens, context=fusion),
                    _repeat(heard, pictures),
                    self.fusion_blocks[str(layer)](fusion, image_tokens, audio_tokens),
                )
                pictures = 1
            else:
                image_tokens, audio_tokens = image_block(image_tokens), audio_block(audio_tokens)
            if return_layers:
                for stream, tokens in zip(layers, (image_tokens, _repeat(audio_tokens, pictures), fusion), strict=True):
                    stream.append(tokens)
        audio_tokens = _repeat(audio_tokens, pictures)
        return EncoderOutput(
            self.image.norm(image_tokens), self.audio.norm(audio_tokens), self.fusion_norm(fusion), *layers
        )


def _repeat(tokens: Tensor, times: int) -> Tensor:
    """[B / n, N, D] -> [B, N, D], each n times in a row"""
    return tokens if times == 1 else tokens.repeat_interleave(times, dim=0)


def _layer_list(fusion_layers: str | Sequence[int], depth: int) -> list[int]:
    if isinstance(fusion_layers, str):
        choices = {"all": list(range(depth)), "none": []}
        if fusion_layers in choices:
            return choices[fusion_layers]
    elif all(isinstance(layer, int) and 0 <= layer < depth for layer in fusion_layers):
        return sorted(set(fusion_layers))
    raise UserError(
        f"model.net.fusion_layers is {fusion_layers!r}: expected all, none, or a list of layers from 0 to {depth - 1}."
    )
