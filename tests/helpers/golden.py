"""Rebuilds the inputs and weights behind `tests/golden`: formulas, nothing random."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.vit import ViT
from deepavfusion.types import STREAMS, EncoderOutput, PatchMask

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE_KEEP = torch.tensor([[3, 0, 9, 14], [7, 12, 1, 5]])
AUDIO_KEEP = torch.tensor([[4], [2]])
ENCODERS = {  # fusion, its layers, whether patches are masked
    "factorized": ("factorized", "all", False),
    "factorized_masked": ("factorized", "all", True),
    "factorized_layers_0_2": ("factorized", [0, 2], False),
    "dense": ("dense", "all", False),
    "dense_masked": ("dense", "all", True),
    "token": ("token", "all", False),
    "none": ("factorized", "none", False),
}


@contextmanager
def float64() -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return dict(file)


def load_json(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text())


def wave(shape: Sequence[int], a: float, b: float, amplitude: float = 1.0) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(a * i) * torch.cos(b * i)).reshape(*shape).to(torch.get_default_dtype())


def clip_inputs() -> tuple[Tensor, Tensor]:
    return wave((2, 3, 64, 64), 0.11, 0.0031), wave((2, 1, 32, 48), 0.17, 0.0017)


def tiny_encoder(
    fusion: str = "factorized",
    fusion_layers: str | list[int] = "all",
    num_fusion_tokens: tuple[int, int, int] = (4, 2, 3),
    attn_ratio: float = 0.5,
    kind: type[DeepAVFusion] = DeepAVFusion,
    **more: object,
) -> DeepAVFusion:
    sizes = {"patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 4, **more}
    return kind(
        image=ViT(input_size=(64, 64), in_chans=3, **sizes),
        audio=ViT(input_size=(32, 48), in_chans=1, **sizes),
        fusion=fusion,
        fusion_layers=fusion_layers,
        num_fusion_tokens=num_fusion_tokens,
        fusion_num_heads=4,
        fusion_attn_ratio=attn_ratio,
        fusion_mlp_ratio=1.0,
        drop_path=more.get("drop_path", 0.0),
    )


def original_name(name: str) -> str:
    """Our name of a masked autoencoder's parameter, as the original code calls it."""
    return re.sub(r"^(image|audio)_decoder\.", r"\1_decoder_", name)


def fill_parameters(model: nn.Module, original_name: dict[str, str] | None = None) -> None:
    """Fills every parameter by formula, numbered by the sorted names of the original code.

    `original_name` maps our names to the original's where they differ.
    """
    named = {(original_name or {}).get(name, name): p for name, p in model.named_parameters()}
    for k, name in enumerate(sorted(named)):
        parameter = named[name]
        i = torch.arange(parameter.numel(), dtype=torch.float64)
        value = 0.15 * torch.sin(0.37 * i + 1.7 * k) + 0.10 * torch.cos(0.0131 * i * (1 + k % 7))
        if {"q", "k", "kv", "qkv"} & set(name.split(".")):
            value = 3 * value
        if parameter.ndim == 1 and name.endswith("weight"):
            value = value + 1
        with torch.no_grad():
            parameter.copy_(value.reshape(parameter.shape))


def weigh(out: EncoderOutput) -> Tensor:
    """A scalar in which every output counts differently."""
    waves = (("image", 0.31, 0.01), ("audio", 0.23, 0.02), ("fusion", 0.19, 0.03))
    return sum((out.tokens[s] * wave(out.tokens[s].shape, a, b)).sum() for s, a, b in waves if s in out.tokens)


def assert_encoder_matches(case: str, model: DeepAVFusion) -> None:
    """Outputs, loss and gradients of one of ENCODERS, in float64; fills the parameters."""
    golden = load(f"encoder_{case}.npz")
    fill_parameters(model)
    keep = {"image_keep": IMAGE_KEEP, "audio_keep": AUDIO_KEEP} if ENCODERS[case][2] else {}
    out = model(*clip_inputs(), **keep)
    loss = weigh(out)
    loss.backward()
    for stream in STREAMS:
        torch.testing.assert_close(getattr(out, stream).detach(), torch.from_numpy(golden[stream]), atol=1e-10, rtol=0)
    assert abs(loss.item() - golden["loss"]) <= 1e-10 * max(1, abs(golden["loss"]))
    assert_gradients_match(model, golden)


def golden_masks() -> dict[str, PatchMask]:
    """IMAGE_KEEP and AUDIO_KEEP with the patches that they do not keep."""

    def mask(keep: Tensor, n: int) -> PatchMask:
        return PatchMask(keep, torch.tensor([[i for i in range(n) if i not in row] for row in keep.tolist()]))

    return {"image_mask": mask(IMAGE_KEEP, 16), "audio_mask": mask(AUDIO_KEEP, 6)}


def assert_gradients_match(
    model: nn.Module, golden: dict[str, np.ndarray], original_name: dict[str, str] | None = None
) -> None:
    """Sum and absolute sum of every gradient; one the exact form does not have counts as 0."""
    expected = {key.removeprefix("grad/"): value for key, value in golden.items() if key.startswith("grad/")}
    assert expected
    named = {(original_name or {}).get(name, name): p for name, p in model.named_parameters()}
    assert set(expected) <= set(named), sorted(set(expected) - set(named))
    for name, (total, absolute) in expected.items():
        gradient = named[name].grad
        found = (0.0, 0.0) if gradient is None else (gradient.sum().item(), gradient.abs().sum().item())
        tolerance = 1e-9 * absolute + 1e-12
        assert abs(found[0] - total) <= tolerance, (name, found[0], total)
        assert abs(found[1] - absolute) <= tolerance, (name, found[1], absolute)
