"""For torch.hub: `torch.hub.load("<folder of a clone>", "deepavfusion", "last.ckpt", source="local")`.

Entry points: `deepavfusion` (a network for files and arrays) and `encoder` (a `torch.nn.Module`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

dependencies = ["av", "lightning", "litdata", "matplotlib", "numpy", "PIL", "rich", "safetensors", "timm", "torch"]
dependencies += ["torchaudio", "torchmetrics", "torchvision", "yaml"]

_SOURCE = str(Path(__file__).resolve().parent / "src")


def deepavfusion(source: str, device: str = "auto") -> Any:
    """A trained network, as `deepavfusion.load` opens it: `.embed`, `.classify`, `.separate`, `.segment`.

    Args:
        source: a .ckpt of train.py, of any task; weights alone, which can only embed: a published .pth, or
            .safetensors; a folder that convert.py wrote, or hf://owner/name[@revision].
        device: auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, …
    """
    return _package().load(source, device)


def encoder(source: str, device: str = "auto") -> Any:
    """The encoder of such a network alone, a `torch.nn.Module` in evaluation mode.

    `encoder(image, audio)`, `encoder(image, None)` or `encoder(None, audio)`: image float [B, 3, H, W],
    ImageNet-normalised, audio float [B, 1, 128, frames], log10 power mel (64 frames a second) -> tokens of image, audio
    and fusion; `.pooled()` gives their means.

    Args:
        source, device: as of `deepavfusion`.
    """
    return _package().load(source, device).encoder


def _package() -> Any:
    """The package of this clone; or the one that was imported before."""
    from importlib import import_module

    sys.path.insert(0, _SOURCE)
    try:
        return import_module("deepavfusion")
    finally:
        sys.path.remove(_SOURCE)
