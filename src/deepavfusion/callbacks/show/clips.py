"""What the callbacks share that show clips: their classes, a title, the conversion of images and audio."""

from __future__ import annotations

from typing import Any

import matplotlib
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from deepavfusion.transforms.image import Normalise

QUIET, LOUD = -6.0, 2.0  # log10 power of the darkest and the brightest colour


def classes_of(trainer: Trainer) -> list[str]:
    """Class names of the data module, if it has any."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    return getattr(datamodule, "classes", [])


def shown_clips(pl_module: LightningModule, kind: str = "test clips") -> str:
    """What is in a figure, for its title: test clips; or that they are generated, as a demo's numbers mean little."""
    record: dict[str, Any] = getattr(pl_module, "record", {})
    return f"generated {kind} (demo)" if record.get("data", {}).get("demo") else kind


def playable(waveform: Tensor) -> Tensor:
    """[T] -> [1, T] on the CPU, scaled down to full scale if it is louder."""
    waveform = waveform.detach().float().cpu()
    return (waveform / waveform.abs().max().clamp(min=1.0)).unsqueeze(0)


def unnormalised(image: Tensor) -> Tensor:
    """Input of a network [B, 3, H, W] -> RGB [B, 3, H, W] in 0…1 on the CPU."""
    return Normalise().to(image.device).reverse(image).float().cpu()


def spectrogram_image(spectrogram: Tensor) -> Tensor:
    """log10 power mel spectrogram [B, 1, M, F] -> RGB [B, 3, M, F] in 0…1, low bands at the bottom."""
    level = ((spectrogram[:, 0].float() - QUIET) / (LOUD - QUIET)).clamp(0, 1).flip(1)
    colours = matplotlib.colormaps["magma"](level.cpu().numpy())[..., :3]
    return torch.from_numpy(colours).permute(0, 3, 1, 2).float()
