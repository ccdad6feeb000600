"""Fusion blocks: how the fusion tokens of a layer attend to the image and audio tokens of the layer before.

Three kinds (Mo & Morgado, CVPR 2024, section 3.2): `factorized`, the paper's, first aggregates each modality and
attends to all pairs of aggregates; `dense` attends to all pairs of raw tokens; `token` to the raw tokens themselves.

Attention over pairs factorises. Key and value of a pair (image token v_i, audio token a_j) are linear in
concat(v_i, a_j), hence sums of an image and an audio term. For a query q, up to the scale,

    k_ij = K_v v_i + K_a a_j          value_ij = V_v v_i + V_a a_j + b
    softmax_ij(q · k_ij) = exp(q · K_v v_i) exp(q · K_a a_j) / Σ_i'j' … = p_i r_j
        with p = softmax_i(q · K_v v_i) and r = softmax_j(q · K_a a_j), since the exponential of a sum is a product
    Σ_ij p_i r_j value_ij = Σ_i p_i V_v v_i + Σ_j r_j (V_a a_j + b), since Σ_i p_i = Σ_j r_j = 1

So N + M keys replace N · M pairs: two ordinary attentions, exactly. A key bias adds the same to every logit of a query
and cancels in the softmax. Where a modality is absent (None), the tokens of the other take the place of the pairs: its
sum is left out, and the other's gets b.

To add a kind:
1. Write an attention with the constructor and forward of `FactorizedAttention` and enter it in `FUSION_ATTENTION`.
   `model.net.fusion=<name>`, error messages and checkpoints of this project follow. Weights without a record (.pth) are
   recognised by the names and shapes of their parameters: of kinds with the same ones, the first is assumed.
2. For the tests and benchmark=model reference=true, enter a literal form in `LITERAL` of models/reference.py.
3. For the figure of attention in pre-training, give it an `attention_maps` (and a literal form in `LITERAL_MAPS`);
   without one, the figure is skipped.

Shape suffixes: B clips · N tokens · H heads · D embedding dimension · K width of one head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.models.layers import DropPath, Mlp, init_linear, merge_heads, split_heads


def attend(query_BND: Tensor, key_BND: Tensor, value_BND: Tensor, num_heads: int, scale: float) -> Tensor:
    """Multi-head attention on projected tokens; key and value may differ in width -> [B, N, width of value]"""
    q, k, v = (split_heads(t, num_heads) for t in (query_BND, key_BND, value_BND))
    return merge_heads(F.scaled_dot_product_attention(q, k, v, scale=scale))


def attention_weights(query_BND: Tensor, key_BMD: Tensor, num_heads: int, scale: float) -> Tensor:
    """The weights of `attend`, mean over the heads -> [B, N, M]; each row sums to 1"""
    q, k = (split_heads(t, num_heads) for t in (query_BND, key_BMD))
    return (q @ k.transpose(-2, -1) * scale).softmax(dim=-1).mean(dim=1)


class CrossAttention(nn.Module):
    """Attention of full width with queries from one set of tokens, keys and values from another."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim / num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)  # packed [k; v]
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x [B, N, D], tokens [B, M, D] -> [B, N, D]"""
        key, value = self.kv(tokens).chunk(2, dim=-1)
        return self.proj(attend(self.q(x), key, value, self.num_heads, self.scale))


class FactorizedAttention(nn.Module):
    """The paper's fusion: aggregate each modality into a few tokens, then attend to all pairs of aggregates.

    Args:
        dim: embedding dimension.
        num_heads: attention heads.
        attn_ratio: width of the pair attention's queries and keys, relative to dim.
        num_tokens: sizes of the three groups of fusion tokens, in their order (fusion, image, audio).
    """

    def __init__(self, dim: int, num_heads: int, attn_ratio: float, num_tokens: tuple[int, int, int]) -> None:
        super().__init__()
        width = int(dim * attn_ratio)
        self.num_heads, self.num_tokens = num_heads, num_tokens
        self.scale = (dim / num_heads) ** -0.5  # parity: of the full width, though q and k are narrower
        self.attn_v = CrossAttention(dim, num_heads)
        self.attn_a = CrossAttention(dim, num_heads)
        self.q = nn.Linear(dim, width)
        self.k = nn.Linear(2 * dim, width)
        self.v = nn.Linear(2 * dim, dim)
        self.proj = nn.Linear(dim, dim)  # parity: acts on the first group only
        # parity: the key bias cancels in the softmax. Published weights contain it; frozen, because DDP fails on
        # trainable parameters that get no gradient.
        self.k.bias.requires_grad_(False)

    def forward(self, fusion: Tensor, image: Tensor | None, audio: Tensor | None) -> Tensor:
        """fusion [B, n_fusion + n_image + n_audio, D], image [B, N, D], audio [B, M, D] or None -> like fusion

        The aggregates of an absent modality get nothing: zeros.
        """
        mixed, image_group, audio_group = fusion.split(self.num_tokens, dim=1)
        query = self.q(mixed)
        # Columns of the weights: the image half of concat(image, audio), then the audio half.
        key_image, key_audio = self.k.weight.chunk(2, dim=1)
        value_image, value_audio = self.v.weight.chunk(2, dim=1)

        def part(group: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
            return attend(query, F.linear(group, key), F.linear(group, value, bias), self.num_heads, self.scale)

        parts = []
        image_group = torch.zeros_like(image_group) if image is None else self.attn_v(image_group, image)
        audio_group = torch.zeros_like(audio_group) if audio is None else self.attn_a(audio_group, audio)
        if image is not None:
            parts.append(part(image_group, key_image, value_image, self.v.bias if audio is None else None))
        if audio is not None:
            parts.append(part(audio_group, key_audio, value_audio, self.v.bias))
        return torch.cat([self.proj(sum(parts)), image_group, audio_group], dim=1)

    def attention_maps(self, fusion: Tensor, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the first group's tokens over pairs, summed to a modality and followed through its aggregates
        to the tokens. Arguments as of `forward` -> [B, n_fusion, N], [B, n_fusion, M], multiples of even attention.
        """
        mixed, image_group, audio_group = fusion.split(self.num_tokens, dim=1)
        query, (key_image, key_audio) = self.q(mixed), self.k.weight.chunk(2, dim=1)

        def through(own: CrossAttention, group: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
            of_group = attention_weights(own.q(group), own.kv(tokens).chunk(2, dim=-1)[0], own.num_heads, own.scale)
            key = F.linear(own(group, tokens), weight)
            return attention_weights(query, key, self.num_heads, self.scale) @ of_group * tokens.shape[1]

        return through(self.attn_v, image_group, image, key_image), through(self.attn_a, audio_group, audio, key_audio)


class DenseAttention(nn.Module):
    """Every fusion token attends to all pairs of image and audio tokens.

    Args: as for `FactorizedAttention`; the groups are ignored.
    """

    def __init__(self, dim: int, num_heads: int, attn_ratio: float, num_tokens: tuple[int, int, int]) -> None:
        super().__init__()
        width = int(dim * attn_ratio)
        self.num_heads = num_heads
        self.scale = (dim / num_heads) ** -0.5  # parity: of the full width, though q and k are narrower
        self.q = nn.Linear(dim, width)
        self.kv = nn.Linear(2 * dim, 2 * width)  # packed [k; v]; parity: reads concat(audio token, image token)
        self.proj = nn.Linear(width, dim)

    def forward(self, fusion: Tensor, image: Tensor | None, audio: Tensor | None) -> Tensor:
        """fusion [B, F, D], image [B, N, D], audio [B, M, D] or None -> [B, F, D]"""
        query = self.q(fusion)
        # As above; the value bias again counts once, on the audio side if there is one, and the key bias cancels.
        weight_audio, weight_image = self.kv.weight.chunk(2, dim=1)
        parts = []
        for tokens, weight, bias in (
            (image, weight_image, self.kv.bias if audio is None else None),
            (audio, weight_audio, self.kv.bias),
        ):
            if tokens is not None:
                key, value = F.linear(tokens, weight, bias).chunk(2, dim=-1)
                parts.append(attend(query, key, value, self.num_heads, self.scale))
        return self.proj(sum(parts))

    def attention_maps(self, fusion: Tensor, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Attention over pairs, summed to a modality -> [B, F, N], [B, F, M], multiples of even attention."""
        query, (weight_audio, weight_image) = self.q(fusion), self.kv.weight.chunk(2, dim=1)

        def of(tokens: Tensor, weight: Tensor) -> Tensor:
            key = F.linear(tokens, weight).chunk(2, dim=-1)[0]
            return attention_weights(query, key, self.num_heads, self.scale) * tokens.shape[1]

        return of(image, weight_image), of(audio, weight_audio)


class TokenAttention(nn.Module):
    """Every fusion token attends to all image and audio tokens in one softmax.

    Args: as for `FactorizedAttention`; the groups are ignored.
    """

    def __init__(self, dim: int, num_heads: int, attn_ratio: float, num_tokens: tuple[int, int, int]) -> None:
        super().__init__()
        width = int(dim * attn_ratio)
        self.num_heads, self.scale = num_heads, (width / num_heads) ** -0.5
        self.q = nn.Linear(dim, width)
        self.kv = nn.Linear(dim, 2 * width)  # packed [k; v]
        self.proj = nn.Linear(width, dim)

    def forward(self, fusion: Tensor, image: Tensor | None, audio: Tensor | None) -> Tensor:
        """fusion [B, F, D], image [B, N, D], audio [B, M, D] or None -> [B, F, D]"""
        key, value = self.kv(torch.cat([x for x in (audio, image) if x is not None], dim=1)).chunk(2, dim=-1)
        return self.proj(attend(self.q(fusion), key, value, self.num_heads, self.scale))

    def attention_maps(self, fusion: Tensor, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """-> [B, F, N], [B, F, M], multiples of even attention to the tokens of both modalities"""
        tokens = torch.cat([image, audio], dim=1)
        key = self.kv(tokens).chunk(2, dim=-1)[0]
        weights = attention_weights(self.q(fusion), key, self.num_heads, self.scale) * tokens.shape[1]
        of_image, of_audio = weights.split([image.shape[1], audio.shape[1]], dim=-1)
        return of_image, of_audio


FUSION_ATTENTION: dict[str, type[nn.Module]] = {
    "factorized": FactorizedAttention,
    "dense": DenseAttention,
    "token": TokenAttention,
}


class FusionBlock(nn.Module):
    """One layer of fusion: norms, an attention of `FUSION_ATTENTION`, an MLP.

    Args:
        kind: a key of `FUSION_ATTENTION`.
        dim, num_heads, attn_ratio, num_tokens: see `FactorizedAttention`.
        mlp_ratio: hidden width of the MLP, relative to dim.
        drop_path: rate of dropped residual branches.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        num_heads: int,
        attn_ratio: float,
        mlp_ratio: float,
        num_tokens: tuple[int, int, int],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1_mm = nn.LayerNorm(dim)
        self.norm1_img = nn.LayerNorm(dim)
        self.norm1_aud = nn.LayerNorm(dim)
        self.attn = FUSION_ATTENTION[kind](dim, num_heads, attn_ratio, num_tokens)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        # parity: published token fusion was trained with the two modalities' norms exchanged
        self.exchange_norms = kind == "token"
        self.apply(init_linear)

    def forward(self, fusion: Tensor, image: Tensor | None, audio: Tensor | None) -> Tensor:
        """fusion [B, F, D], image [B, N, D], audio [B, M, D] or None, the *inputs* of the layer -> fusion [B, F, D]"""
        fusion, image, audio = self.normalise(fusion, image, audio)
        fusion = fusion + self.drop_path(self.attn(fusion, image, audio))
        return fusion + self.drop_path(self.mlp(self.norm2(fusion)))

    def normalise(
        self, fusion: Tensor, image: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the attention gets of the inputs of the layer, in the same order and shapes."""
        norm_image, norm_audio = self.norm1_img, self.norm1_aud
        if self.exchange_norms:
            norm_image, norm_audio = norm_audio, norm_image
        # parity: the residual starts from the normalised fusion tokens
        normed = [None if x is None else norm(x) for norm, x in ((norm_image, image), (norm_audio, audio))]
        return self.norm1_mm(fusion), normed[0], normed[1]
