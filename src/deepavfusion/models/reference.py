"""The paper taken literally: what `deepavfusion.py`, `fusion.py` and `mae.py` compute, spelled out.

Executable documentation. Every patch is projected before the kept ones are selected, every token passes every layer it
is given to, and every pair of an image and an audio token exists in memory. The fast models skip outputs that no layer
uses and factorise attention over pairs (see fusion.py); outputs and gradients are the same. The tests compare the two,
`benchmark=model reference=true` times them; nothing else imports this file.

The fast classes declare the parameters, so a state dict fits both; none of their forward passes is used.
Read the functions from top to bottom: patches, ViT block, three kinds of fusion, encoder, decoder, loss.

Shapes: B clips · N image tokens · M audio tokens · F fusion tokens · K kept patches · H heads · D embedding dimension
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.fusion import CrossAttention, DenseAttention, FactorizedAttention, FusionBlock, TokenAttention
from deepavfusion.models.layers import Block, take_tokens
from deepavfusion.models.mae import MAEDecoder, MaskedAutoencoder, patch_targets
from deepavfusion.models.vit import ViT
from deepavfusion.types import EncoderOutput, PatchMask

# Patches and the ViT block ------------------------------------------------------------------------------------------


def embed_patches(vit: ViT, x: Tensor, keep: Tensor | None) -> Tensor:
    """x [B, C, rows, columns], keep [B, K] or None for all -> tokens [B, K or N, D]

    Literal: *every* patch is projected by the convolution and gets its position; then the kept ones are selected.
    """
    tokens = vit.patch_embed.proj(x).flatten(2).transpose(1, 2) + vit.pos_embed  # [B, N, D], row by row
    return tokens if keep is None else take_tokens(tokens, keep)


def vit_block(block: nn.Module, x: Tensor) -> Tensor:
    """Pre-norm self-attention and MLP over all given tokens: [B, N, D] -> [B, N, D]"""
    assert isinstance(block, Block)
    qkv = block.attn.qkv(block.norm1(x))  # [B, N, 3D], packed [q; k; v]
    q, k, v = qkv.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, N, D / H]
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, N, D]
    x = x + block.drop_path(block.attn.proj(attended))
    return x + block.drop_path(block.mlp(block.norm2(x)))


def modality_block(block: nn.Module, fusion: Tensor, tokens: Tensor) -> Tensor:
    """fusion [B, F, D], tokens [B, N, D] -> [B, N, D]   (paper, section 3.2)

    Literal: the ViT block runs over the concatenation, fusion tokens first, and *all* of them go through its norms,
    projections and MLP; only the modality's own outputs are kept.
    """
    return vit_block(block, torch.cat([fusion, tokens], dim=1))[:, fusion.shape[1] :]


# Fusion -------------------------------------------------------------------------------------------------------------


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float) -> Tensor:
    """Explicit softmax attention: query [B, F, d], key [B, S, d], value [B, S, d'] -> [B, F, d']"""
    v = value.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, H, S, ·]
    return (attention_weights(query, key, num_heads, scale) @ v).transpose(1, 2).flatten(2)


def attention_weights(query: Tensor, key: Tensor, num_heads: int, scale: float) -> Tensor:
    """Query [B, F, d], key [B, S, d] -> [B, H, F, S]"""
    q, k = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key))  # [B, H, F or S, ·]
    return (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)


def all_pairs(first: Tensor, second: Tensor) -> Tensor:
    """first [B, N, D], second [B, M, D] -> concat(first i, second j) for every i and j: [B, N · M, 2D]"""
    n, m = first.shape[1], second.shape[1]
    first = first.unsqueeze(2).expand(-1, -1, m, -1)  # [B, N, M, D]
    second = second.unsqueeze(1).expand(-1, n, -1, -1)  # [B, N, M, D]
    return torch.cat([first, second], dim=-1).flatten(1, 2)


def linear_in_pairs(layer: nn.Module, first: Tensor | None, second: Tensor | None) -> Tensor:
    """A layer, linear in concat(first i, second j), on all pairs -> [B, N · M, ·]

    Where one of them is None, on the other's tokens, by those columns of the weight -> [B, N or M, ·]
    """
    assert isinstance(layer, nn.Linear)
    if first is not None and second is not None:
        return layer(all_pairs(first, second))
    of_first, of_second = layer.weight.chunk(2, dim=1)
    if first is not None:
        return F.linear(first, of_first, layer.bias)
    assert second is not None
    return F.linear(second, of_second, layer.bias)


def factorized_attention(
    attn: FactorizedAttention, fusion: Tensor, image: Tensor | None, audio: Tensor | None
) -> Tensor:
    """fusion [B, F, D], image [B, N, D], audio [B, M, D] or None -> [B, F, D]   (paper, section 3.2)

    Two groups of fusion tokens aggregate one modality each. Literal: the third then attends to every *pair* of an
    image aggregate and an audio aggregate, with key and value linear in their concatenation. Of an absent modality
    there are no tokens to aggregate and no aggregates to attend to.
    """
    scale = (fusion.shape[-1] / attn.num_heads) ** -0.5  # parity: of the full width, though q and k are narrower
    mixed, image_group, audio_group = fusion.split(attn.num_tokens, dim=1)

    def aggregate(own: CrossAttention, group: Tensor, tokens: Tensor | None) -> Tensor | None:
        if tokens is None:
            return None
        key, value = own.kv(tokens).chunk(2, dim=-1)  # each like the tokens
        return own.proj(attention(own.q(group), key, value, own.num_heads, scale))

    image_aggregates = aggregate(attn.attn_v, image_group, image)  # [B, n_image, D]
    audio_aggregates = aggregate(attn.attn_a, audio_group, audio)  # [B, n_audio, D]

    key, value = (linear_in_pairs(layer, image_aggregates, audio_aggregates) for layer in (attn.k, attn.v))
    mixed = attention(attn.q(mixed), key, value, attn.num_heads, scale)  # over n_image · n_audio pairs
    changes = [attn.proj(mixed)]  # parity: proj acts on this group only
    for group, aggregates in ((image_group, image_aggregates), (audio_group, audio_aggregates)):
        changes.append(torch.zeros_like(group) if aggregates is None else aggregates)
    return torch.cat(changes, dim=1)


def dense_attention(attn: DenseAttention, fusion: Tensor, image: Tensor | None, audio: Tensor | None) -> Tensor:
    """fusion [B, F, D], image [B, N, D], audio [B, M, D] or None -> [B, F, D]   (paper, section 3.2)

    Literal: every fusion token attends to all N · M pairs of raw tokens; at 196 × 96 they are 18 816 a clip.
    """
    scale = (fusion.shape[-1] / attn.num_heads) ** -0.5  # parity: of the full width, though q and k are narrower
    pairs = linear_in_pairs(attn.kv, audio, image)  # parity: the audio token comes first
    key, value = pairs.chunk(2, dim=-1)  # each [B, M · N, D · attn_ratio]
    return attn.proj(attention(attn.q(fusion), key, value, attn.num_heads, scale))


def token_attention(attn: TokenAttention, fusion: Tensor, image: Tensor | None, audio: Tensor | None) -> Tensor:
    """fusion [B, F, D], image [B, N, D], audio [B, M, D] or None -> [B, F, D]   (a baseline of the paper)

    Every fusion token attends to the concatenation of both modalities.
    """
    query = attn.q(fusion)
    scale = (query.shape[-1] / attn.num_heads) ** -0.5
    tokens = torch.cat([x for x in (audio, image) if x is not None], dim=1)
    key, value = attn.kv(tokens).chunk(2, dim=-1)  # each [B, M + N, D · attn_ratio]
    return attn.proj(attention(query, key, value, attn.num_heads, scale))


LITERAL: dict[type[nn.Module], Callable[..., Tensor]] = {
    FactorizedAttention: factorized_attention,
    DenseAttention: dense_attention,
    TokenAttention: token_attention,
}


def pair_maps(
    query: Tensor, key: Tensor, num_heads: int, scale: float, sizes: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """query [B, F, d], key [B, n · m, d] of pairs -> the attention to each first and each second: [B, F, n], [B, F, m]

    Literal: the softmax over *all pairs*, mean over the heads, summed over the other of the two.
    """
    weights = attention_weights(query, key, num_heads, scale).mean(dim=1).unflatten(-1, sizes)  # [B, F, n, m]
    return weights.sum(dim=-1), weights.sum(dim=-2)


def factorized_maps(attn: FactorizedAttention, fusion: Tensor, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """-> the attention of the first group to each token of both modalities, [B, n_fusion, N], [B, n_fusion, M]

    Literal: to the pairs of aggregates, and from each aggregate to what it is made of.
    """
    scale = (fusion.shape[-1] / attn.num_heads) ** -0.5
    mixed, *groups = fusion.split(attn.num_tokens, dim=1)
    aggregates, made_of = [], []
    for own, group, tokens in zip((attn.attn_v, attn.attn_a), groups, (image, audio), strict=True):
        key, value = own.kv(tokens).chunk(2, dim=-1)
        aggregates.append(own.proj(attention(own.q(group), key, value, own.num_heads, scale)))
        made_of.append(attention_weights(own.q(group), key, own.num_heads, scale).mean(dim=1))  # [B, n_image, N]
    sizes = groups[0].shape[1], groups[1].shape[1]
    to_image, to_audio = pair_maps(attn.q(mixed), attn.k(all_pairs(*aggregates)), attn.num_heads, scale, sizes)
    return to_image @ made_of[0], to_audio @ made_of[1]


def dense_maps(attn: DenseAttention, fusion: Tensor, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """-> the attention to each token of both modalities, [B, F, N], [B, F, M]"""
    scale = (fusion.shape[-1] / attn.num_heads) ** -0.5
    key, _ = attn.kv(all_pairs(audio, image)).chunk(2, dim=-1)
    sizes = audio.shape[1], image.shape[1]
    to_audio, to_image = pair_maps(attn.q(fusion), key, attn.num_heads, scale, sizes)
    return to_image, to_audio


def token_maps(attn: TokenAttention, fusion: Tensor, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """-> the attention to each token of both modalities, [B, F, N], [B, F, M], which sum to 1 together"""
    query = attn.q(fusion)
    scale = (query.shape[-1] / attn.num_heads) ** -0.5
    keys = attn.kv(torch.cat([audio, image], dim=1)).chunk(2, dim=-1)[0]
    weights = attention_weights(query, keys, attn.num_heads, scale).mean(dim=1)
    return weights[..., audio.shape[1] :], weights[..., : audio.shape[1]]


LITERAL_MAPS: dict[type[nn.Module], Callable[..., tuple[Tensor, Tensor]]] = {
    FactorizedAttention: factorized_maps,
    DenseAttention: dense_maps,
    TokenAttention: token_maps,
}


def fusion_block(block: nn.Module, fusion: Tensor, image: Tensor | None, audio: Tensor | None) -> Tensor:
    """fusion [B, F, D], image [B, N, D], audio [B, M, D] or None, the *inputs* of the layer -> fusion [B, F, D]"""
    assert isinstance(block, FusionBlock)
    fusion = block.norm1_mm(fusion)  # parity: the residual starts from the normalised tokens
    norms = block.norm1_img, block.norm1_aud
    norm_image, norm_audio = reversed(norms) if block.exchange_norms else norms  # parity: exchanged in token fusion
    image = None if image is None else norm_image(image)
    audio = None if audio is None else norm_audio(audio)
    change = LITERAL[type(block.attn)](block.attn, fusion, image, audio)
    fusion = fusion + block.drop_path(change)
    return fusion + block.drop_path(block.mlp(block.norm2(fusion)))


class ReferenceDeepAVFusion(DeepAVFusion):
    """The encoder of the paper's section 3.2, literally.

    Arguments, parameters and `forward`: see `DeepAVFusion`; `checkpoint_layers` has no effect here.
    """

    def forward(
        self,
        image: Tensor | None,
        audio: Tensor | None,
        image_keep: Tensor | None = None,
        audio_keep: Tensor | None = None,
        return_layers: bool = False,
    ) -> EncoderOutput:
        """Encode a batch of clips, or the kept patches of each; see `DeepAVFusion.forward`.

        Literal: audio paired with n images is encoded n times. The tokens of an absent modality do not exist.
        """
        if image is not None and audio is not None:
            images = image.shape[0] // audio.shape[0]
            audio = audio.repeat_interleave(images, dim=0)
            audio_keep = None if audio_keep is None else audio_keep.repeat_interleave(images, dim=0)

        tokens: dict[str, Tensor] = {}  # of the modalities that are there
        if image is not None:
            tokens["image"] = embed_patches(self.image, image, image_keep)  # [B, N, D]
        if audio is not None:
            tokens["audio"] = embed_patches(self.audio, audio, audio_keep)  # [B, M, D]
        clips = next(iter(tokens.values())).shape[0]
        fusion = self.fusion_tokens.expand(clips, -1, -1)  # [B, F, D]
        layers: dict[str, list[Tensor]] = {"image": [], "audio": [], "fusion": []}
        for layer in range(self.depth):
            blocks = {"image": self.image.blocks[layer], "audio": self.audio.blocks[layer]}
            before = tokens
            if str(layer) in self.fusion_blocks:
                tokens = {name: modality_block(blocks[name], fusion, x) for name, x in before.items()}
                fusion = fusion_block(self.fusion_blocks[str(layer)], fusion, before.get("image"), before.get("audio"))
            else:
                tokens = {name: vit_block(blocks[name], x) for name, x in before.items()}
            for name, x in {**tokens, "fusion": fusion}.items():
                layers[name].append(x)
        found = {name: getattr(self, name).norm(x) for name, x in tokens.items()}
        streams = layers.values() if return_layers else ()
        return EncoderOutput(found.get("image"), found.get("audio"), self.fusion_norm(fusion), *streams)


# Masked pre-training ------------------------------------------------------------------------------------------------


def decode(decoder: MAEDecoder, tokens: Tensor, fusion: Tensor, mask: PatchMask) -> Tensor:
    """tokens [B, K, D] of the kept patches, fusion [B, F, D] -> all patches' pixels [B, N, pixels], in grid order

    Literal: mask tokens fill up the sequence, it is put back into the order of the grid and gets its positions; fusion
    tokens go first; every token passes every layer, and every patch is predicted.
    """
    mask_tokens = decoder.mask_token.expand(*mask.masked.shape, -1)  # [B, N − K, D']
    patches = torch.cat([decoder.embed(tokens), mask_tokens], dim=1)  # [B, N, D'], kept ones first
    grid_order = torch.cat([mask.keep, mask.masked], dim=1).argsort(dim=1)
    patches = take_tokens(patches, grid_order) + decoder.pos_embed
    x = torch.cat([decoder.embed(fusion), patches], dim=1)  # [B, F + N, D']
    for block in decoder.blocks:
        x = vit_block(block, x)
    return decoder.pred(decoder.norm(x[:, fusion.shape[1] :]))


def masked_loss(prediction: Tensor, target: Tensor, mask: PatchMask) -> Tensor:
    """prediction, target [B, N, pixels] -> the squared error's mean over the masked patches, a scalar"""
    error = (prediction - target).square().mean(dim=-1)  # [B, N]
    is_masked = torch.zeros_like(error).scatter(1, mask.masked, 1.0)
    return (error * is_masked).sum() / is_masked.sum()


class ReferenceMaskedAutoencoder(MaskedAutoencoder):
    """Masked pre-training of the paper's section 3.3, literally, around a `ReferenceDeepAVFusion`.

    Arguments, parameters and `forward`: see `MaskedAutoencoder`; the batch must not be empty.
    """

    def predict(self, stream: str, encoded: EncoderOutput, x: Tensor, mask: PatchMask) -> tuple[Tensor, Tensor]:
        """Literal: all patches are predicted, and those that were masked compared."""
        assert isinstance(self.encoder, ReferenceDeepAVFusion)
        prediction = decode(getattr(self, f"{stream}_decoder"), getattr(encoded, stream), encoded.fusion, mask)
        target = patch_targets(x, getattr(self.encoder, stream).patch_size)  # as prediction [B, N, p · p · channels]
        return take_tokens(prediction, mask.masked), masked_loss(prediction, target, mask)
