"""The separator: which part of a mixture's spectrogram belongs to the source that the image shows.

A U-Net on the audio tokens of five encoder layers, conditioned on the image tokens of the last (Mo & Morgado,
CVPR 2024, section 3.4). With early fusion the encoder's audio tokens depend on the image, so it runs once for every
image of a mixture, except for the audio layers before the first fusion.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.layers import init_linear
from deepavfusion.models.unet import DoubleConv, Level, beside, init_convolutions, init_unet, on_grid, spread_layers
from deepavfusion.types import EncoderOutput
from deepavfusion.utils.errors import UserError

LEVELS = 4  # above the bottom, each of twice the resolution: from 16-pixel patches back to pixels

MaskKind = Literal["ratio", "binary", "dominant"]
Init = Literal["torch", "kaiming"]


class SeparationHead(nn.Module):
    """Maps audio tokens of five layers and image tokens of the last to the logits of a mask.

    Args:
        dim: width of the encoder.
        depth: of the encoder.
        grid: of the audio tokens, mel bands × frames.
        width: channels of the bottom; the levels above have width/2, /4, /8 and /16. None: dim, as published.
        init: of the transposed convolutions and the bias of the last one. "torch": its defaults, as published;
            "kaiming": as all other convolutions, without bias.
    """

    def __init__(
        self, dim: int, depth: int, grid: tuple[int, int], width: int | None = None, init: Init = "torch"
    ) -> None:
        super().__init__()
        self.grid, self.layers = grid, spread_layers(depth, LEVELS + 1)
        width = dim if width is None else width
        if width % 2**LEVELS or width < 1:
            raise UserError(
                f"the separator halves its channels {LEVELS} times and starts with {width}: set model.head_dim, or "
                f"model.net.image.embed_dim where that is null, to a multiple of {2**LEVELS}."
            )
        widths = [width // 2**level for level in range(LEVELS + 1)]
        self.image_norm = nn.LayerNorm(dim)
        self.audio_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.layers)  # first layer to last
        self.conditions = nn.ModuleList(nn.Linear(dim, channels) for channels in widths)  # bottom to top
        self.bottom = DoubleConv(dim + width, width)
        self.levels = nn.ModuleList(
            Level(below, dim, 2**n, up=channels, lateral=channels, channels=channels)
            for n, (below, channels) in enumerate(pairwise(widths), 1)
        )
        self.predict = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.apply(init_unet if init == "kaiming" else init_convolutions)
        self.apply(init_linear)

    def forward(self, encoded: EncoderOutput) -> Tensor:
        """Output of an encoder with all its layers -> mask logits [B, 1, M, F]"""
        maps = [
            on_grid(norm(encoded.audio_layers[layer]), self.grid)
            for norm, layer in zip(self.audio_norms, self.layers, strict=True)
        ]
        image = self.image_tokens(encoded).mean(dim=1)  # [B, D]
        bottom, *conditions = (condition(image) for condition in self.conditions)
        x = self.bottom(beside(maps[:1], bottom))
        for level, layer, condition in zip(self.levels, maps[1:], conditions, strict=True):
            x = level(x, layer, condition)
        return self.predict(x)

    def image_tokens(self, encoded: EncoderOutput) -> Tensor:
        """The tokens [B, N, D] whose mean is the condition."""
        return self.image_norm(encoded.image_layers[-1])


class Separator(nn.Module):
    """Backbone and head.

    Args:
        encoder: the backbone.
        head_dim, head_init: see `SeparationHead`.
    """

    def __init__(self, encoder: DeepAVFusion, head_dim: int | None = None, head_init: Init = "torch") -> None:
        super().__init__()
        if encoder.audio.patch_size != 2**LEVELS:
            raise UserError(
                f"the separator doubles its resolution {LEVELS} times, so it needs model.net.audio.patch_size="
                f"{2**LEVELS}, not {encoder.audio.patch_size}."
            )
        self.encoder = encoder
        self.head = SeparationHead(encoder.embed_dim, encoder.depth, encoder.audio.grid, head_dim, head_init)

    def encode(self, image: Tensor, mixture: Tensor) -> EncoderOutput:
        """The head's input; arguments as for `forward`."""
        return self.encoder(image, mixture, return_layers=True)

    def forward(self, image: Tensor, mixture: Tensor) -> Tensor:
        """Which part of a mixture belongs to each image.

        Args:
            image: [B, 3, H, W], ImageNet-normalised.
            mixture: [B / n, 1, M, F], log10 power mel; each is paired with n consecutive images.

        Returns:
            Mask logits [B, 1, M, F].
        """
        return self.head(self.encode(image, mixture))


def target_mask(source: Tensor, mixture: Tensor, kind: MaskKind = "ratio") -> Tensor:
    """The training target of the separator: the mask of a source in the spectrogram of a mixture.

    Args:
        source: [B, 1, M, F] power of the source.
        mixture: [B, 1, M, F] power of the mixture.
        kind: "ratio": source / (source + mixture); "binary": source > mixture; both as published. "dominant": source >
            the sum of the others, estimated as mixture − source.

    Returns:
        [B, 1, M, F] in 0…1.
    """
    if kind == "ratio":
        # parity: the mixture already contains the source, which therefore counts twice: the mask stays below ½
        return (source / (source + mixture + 1e-5)).clamp(0, 1)
    return (source > (mixture if kind == "binary" else mixture - source)).to(source.dtype)


def mask_loss(logits: Tensor, target: Tensor, mixture: Tensor | None = None) -> Tensor:
    """Binary cross entropy of mask logits; given a mixture's power, positions are weighted by log(1 + power).

    The mean over all positions; 0 for none.
    """
    weight = None if mixture is None else mixture.log1p().clamp(1e-3, 10)
    return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / max(logits.numel(), 1)
