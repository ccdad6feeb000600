"""Frames to what the model sees: crops on the CPU in uint8, normalisation on the device."""

from __future__ import annotations

import torch
from torch import Tensor
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


def normalise(image: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float [B, 3, H, W] with ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(v, device=image.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.float() / 255 - mean) / std


def denormalise(image: Tensor) -> Tensor:
    """The reverse of `normalise`: float [B, 3, H, W] -> float [B, 3, H, W] in 0…1."""
    mean, std = (torch.tensor(v, device=image.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image * std + mean).clamp(0, 1)
