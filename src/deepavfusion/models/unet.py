"""Parts of the U-Nets that turn tokens back into a dense map (separator.py, segmenter.py).

Letters: B clips · C channels · H×W positions of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def spread_layers(depth: int, count: int) -> list[int]:
    """`count` layers evenly from the first to the last: (12, 5) -> [0, 2, 5, 8, 11]"""
    return [n * (depth - 1) // (count - 1) for n in range(count)]


def on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, rows · columns, D] -> [B, D, rows, columns]"""
    return tokens.transpose(1, 2).unflatten(2, grid)


def beside(maps: Sequence[Tensor], condition: Tensor) -> Tensor:
    """Concatenate channels: maps [B, C_i, H, W] and a vector [B, C] at every position -> [B, ΣC_i + C, H, W]"""
    return torch.cat([*maps, condition[..., None, None].expand(-1, -1, *maps[0].shape[2:])], dim=1)


class DoubleConv(nn.Sequential):
    """(3×3 convolution without bias, BatchNorm, ReLU), twice."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class Level(nn.Module):
    """One step up: doubles the resolution, and concatenates an encoder layer and the condition at every position.

    Args:
        below: channels of the level below.
        dim: width of the encoder.
        factor: from the token grid to this level's resolution.
        up: channels of the enlarged level below.
        lateral: channels of the enlarged encoder layer, before its convolutions.
        channels: of the level, and of its condition.
    """

    def __init__(self, below: int, dim: int, factor: int, *, up: int, lateral: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, up, 2, stride=2)
        self.enlarge = nn.ConvTranspose2d(dim, lateral, factor, stride=factor)
        self.lateral = DoubleConv(lateral, channels)
        self.conv = DoubleConv(up + 2 * channels, channels)

    def forward(self, below: Tensor, layer: Tensor, condition: Tensor) -> Tensor:
        """below [B, below, H/2, W/2], layer [B, dim, rows, columns], condition [B, channels] -> [B, channels, H, W]"""
        return self.conv(beside([self.up(below), self.lateral(self.enlarge(layer))], condition))


def init_convolutions(module: nn.Module) -> None:
    """Kaiming-normal weights (fan-out) of ordinary convolutions, and no more, for `module.apply`."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def init_unet(module: nn.Module) -> None:
    """Kaiming-normal weights (fan-out) and zero biases of all convolutions, for `module.apply`."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
