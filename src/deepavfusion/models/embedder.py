"""All embeddings of a clip that the backbone gives: by stream, by group of fusion tokens, by fusion token."""

from __future__ import annotations

from torch import Tensor, nn

from deepavfusion.models.deepavfusion import DeepAVFusion

PASSES = {"": ("image", "audio"), "_of_image": ("image",), "_of_audio": ("audio",)}
"""Ending of the fusion streams of a pass -> the modalities that it is given."""
GROUPS = ("mixed_group", "image_group", "audio_group")
"""The fusion tokens that attend to pairs, and the aggregates of each modality."""


class Embedder(nn.Module):
    """The mean tokens of the joint pass and of the two unimodal ones, which have not seen the other modality.

    - types: `image`, `audio`, `fusion` of the joint pass; `solo_image`, `solo_audio`, `fusion_of_image`,
      `fusion_of_audio` of the unimodal ones
    - groups of fusion tokens: `mixed_group`, `image_group`, `audio_group`, with `_of_image` and `_of_audio` of the
      unimodal passes
    - single fusion tokens: `token_00`, …, likewise

    Args:
        encoder: the backbone.
    """

    def __init__(self, encoder: DeepAVFusion) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def kinds(self) -> dict[str, str]:
        """Name of each embedding, in the order of `forward` -> "type", "group" or "token"."""
        tokens = range(sum(self.encoder.num_fusion_tokens))
        found: dict[str, str] = {}
        for ending, present in PASSES.items():
            found |= dict.fromkeys((f"solo_{name}" if ending else name for name in present), "type")
            found[f"fusion{ending}"] = "type"
            found |= dict.fromkeys((f"{group}{ending}" for group in GROUPS), "group")
            found |= dict.fromkeys((f"token_{n:02}{ending}" for n in tokens), "token")
        return found

    def forward(self, image: Tensor, audio: Tensor) -> dict[str, Tensor]:
        """image [B, 3, H, W], audio [B, 1, M, F], as of the encoder -> name: [B, embed_dim]"""
        rows: list[Tensor] = []
        for present in PASSES.values():
            out = self.encoder(image if "image" in present else None, audio if "audio" in present else None)
            groups = out.fusion.split(self.encoder.num_fusion_tokens, dim=1)
            rows += out.pooled().values()
            rows += [group.mean(dim=1) for group in groups]
            rows += out.fusion.unbind(dim=1)
        return dict(zip(self.kinds, rows, strict=True))
