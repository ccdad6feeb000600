"""Several processes learn what one would from all their clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from deepavfusion.models.classifier import Classifier, classification_loss
from deepavfusion.models.mae import MaskedAutoencoder, random_patch_mask
from deepavfusion.types import PatchMask
from helpers import golden as cases
from helpers.distributed import in_two_processes

CLIPS = 8


def _inputs() -> tuple[Tensor, Tensor, PatchMask, PatchMask, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, audio = (
        torch.randn(CLIPS, 3, 64, 64, generator=generator),
        torch.randn(CLIPS, 1, 32, 48, generator=generator),
    )
    masks = (random_patch_mask(CLIPS, patches, ratio, generator=generator) for patches, ratio in ((16, 0.75), (6, 0.5)))
    return image, audio, *masks, torch.nn.functional.one_hot(torch.arange(CLIPS) % 5, 5).float()


def _gradients(rows: slice, wrap=lambda net: net) -> dict[str, Tensor]:
    """Gradients of pre-training and of fine-tuning on some of the clips."""
    image, audio, image_mask, audio_mask, target = _inputs()
    gradients = {}
    torch.manual_seed(0)
    autoencoder = wrap(MaskedAutoencoder(cases.tiny_encoder(), 32, 2, 4))
    parts = [PatchMask(mask.keep[rows], mask.masked[rows]) for mask in (image_mask, audio_mask)]
    autoencoder(image[rows], audio[rows], *parts).loss.backward()
    classifier = wrap(Classifier(cases.tiny_encoder(), 5))
    classification_loss(classifier(image[rows], audio[rows]), target[rows]).backward()
    for name, net in (("pretrain", autoencoder), ("classify", classifier)):
        for key, parameter in net.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                gradients[f"{name}.{key.removeprefix('module.')}"] = parameter.grad
    return gradients


def _of_a_process(rank: int) -> dict[str, Tensor]:
    half = CLIPS // 2
    return _gradients(slice(rank * half, (rank + 1) * half), DistributedDataParallel)


@pytest.mark.full
def test_two_processes_have_the_gradient_of_one_with_all_clips(tmp_path: Path):
    expected = _gradients(slice(None))
    found = in_two_processes(_of_a_process, tmp_path)
    assert set(found[0]) == set(found[1]) == set(expected)
    for name, gradient in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        difference = (found[0][name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-6)
        assert difference <= 1e-5, (name, difference.item())
