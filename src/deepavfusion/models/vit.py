"""The vision transformer, used once for the image and once for the spectrogram."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deepavfusion.models.layers import Block, PatchEmbed, init_linear, sincos_pos_embed, take_tokens


class ViT(nn.Module):
    """ViT encoder without class token, with a fixed sin-cos position embedding (as in MAE, He et al. 2022).

    `DeepAVFusion` runs its blocks one at a time, with fusion tokens as context; `forward` runs the ViT by itself.

    Args:
        input_size: rows and columns of the input, (224, 224) pixels or (128, 192) mel bands × frames.
        patch_size: side of the square patches.
        in_chans: 3 for images, 1 for spectrograms.
        embed_dim, depth, num_heads, mlp_ratio: the usual sizes.
        drop_path: rate of dropped residual branches, the same in every block.
    """

    def __init__(
        self,
        input_size: Sequence[int] = (224, 224),
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.in_chans, self.patch_size = in_chans, patch_size
        self.patch_embed = PatchEmbed((input_size[0], input_size[1]), patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(
            sincos_pos_embed(embed_dim, self.patch_embed.grid).unsqueeze(0), requires_grad=False
        )
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, drop_path, norm_eps=1e-6) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.apply(init_linear)

    @property
    def num_patches(self) -> int:
        return self.patch_embed.num_patches

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.patch_embed.grid

    def embed(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [B, C, rows, columns], keep [B, K] or None for all -> tokens with position [B, K or N, D]"""
        tokens = self.patch_embed(x, keep)
        return tokens + (self.pos_embed if keep is None else take_tokens(self.pos_embed, keep))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [B, C, rows, columns], keep [B, K] or None for all -> normalised tokens [B, K or N, D]"""
        tokens = self.embed(x, keep)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
