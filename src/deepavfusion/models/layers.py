"""Building blocks of every stream: patches, position embedding, attention with context, the pre-norm block.

Shape suffixes: B clips · N tokens · C context tokens · H heads · D embedding dimension · K width of one head.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.utils.shared_rows import draw_rows


def sincos_pos_embed(dim: int, grid: tuple[int, int]) -> Tensor:
    """The fixed 2-D position embedding of MAE (He et al. 2022): [rows · columns, dim], rows first.

    The first half of the dimensions encodes the column, the second half the row, each as [sin, cos].
    """
    assert dim % 4 == 0, f"position embedding needs dim divisible by 4, got {dim}"
    # angle(position, i) = position · 10000^(−i / (dim / 4)), i = 0 … dim/4 − 1; in float64, as the published values
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    angles = [position.reshape(-1, 1) * frequency for position in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).to(
        torch.get_default_dtype()
    )


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Gather by index: tokens [B, N, D] (or [1, N, D], shared by all clips), ids [B, n] -> [B, n, D]"""
    index = ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.expand(ids.shape[0], -1, -1).gather(1, index)


def split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    """[B, N, D] -> [B, H, N, K]"""
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x_BHNK: Tensor) -> Tensor:
    """[B, H, N, K] -> [B, N, D]"""
    return x_BHNK.transpose(1, 2).flatten(2)


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """[B, C, rows · p, columns · p] -> [B, rows · columns, C, p, p]"""
    p = patch_size
    x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, rows, p, columns, p]
    return x.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [B, rows · columns, C, p, p]


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, rows · columns, C, p, p] -> [B, C, rows · p, columns · p]"""
    x = patches.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)  # [B, C, rows, p, columns, p]
    return x.flatten(4, 5).flatten(2, 3)


class PatchEmbed(nn.Module):
    """Square patches, linearly projected. Kept patches are gathered *before* the projection, so that masked ones (75 %
    in pre-training) are never projected.
    """

    def __init__(self, input_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.input_size = (input_size[0], input_size[1])
        self.grid = (input_size[0] // patch_size, input_size[1] // patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        # A Conv2d, so that published weights fit by name and shape; applied as a linear layer.
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        # parity: the weight is initialised like a linear layer's, the bias by Conv2d's default
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [B, C, rows · p, columns · p], keep [B, K] or None for all -> [B, K or N, D]"""
        assert x.shape[2:] == self.input_size, f"expected {self.input_size}, got {tuple(x.shape[2:])}"
        patches = patchify(x, self.patch_size).flatten(2)
        if keep is not None:
            patches = take_tokens(patches, keep)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention in which further *context* tokens can be attended to.

    The same result as self-attention over concat(context, x) cut to x. Context tokens provide keys and values only:
    their own outputs are not computed, since no later layer uses them.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"dim {dim} is not divisible by {num_heads} heads"
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # packed [q; k; v]
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, N, D], context [B, C, D] -> [B, N, D]"""
        q_BND, k_BND, v_BND = self.qkv(x).chunk(3, dim=-1)
        if context is not None:
            dim = x.shape[-1]  # rows from dim on project keys and values
            context_k, context_v = F.linear(context, self.qkv.weight[dim:], self.qkv.bias[dim:]).chunk(2, dim=-1)
            k_BND, v_BND = torch.cat([context_k, k_BND], dim=1), torch.cat([context_v, v_BND], dim=1)
        q, k, v = (split_heads(t, self.num_heads) for t in (q_BND, k_BND, v_BND))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class DropPath(nn.Module):
    """Drops residual branches of whole rows at random in training (stochastic depth).

    As timm's, but the same rows for any number of processes, see `draw_rows`.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """[B, …] -> [B, …]"""
        if self.drop_prob == 0 or not self.training:
            return x
        keep, ones = 1 - self.drop_prob, (1,) * (x.ndim - 1)
        return x * draw_rows(lambda rows: x.new_empty((rows, *ones)).bernoulli_(keep), len(x)).div(keep)


class Block(nn.Module):
    """Pre-norm transformer block (attention, then MLP) with optional context tokens."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, N, D], context [B, C, D] -> [B, N, D]"""
        context = None if context is None else self.norm1(context)
        x = x + self.drop_path(self.attn(self.norm1(x), context))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer; use with `module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
