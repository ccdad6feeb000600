"""Builds the encoder of any checkpoint: by the record of ours, by the tensor shapes of weights alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deepavfusion.inference.tasks import load_task
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.vit import ViT
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import CLIP_SECONDS, FRAMES_PER_SECOND, N_MELS
from deepavfusion.utils.errors import ArgumentError, UserError
from deepavfusion.weights.compare import check_plan
from deepavfusion.weights.file import OPTIMIZER, read_file
from deepavfusion.weights.hub import source_of
from deepavfusion.weights.weights import Weights, describe, load_encoder, recognise

HEAD_DIM = 64  # channels per attention head in every ViT of the paper, base and large
IMAGE_SIZE = 224  # pixels, the paper's


def open_encoder(path: str | Path, device: str | torch.device = "cpu") -> tuple[DeepAVFusion, str]:
    """An encoder with its weights, in evaluation mode, and a one-line summary of it; see `open_network`."""
    network, summary = open_network(path, device)
    return network.net.encoder if isinstance(network, Task) else network, summary


def open_network(path: str | Path, device: str | torch.device = "cpu") -> tuple[Task | DeepAVFusion, str]:
    """The task of a checkpoint, or its encoder where it holds no more, and a one-line summary of the encoder.

    Args:
        path: a .ckpt file of any task that train.py wrote, or its folder or hf:// address by convert.py; or weights
            alone: a published DeepAVFusion checkpoint, or one of ours (.safetensors). Their sizes are derived from the
            tensors; what the shapes do not show is assumed to be as in the paper, and the summary says so.
        device: to put it on.

    Raises:
        UserError: see `load_task` and `weights.weights.read_weights`; or the file holds no complete encoder.
    """
    path = source_of(path)
    content = read_file(path, without=OPTIMIZER)
    weights = recognise(content, path)
    if isinstance(weights.record.get("model"), dict):
        task = load_task(path, device=device, content=content)
        return task, f"encoder of {task.origin}{f'; {task.origin.caveat}' if task.origin.caveat else ''}"
    if weights.kind == "vit":
        raise UserError(
            f"checkpoint {path} is an MAE or AudioMAE ViT, of image or audio alone: expected a checkpoint of "
            f"DeepAVFusion."
        )
    tensors = {n.removeprefix("encoder."): t for n, t in weights.tensors.items() if n.startswith("encoder.")}
    try:
        build, summary = _planned(weights)
        check_plan(build, tensors, fixed="pos_embed")
    except _NoEncoder:
        raise
    except Exception as error:  # sizes that no network has: a division by zero, a failed assertion, …
        words = textwrap.shorten(str(error), 200, placeholder=" …")
        raise UserError(
            f"checkpoint {path} does not hold the tensors of a whole encoder ({words}): fetch or copy it again, "
            f"or give another file."
        ) from error
    encoder = build()
    load_encoder(encoder, weights)
    return encoder.eval().to(device), f"encoder of {path}, weights without a record: {summary}"


class _NoEncoder(UserError):
    """The tensors do not show the sizes of an encoder."""


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Where to compute: auto is cuda where there is one, else cpu.

    Raises:
        ArgumentError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ArgumentError(f"device is {name!r:.80}, expected auto, cpu, cuda, or one such as cuda:1.") from None
    if not _is_here(device):
        raise ArgumentError(f"device={name}, but there is no such device here: leave it out, or set device=cpu.")
    return device


def _is_here(device: torch.device) -> bool:
    """Whether a device can hold a network, which one of another kind would lose half-way."""
    if device.type in ("cpu", "cuda"):
        return (device.index or 0) < (torch.cuda.device_count() if device.type == "cuda" else 1)
    try:
        return torch.ones(1, device=device).item() == 1
    except (RuntimeError, AssertionError, ImportError):  # as torch says that a kind is not there, or is "meta"
        return False


def sizes_of(encoder: DeepAVFusion) -> tuple[int, float]:
    """Side of the image (pixels) and length of the audio (s) that an encoder takes."""
    return encoder.image.patch_embed.input_size[0], encoder.audio.patch_embed.input_size[1] / FRAMES_PER_SECOND


def _planned(weights: Weights) -> tuple[Callable[[], DeepAVFusion], str]:
    """What builds an encoder that fits these tensors, and a description of where its sizes come from."""
    tensors, found = weights.tensors, describe(weights.tensors)
    missing = [key for key in ("net.image.depth", "net.audio.depth", "net.num_fusion_tokens") if key not in found]
    if missing:
        raise _NoEncoder(
            f"checkpoint {weights.path} holds no encoder of DeepAVFusion (its tensors do not show "
            f"{', '.join(missing)}): give another file."
        )
    dim: Any = found["net.image.embed_dim"]
    heads = dim // HEAD_DIM
    if dim % HEAD_DIM:
        raise _NoEncoder(
            f"checkpoint {weights.path} has embed_dim {dim} and no record of its heads, expected a multiple of "
            f"{HEAD_DIM}: use the .ckpt that train.py wrote."
        )
    size, seconds, known = _input_sizes(weights, found)

    def vit(stream: str, channels: int, input_size: tuple[int, int]) -> ViT:
        sizes: Any = {key: found[f"net.{stream}.{key}"] for key in ("embed_dim", "patch_size", "depth")}
        hidden = tensors[f"encoder.{stream}.blocks.0.mlp.fc1.weight"].shape[0]
        return ViT(input_size, in_chans=channels, num_heads=heads, mlp_ratio=hidden / sizes["embed_dim"], **sizes)

    def build() -> DeepAVFusion:
        image, audio = vit("image", 3, (size, size)), vit("audio", 1, (N_MELS, round(seconds * FRAMES_PER_SECOND)))
        return DeepAVFusion(image, audio, num_fusion_tokens=groups, **fusion)

    tokens = tensors["encoder.fusion_tokens"].shape[1]
    groups = (tokens - 2 * (tokens // 4), tokens // 4, tokens // 4)
    keys = ("fusion", "fusion_layers", "fusion_attn_ratio", "fusion_mlp_ratio")
    fusion: Any = {key: found[f"net.{key}"] for key in keys if f"net.{key}" in found}
    layers = fusion["fusion_layers"]
    count = 0 if layers == "none" else len(layers)
    depth = found["net.image.depth"]
    shown = [f"embed_dim {dim}, depth {depth}, {fusion.get('fusion', 'no')} fusion in {count} layers"]
    assumed = [f"{heads} heads, fusion tokens in groups of {groups[0]}, {groups[1]} and {groups[2]}"]
    (shown if known else assumed).append(f"images of {size} pixels, {seconds:g} s of audio")
    return build, f"{', '.join(shown)} by its tensors; assumed as in the paper: {', '.join(assumed)}"


def _input_sizes(weights: Weights, found: dict[str, Any]) -> tuple[int, float, bool]:
    """Side of the image (pixels), length of the audio (s), and whether the position embeddings show them."""
    keys = ("encoder.image.pos_embed", "encoder.audio.pos_embed")
    if all(key in weights.tensors for key in keys):
        image, audio = (weights.tensors[key].shape[1] for key in keys)
        side, rows = math.isqrt(image), N_MELS // found["net.audio.patch_size"]
        if side**2 == image and audio % rows == 0:
            frames = audio // rows * found["net.audio.patch_size"]
            return side * found["net.image.patch_size"], frames / FRAMES_PER_SECOND, True
    return IMAGE_SIZE, CLIP_SECONDS, False
