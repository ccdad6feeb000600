"""The backbone: two ViTs that exchange information through fusion tokens from the first layer on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepavfusion.models.fusion import FUSION_ATTENTION, FusionBlock
from deepavfusion.models.vit import ViT
from deepavfusion.types import EncoderOutput
from deepavfusion.utils.errors import UserError

Streams = tuple[Tensor | None, Tensor | None, Tensor]
"""Image, audio and fusion tokens, [B, N, D] each; None: the modality is absent."""


class DeepAVFusion(nn.Module):
    """DeepAVFusion encoder (Mo & Morgado, CVPR 2024, section 3.2).

    Layer ℓ reads the three streams of layer ℓ−1 and writes all three: image tokens attend to {fusion, image}, audio
    tokens to {fusion, audio}, fusion tokens to both modalities by the chosen fusion block. A modality may be absent:
    nothing is computed for it then, and nothing of it is seen.

    Args:
        image, audio: the two encoders, of equal embed_dim and depth.
        fusion: "factorized" (the paper's), "dense" or "token".
        fusion_layers: "all", "none", "last_half", "last", or the list of layers that fuse. A layer without fusion runs
            the two ViT blocks alone and passes the fusion tokens on.
        num_fusion_tokens: sizes of the groups (fusion, image aggregates, audio aggregates).
        fusion_num_heads: heads of the fusion attention; None: as many as the encoders have.
        fusion_attn_ratio: width of the fusion attention relative to embed_dim.
        fusion_mlp_ratio: hidden width of the fusion MLP relative to embed_dim.
        drop_path: rate of dropped residual branches of the fusion blocks.
        checkpoint_layers: activation checkpointing: in training, keep only each layer's inputs and recompute the layer
            in the backward pass; less memory for about a third more time.

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
        checkpoint_layers: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_layers = checkpoint_layers
        dim, depth = image.embed_dim, image.depth
        if (audio.embed_dim, audio.depth) != (dim, depth):  # surplus audio layers would be ignored silently
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
        self.num_fusion_tokens = groups
        self.fusion_tokens = nn.Parameter(torch.randn(1, sum(groups), dim) * 0.02)
        sizes = (dim, fusion_num_heads or image.num_heads, fusion_attn_ratio, fusion_mlp_ratio, groups)
        layers = _layer_list(fusion_layers, depth)
        self.fusion_blocks = nn.ModuleDict({str(layer): FusionBlock(fusion, *sizes, drop_path) for layer in layers})
        self.fusion_norm = nn.LayerNorm(dim)

    def forward(
        self,
        image: Tensor | None,
        audio: Tensor | None,
        image_keep: Tensor | None = None,
        audio_keep: Tensor | None = None,
        return_layers: bool = False,
    ) -> EncoderOutput:
        """Encode a batch of clips, or the kept patches of each.

        Args:
            image: [B, 3, H, W], ImageNet-normalised; None: the clips have only audio.
            audio: [B / n, 1, M, F], log10 power mel spectrogram; None: they have only an image. With n > 1, each is
                paired with n consecutive images; layers before the first fusion, which do not depend on the image, run
                once for all n.
            image_keep, audio_keep: [B, K] and [B / n, K] indices of the patches to encode; None: all.
            return_layers: also return the output of every layer.

        Returns:
            `EncoderOutput`; tokens in the order of the keep indices (of the grid, row by row, where None).
        """
        image_tokens = None if image is None else self.image.embed(image, image_keep)
        audio_tokens = None if audio is None else self.audio.embed(audio, audio_keep)
        present = image_tokens if audio_tokens is None else audio_tokens
        assert present is not None, "image and audio are both None"
        images = _images(image_tokens, audio_tokens)  # for each audio
        clips = images * present.shape[0]
        assert image is None or image.shape[0] == clips, (image.shape, present.shape)
        fusion = self.fusion_tokens.expand(clips, -1, -1)
        layers: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for layer in range(self.depth):
            run = self._checkpointed if self.checkpoint_layers and self.training else self._layer
            image_tokens, audio_tokens, fusion = run(layer, image_tokens, audio_tokens, fusion)
            images = _images(image_tokens, audio_tokens)  # 1 from the first fusion on
            if return_layers:
                for stream, tokens in zip(layers, (image_tokens, _repeat(audio_tokens, images), fusion), strict=True):
                    stream += [] if tokens is None else [tokens]
        audio_tokens = _repeat(audio_tokens, images)
        return EncoderOutput(
            None if image_tokens is None else self.image.norm(image_tokens),
            None if audio_tokens is None else self.audio.norm(audio_tokens),
            self.fusion_norm(fusion),
            *layers,
        )

    def attention_maps(self, image: Tensor, audio: Tensor) -> dict[str, Tensor]:
        """How much the fusion tokens of the last fusion layer attend to each patch, mean over tokens and heads.

        Args:
            image, audio: see `forward`, as many of one as of the other.

        Returns:
            {"image": [B, N], "audio": [B, M]}, multiples of even attention: 1 where they attend to all alike.

        Raises:
            UserError: no layer fuses, or this kind of fusion has no `attention_maps`.
        """
        if not self.fusion_blocks:
            raise UserError("there is no attention of fusion tokens: model.net.fusion_layers is none.")
        layer = max(map(int, self.fusion_blocks))
        block = self.fusion_blocks[str(layer)]
        assert isinstance(block, FusionBlock)
        attention_maps: Any = getattr(block.attn, "attention_maps", None)
        if attention_maps is None:
            raise UserError(f"{type(block.attn).__name__} has no attention_maps; models/fusion.py says how to add one.")
        fusion = self.fusion_tokens.expand(image.shape[0], -1, -1)
        streams: Streams = (self.image.embed(image), self.audio.embed(audio), fusion)
        for before in range(layer):
            streams = self._layer(before, *streams)
        image_tokens, audio_tokens, fusion = streams
        maps = attention_maps(*block.normalise(fusion, image_tokens, audio_tokens))
        return {stream: found.mean(dim=1) for stream, found in zip(("image", "audio"), maps, strict=True)}

    def _layer(self, layer: int, image: Tensor | None, audio: Tensor | None, fusion: Tensor) -> Streams:
        """The three streams after a layer. Audio shared by several images is repeated at the first fusion."""
        image_block, audio_block = self.image.blocks[layer], self.audio.blocks[layer]
        if str(layer) not in self.fusion_blocks:
            return None if image is None else image_block(image), None if audio is None else audio_block(audio), fusion
        images = _images(image, audio)
        # Shared audio (images > 1) occurs up to the first fusion only. Until then all rows of `fusion` are the same
        # learned tokens, so any B / n of them serve as context.
        next_audio = None if audio is None else audio_block(audio, context=fusion[: audio.shape[0]])
        next_fusion = self.fusion_blocks[str(layer)](fusion, image, _repeat(audio, images))
        next_image = None if image is None else image_block(image, context=fusion)
        return next_image, _repeat(next_audio, images), next_fusion

    def _checkpointed(self, *streams: Any) -> Streams:
        return checkpoint(self._layer, *streams, use_reentrant=False)


def _images(image: Tensor | None, audio: Tensor | None) -> int:
    """How many images share each audio; that it is one of each is known for any batch, as the export needs it."""
    if image is None or audio is None or image.shape[0] == audio.shape[0]:
        return 1
    return image.shape[0] // max(audio.shape[0], 1)


def _repeat(tokens: Tensor | None, times: int) -> Tensor | None:
    """[B / n, N, D] -> [B, N, D], each n times in a row"""
    return tokens if tokens is None or times == 1 else tokens.repeat_interleave(times, dim=0)


def _layer_list(fusion_layers: str | Sequence[int], depth: int) -> list[int]:
    if isinstance(fusion_layers, str):
        last_half = list(range(depth - depth // 2, depth))
        choices = {"all": list(range(depth)), "last_half": last_half, "last": [depth - 1], "none": []}
        if fusion_layers in choices:
            return choices[fusion_layers]
    elif all(isinstance(layer, int) and 0 <= layer < depth for layer in fusion_layers):  # others would never run
        return sorted(set(fusion_layers))
    raise UserError(
        f"model.net.fusion_layers is {fusion_layers!r}: expected all, none, last_half, last, or a list of layers from "
        f"0 to {depth - 1}."
    )
