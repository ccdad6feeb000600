"""Frames to what the model sees: crops on the CPU in uint8, normalisation on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EVAL_RESIZE = 256 / 224  # shorter side before the centre crop, relative to the crop


def random_crop(image: Tensor, size: int, scale: tuple[float, float] = (0.5, 1.0)) -> Tensor:
    """Training view: RandomResizedCrop and flip, from torch's global generator.

    image uint8 [3, H, W] -> uint8 [3, size, size]
    """
    top, left, height, width = RandomResizedCrop.get_params(image, scale=list(scale), ratio=[3 / 4, 4 / 3])
    image = F.resized_crop(
        image, top, left, height, width, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return F.horizontal_flip(image) if torch.rand(()) < 0.5 else image


def centre_crop(image: Tensor, size: int) -> Tensor:
    """Evaluation view: shorter side to size · 256/224, then the centre.

    image uint8 [3, H, W] -> uint8 [3, size, size]
    """
    image = F.resize(image, [round(size * EVAL_RESIZE)], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return F.center_crop(image, [size, size])


class Normalise(nn.Module):
    """ImageNet's mean and standard deviation off the frames, and back on."""

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
