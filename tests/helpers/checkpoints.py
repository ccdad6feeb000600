"""Checkpoints of tiny random networks, in Lightning's layout, for everything that opens checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepavfusion.config.compose import instantiate
from deepavfusion.transforms.audio import LogMel
from deepavfusion.transforms.image import Normalise
from helpers.media import coloured_noise, noise

SIZE = 64  # of an image
SPOKEN = ["playing flute", "dog barking", "train [horn]"]  # classes of a classifier
SEEN = ["background", "dog", "cello", "train", "rain"]  # classes of a segmenter


def encoder(dim: int, audio_frames: int, **more: Any) -> dict[str, Any]:
    vit = {"_target_": "deepavfusion.models.vit.ViT", "embed_dim": dim, "depth": 2, "num_heads": 2}
    return {
        "_target_": "deepavfusion.models.deepavfusion.DeepAVFusion",
        "image": {**vit, "input_size": [SIZE, SIZE], "in_chans": 3},
        "audio": {**vit, "input_size": [128, audio_frames], "in_chans": 1},
        "num_fusion_tokens": [4, 2, 2],
        **more,
    }


SEPARATOR = {
    "_target_": "deepavfusion.tasks.separate.Separate",
    "mask": "ratio",
    "pretrained": "auto",
    "net": encoder(16, 192),
}


def classifier(**more: Any) -> dict[str, Any]:
    return {
        "_target_": "deepavfusion.tasks.classify.Classify",
        "num_classes": len(SPOKEN),
        "pretrained": "auto",
        "net": encoder(32, 128),
        **more,
    }


def segmenter(num_classes: int) -> dict[str, Any]:
    return {
        "_target_": "deepavfusion.tasks.segment.Segment",
        "num_classes": num_classes,
        "head_dim": 16,
        "min_head_dim": 8,
        "pretrained": None,
        "net": encoder(32, 64, fusion_num_heads=2),
    }


def build(config: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return instantiate({**config, "pretrained": None}).eval()


def save(path: Path, task: nn.Module, record: dict[str, Any], **more: Any) -> Path:
    content = {"pytorch-lightning_version": "2.6.0", "epoch": 1, "hyper_parameters": {}}
    torch.save({**content, "state_dict": task.state_dict(), "record": record, **more}, path)
    return path


def write_separator(path: Path, model: dict[str, Any] = SEPARATOR, task: str = "separate", **more: Any) -> Path:
    """A network of the seed 0, whatever the record says of it."""
    record = {"task": task, "model": model, "data": {"image_size": SIZE, "audio_seconds": 3.0}, "classes": ["a"]}
    return save(path, build(SEPARATOR), record, **{"hyper_parameters": {"mask": "ratio"}, **more})


def write_classifier(path: Path, classes: list[str] = SPOKEN, **more: Any) -> Path:
    """A network whose scores differ from clip to clip."""
    config = classifier(num_classes=len(classes), **more)
    task = build(config)
    with torch.no_grad():
        for head in task.net.heads.values():
            head.weight.mul_(2)
    return save(path, task, {"task": "classify", "model": config, "data": {"name": "vggsound"}, "classes": classes})


def write_segmenter(path: Path, num_classes: int = 1, classes: list[str] | None = None) -> Path:
    """A network all of whose classes occur in its masks."""
    task = build(segmenter(num_classes))
    last = task.net.head.predict[-1]
    with torch.no_grad():
        last.weight.mul_(40)
        image, audio = coloured_noise(4, SIZE, SIZE), LogMel()(torch.from_numpy(noise(1.0, channels=4)))
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2)
        last.bias.sub_(task.net(Normalise()(pixels), audio).mean(dim=(0, 2, 3)))
    data = {"name": "avsbench", "image_size": SIZE, "audio_seconds": 1.0}
    names = classes if classes is not None else (SEEN[:num_classes] if num_classes > 1 else ["dog", "cello"])
    record = {"task": "segment", "model": segmenter(num_classes), "data": data, "classes": names}
    return save(path, task, record)
