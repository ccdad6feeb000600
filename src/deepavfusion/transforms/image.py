"""From frames to what the network sees: views on the CPU in uint8, normalisation on the device.

A view is given in fractions of the frame, so it shows the same part of a frame and of its mask, of a raw frame and of
a smaller packed one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EVAL_ZOOM = 256 / 224  # shorter side of the frame, relative to the square that evaluation sees


@dataclass(frozen=True)
class View:
    """A part of a frame: its edges as fractions of width and height, 0…1, and whether it is mirrored."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    flip: bool = False

    def of(self, frame: Image.Image, size: int) -> Tensor:
        """What it shows of a frame, antialiased. RGB -> uint8 [3, size, size]"""
        pixels = self._cut(frame, size, Image.Resampling.BILINEAR)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def of_mask(self, mask: Image.Image, size: int) -> Tensor:
        """The same part of a mask; values are never mixed. uint8 -> uint8 [size, size]"""
        return torch.from_numpy(self._cut(mask, size, Image.Resampling.NEAREST))

    def _cut(self, frame: Image.Image, size: int, filter: Image.Resampling) -> np.ndarray:
        width, height = frame.size
        box = (self.left * width, self.top * height, self.right * width, self.bottom * height)
        cut = frame.resize((size, size), filter, box=box)
        return np.array(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else cut)


def random_view(height: int, width: int, scale: tuple[float, float] = (0.5, 1.0)) -> View:
    """Training: as torchvision's RandomResizedCrop (aspect ratio 3/4 … 4/3) and flip, from torch's global generator.

    Args:
        height, width: of the frame; only their ratio matters.
        scale: range of the part of the area that is shown.
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = height * width * _uniform(*scale)
        ratio = math.exp(_uniform(low, high))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = _uniform(0, width - w), _uniform(0, height - h)
            break
    else:  # a frame so elongated that no part of that area fits: the middle
        w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
        left, top = (width - w) / 2, (height - h) / 2
    return View(left / width, top / height, (left + w) / width, (top + h) / height, flip=_uniform(0, 1) < 0.5)


def centre_view(height: int, width: int, zoom: float = EVAL_ZOOM) -> View:
    """Evaluation: the square in the middle whose side is the frame's shorter side divided by `zoom`."""
    side = min(height, width) / zoom
    x, y = side / width / 2, side / height / 2
    return View(0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class Normalise(nn.Module):
    """Normalises images by ImageNet's mean and standard deviation, and reverses it."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float [B, 3, H, W]"""
        return (image.float() / 255 - self.mean) / self.std

    def reverse(self, image: Tensor) -> Tensor:
        """float [B, 3, H, W] -> float [B, 3, H, W] in 0…1"""
        return (image * self.std + self.mean).clamp(0, 1)
