"""The segmenter: which pixels of an image show the sounding objects.

A U-Net on the image tokens of four encoder layers, conditioned on the audio tokens of the last (Mo & Morgado,
CVPR 2024, section 3.4).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.layers import init_linear
from deepavfusion.models.unet import DoubleConv, Level, beside, init_unet, on_grid, spread_layers
from deepavfusion.types import EncoderOutput
from deepavfusion.utils.errors import UserError

LEVELS = 3  # above the bottom, each of twice the resolution; the predictor doubles it once more


class SegmentationHead(nn.Module):
    """Maps image tokens of four layers and audio tokens of the last to the logits of each pixel.

    Args:
        dim: width of the encoder.
        depth: of the encoder.
        grid: of the image tokens, rows × columns.
        num_classes: 1 for sounding or not; otherwise the classes, with the background as class 0.
        width: channels of the bottom; the levels above have width/2, /4 and /8. None: dim, as published.
        min_width: of a level and of the predictor, channels; published: 128.
    """

    def __init__(
        self, dim: int, depth: int, grid: tuple[int, int], num_classes: int, width: int | None, min_width: int
    ) -> None:
        super().__init__()
        self.grid, self.layers = grid, spread_layers(depth, LEVELS + 1)
        width = dim if width is None else width
        if width % 2**LEVELS or width < 1:
            raise UserError(
                f"the segmenter halves its channels {LEVELS} times and starts with {width}: set model.head_dim, or "
                f"model.net.image.embed_dim where that is null, to a multiple of {2**LEVELS}."
            )
        widths = [max(min_width, width // 2**level) for level in range(LEVELS + 1)]
        self.image_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.layers)  # first layer to last
        self.audio_projections = nn.ModuleList(nn.Linear(dim, channels) for channels in widths)  # bottom to top
        self.audio_norms = nn.ModuleList(nn.LayerNorm(channels) for channels in widths)
        self.bottom = DoubleConv(dim + widths[0], widths[0])
        self.levels = nn.ModuleList(
            Level(below, dim, 2**n, up=below // 2, lateral=width // 2**n, channels=channels)
            for n, (below, channels) in enumerate(pairwise(widths), 1)
        )
        self.predict = nn.Sequential(
            nn.Conv2d(widths[-1], min_width, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(min_width, num_classes, 3, padding=1),
        )
        self.apply(init_unet)
        self.apply(init_linear)

    def forward(self, encoded: EncoderOutput) -> Tensor:
        """Output of an encoder with all its layers -> logits [B, num_classes, 16 · rows, 16 · columns]"""
        bottom, *maps = (
            on_grid(norm(encoded.image_layers[layer]), self.grid)
            for norm, layer in zip(self.image_norms, self.layers, strict=True)
        )
        condition, *conditions = (
            norm(project(encoded.audio_layers[-1])).mean(dim=1)
            for project, norm in zip(self.audio_projections, self.audio_norms, strict=True)
        )
        x = self.bottom(beside([bottom], condition))
        for level, layer, condition in zip(self.levels, maps, conditions, strict=True):
            x = level(x, layer, condition)
        return self.predict(x)


class Segmenter(nn.Module):
    """Backbone and head.

    Args:
        encoder: the backbone.
        num_classes, head_dim, min_head_dim: see `SegmentationHead`.
    """

    def __init__(
        self, encoder: DeepAVFusion, num_classes: int = 1, head_dim: int | None = None, min_head_dim: int = 128
    ) -> None:
        super().__init__()
        if encoder.image.patch_size != 2 ** (LEVELS + 1):
            raise UserError(
                f"the segmenter doubles its resolution {LEVELS + 1} times, so it needs model.net.image.patch_size="
                f"{2 ** (LEVELS + 1)}, not {encoder.image.patch_size}."
            )
        self.encoder, self.num_classes = encoder, num_classes
        grid = encoder.image.grid
        self.head = SegmentationHead(encoder.embed_dim, encoder.depth, grid, num_classes, head_dim, min_head_dim)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Label each pixel.

        Args:
            image: [B, 3, H, W], ImageNet-normalised.
            audio: [B, 1, M, F], log10 power mel.

        Returns:
            Logits [B, num_classes, H, W]: for one class of a sigmoid ("sounding"), otherwise of a softmax.
        """
        return self.head(self.encoder(image, audio, return_layers=True))


def pixel_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of the pixels: binary for a single logit, otherwise over the classes.

    Args:
        logits: [B, C, H, W].
        mask: [B, H, W], the true class of each pixel, integer, 0…C−1; 0 or 1 for C = 1.

    Returns:
        The mean over all pixels; 0 for none.
    """
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], mask.to(logits.dtype), reduction="sum")
    else:
        loss = F.cross_entropy(logits, mask.long(), reduction="sum")
    return loss / max(mask.numel(), 1)


def probabilities(logits: Tensor) -> Tensor:
    """[B, C, H, W] logits -> [B, C, H, W] in 0…1"""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def decide(logits: Tensor) -> Tensor:
    """The class of each pixel: [B, C, H, W] logits -> uint8 [B, H, W]; for one logit 1 where it is above ½."""
    return (logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)).byte()
