"""The segmenter gives the logits, losses and gradients of the authors' code."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.segmenter import Segmenter, decide, pixel_loss, probabilities
from deepavfusion.models.vit import ViT
from deepavfusion.optim.param_groups import layer_decay_groups
from deepavfusion.utils.errors import UserError
from helpers import golden as cases


def original_name(name: str) -> str:
    """Our name of a segmenter's parameter, as the original code calls it."""
    name = re.sub(r"^head\.", "", name).replace("image_norms", "normv").replace("audio_norms", "norma")
    name = name.replace("audio_projections", "proja").replace("bottom.", "top.double_conv.")

    def level(match: re.Match) -> str:
        n = match[1]
        part = {"up": f"up.{n}.up", "enlarge": f"lat.{n}.up", "lateral": f"lat.{n}.conv.double_conv"}
        return part.get(match[2], f"up.{n}.conv.double_conv") + "."

    return re.sub(r"levels\.(\d)\.(up|enlarge|lateral|conv)\.", level, name).replace("predict.", "predictor.")


def golden_segmenter(num_classes: int) -> tuple[Segmenter, dict[str, str]]:
    model = Segmenter(cases.tiny_encoder(embed_dim=128, mlp_ratio=1.0), num_classes)
    names = {name: original_name(name) for name, _ in model.named_parameters()}
    cases.fill_parameters(model, names)
    return model, names


def golden_target(num_classes: int) -> torch.Tensor:
    sounding = cases.wave((2, 64, 64), 0.02, 0.001) > 0
    if num_classes == 1:
        return sounding.byte()
    return (sounding * (torch.arange(64 * 64).reshape(64, 64) % 70 + 1)).byte()


def test_names_and_shapes_are_those_of_the_original():
    model, names = golden_segmenter(71)
    found = {names[n]: list(p.shape) for n, p in model.named_parameters() if n.startswith("head.")}
    assert found == cases.load_json("segmenter_tiny_names.json")


# The original computes the binary loss in float32.
@pytest.mark.parametrize(("num_classes", "tolerance"), [(1, 5e-8), (71, 1e-10)])
def test_segmenter_matches_golden_in_float64(num_classes, tolerance):
    golden = cases.load(f"segmentation_{num_classes}.npz")
    with cases.float64(), torch.no_grad():
        model, _ = golden_segmenter(num_classes)
        image, audio = cases.clip_inputs()
        logits = model(image, audio)
        loss = pixel_loss(logits, golden_target(num_classes))
        evaluated = model.eval()(image, audio)
    assert abs(loss.item() - golden["loss"]) <= tolerance
    for found, name in (
        (logits.mean(dim=(2, 3)), "logits_mean"),
        (logits[:, :, 20], "logits_row"),
        (evaluated[:, :, 20], "eval_logits_row"),
    ):
        torch.testing.assert_close(found, torch.from_numpy(golden[name]), atol=1e-10, rtol=0)


def test_segmenter_matches_golden_in_float32():
    golden = cases.load("segmentation_71.npz")["logits_row"]
    logits = golden_segmenter(71)[0](*cases.clip_inputs()).detach()[:, :, 20]
    torch.testing.assert_close(logits, torch.from_numpy(golden).float(), atol=1e-4 * np.abs(golden).max(), rtol=0)


def test_a_wide_encoder_narrows_to_128_channels():
    """The published size: 768, 384, 192 and 128 channels from the bottom up."""
    with torch.device("meta"):
        sizes = {"embed_dim": 768, "depth": 12, "num_heads": 12}
        model = Segmenter(DeepAVFusion(image=ViT((224, 224), **sizes), audio=ViT((128, 192), in_chans=1, **sizes)), 71)
    head = model.head
    assert [norm.normalized_shape[0] for norm in head.audio_norms] == [768, 384, 192, 128]
    assert [level.conv[3].out_channels for level in head.levels] == [384, 192, 128]
    assert [level.enlarge.out_channels for level in head.levels] == [384, 192, 96]
    assert head.layers == [0, 3, 7, 11]
    assert head.predict[0].out_channels == 128


def test_the_head_uses_the_audio():
    torch.manual_seed(0)
    model = Segmenter(cases.tiny_encoder(), head_dim=16, min_head_dim=8).eval()
    image, one, other = torch.randn(2, 3, 64, 64), torch.randn(2, 1, 32, 48), torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        assert not torch.allclose(model(image, one), model(image, other), atol=1e-4)
        encoded = model.encoder(image, one, return_layers=True)
        alone = model.head(encoded)
        encoded.audio_layers[-1] = model.encoder(image, other, return_layers=True).audio_layers[-1]
        assert not torch.allclose(model.head(encoded), alone, atol=1e-4)


def test_every_parameter_of_the_head_learns():
    torch.manual_seed(0)
    model = Segmenter(cases.tiny_encoder(), 5, head_dim=16, min_head_dim=8)
    mask = torch.randint(5, (2, 64, 64), dtype=torch.uint8)
    pixel_loss(model(torch.randn(2, 3, 64, 64), torch.randn(2, 1, 32, 48)), mask).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.head.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.audio.patch_embed.parameters())
    groups = layer_decay_groups(model, 0.05, 0.75, model.encoder.depth)
    of_head = {id(p) for p in model.head.parameters()}
    scales = {group["lr_scale"] for group in groups if id(group["params"][0]) in of_head}
    assert scales == {1.0}


def test_loss_and_decisions_of_hand_made_logits():
    logits = torch.tensor([[[[2.0, -1.0]]]])
    mask = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    assert pixel_loss(logits, mask).item() == pytest.approx(expected, abs=1e-6)
    assert decide(logits).tolist() == [[[1, 0]]]
    assert probabilities(logits)[0, 0, 0, 0].item() == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-6)
    classes = torch.tensor([0.0, 3.0, 1.0]).view(1, 3, 1, 1)
    assert decide(classes).tolist() == [[[1]]]
    assert probabilities(classes).sum().item() == pytest.approx(1.0, abs=1e-6)
    assert pixel_loss(logits[:0], mask[:0]).item() == 0.0


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"model\.net\.image\.patch_size=16, not 8"):
        Segmenter(cases.tiny_encoder(patch_size=8))
    with pytest.raises(UserError, match=r"starts with 20: set model\.head_dim"):
        Segmenter(cases.tiny_encoder(), head_dim=20)
