"""The separator gives the masks, losses and gradients of the authors' code, and shared computation changes nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.separator import Separator, mask_loss, target_mask
from deepavfusion.models.unet import spread_layers
from deepavfusion.models.vit import ViT
from deepavfusion.optim.param_groups import layer_decay_groups
from deepavfusion.transforms.audio import HOP_LENGTH, N_FFT, N_MELS, LogMel, MelMask
from deepavfusion.utils.errors import UserError
from helpers import golden as cases
from helpers.media import snr

LAYERS = 4  # levels above the bottom


def original_name(name: str) -> str:
    """Our name of a separator's parameter, as the original code calls it; it counts levels from the top."""
    name = re.sub(r"^head\.", "avss_decoder.", name).replace("image_norm", "xv_norm")
    name = re.sub(r"audio_norms\.(\d)", lambda m: f"xa_norm.{LAYERS - int(m[1])}", name)
    name = re.sub(r"conditions\.(\d)", lambda m: f"cond{LAYERS + 1 - int(m[1])}", name)
    name = name.replace("bottom.", "top.double_conv.").replace("predict.", "pred.")

    def level(match: re.Match) -> str:
        n = LAYERS - int(match[1])
        part = {"up": f"up{n}.up", "enlarge": f"lat{n}.up", "lateral": f"lat{n}.conv.double_conv"}
        return part.get(match[2], f"up{n}.conv.double_conv") + "."

    return re.sub(r"levels\.(\d)\.(up|enlarge|lateral|conv)\.", level, name)


def golden_separator() -> tuple[Separator, dict[str, str]]:
    model = Separator(cases.tiny_encoder())
    names = {name: original_name(name) for name, _ in model.named_parameters()}
    cases.fill_parameters(model, names)
    return model, names


def golden_spectrograms() -> tuple[torch.Tensor, torch.Tensor]:
    return cases.wave((2, 1, 32, 48), 0.05, 0.002), cases.wave((2, 1, 32, 48), 0.07, 0.004) - 0.3


def test_names_and_shapes_are_those_of_the_original():
    model, names = golden_separator()
    found = {names[n]: list(p.shape) for n, p in model.named_parameters() if n.startswith("head.")}
    assert found == cases.load_json("separator_tiny_names.json")


@pytest.mark.parametrize(
    # the original's binary mask is float32, and its loss is rounded to that
    ("kind", "file", "tolerance"),
    [("ratio", "separation_ratio_weighted.npz", 1e-10), ("binary", "separation_binary.npz", 5e-8)],
)
def test_separator_matches_golden_in_float64(kind, file, tolerance):
    golden = cases.load(file)
    with cases.float64():
        model, names = golden_separator()
        mixture, source = golden_spectrograms()
        image, _ = cases.clip_inputs()
        logits = model(image, mixture)
        target = target_mask(10**source, 10**mixture, kind)
        loss = mask_loss(logits, target, 10**mixture if kind == "ratio" else None)
        loss.backward()
        evaluated = model.eval()(image, mixture)
    torch.testing.assert_close(target, torch.from_numpy(golden["gt_masks"]).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(logits.detach(), torch.from_numpy(golden["logits"]), atol=1e-10, rtol=0)
    assert abs(loss.item() - golden["loss"]) <= tolerance
    torch.testing.assert_close(evaluated.detach(), torch.from_numpy(golden["eval_logits"]), atol=1e-10, rtol=0)
    cases.assert_gradients_match(model, golden, names)


def test_separator_matches_golden_in_float32():
    golden = cases.load("separation_ratio_weighted.npz")["logits"]
    model, _ = golden_separator()
    logits = model(cases.clip_inputs()[0], golden_spectrograms()[0]).detach()
    torch.testing.assert_close(logits, torch.from_numpy(golden).float(), atol=1e-4 * np.abs(golden).max(), rtol=0)


def test_layer_decay_matches_golden():
    model, names = golden_separator()
    name_of = {id(parameter): names[name] for name, parameter in model.named_parameters()}
    found = {
        name_of[id(parameter)]: [group["lr_scale"], group["weight_decay"]]
        for group in layer_decay_groups(model, 0.05, 0.75, model.encoder.depth)
        for parameter in group["params"]
    }
    expected = cases.load_json("layer_decay_separator.json")
    # the bias of keys shifts all scores alike: it is not trained
    assert set(expected) - set(found) == {f"encoder.fusion_blocks.{n}.attn.k.bias" for n in range(4)}
    assert all(values == pytest.approx(expected[name], abs=1e-12) for name, values in found.items())


@pytest.mark.parametrize("layers", ["all", "none", [1, 3]])
def test_a_mixture_shared_by_its_images_gives_the_same_as_copies(layers):
    """Audio layers before the first fusion run once a mixture, without effect on outputs and gradients."""
    with cases.float64():
        torch.manual_seed(0)
        model = Separator(cases.tiny_encoder(fusion_layers=layers))
        images, mixtures = torch.randn(6, 3, 64, 64), torch.randn(3, 1, 32, 48)
        results = []
        for audio in (mixtures, mixtures.repeat_interleave(2, dim=0)):
            model.zero_grad()
            logits = model(images, audio)
            (logits * cases.wave(logits.shape, 0.3, 0.01)).sum().backward()
            results.append([logits.detach()] + [p.grad for p in model.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1])
    for once, often in zip(*results, strict=True):
        torch.testing.assert_close(once, often, atol=1e-9, rtol=1e-9)


def test_the_image_decides():
    model, _ = golden_separator()
    images = cases.wave((2, 3, 64, 64), 0.11, 0.0031)
    first, second = model.eval()(images, golden_spectrograms()[0][:1])
    assert not torch.allclose(first, second, atol=1e-3)


def test_layers_are_spread_over_the_depth():
    assert spread_layers(12, 5) == [0, 2, 5, 8, 11]
    assert spread_layers(24, 4) == [0, 7, 15, 23]
    assert spread_layers(4, 5) == [0, 0, 1, 2, 3]


def test_target_masks():
    source, others = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 2.0])
    mixture = source + others
    assert target_mask(source, mixture, "ratio").tolist() == pytest.approx([3 / 7, 1 / 4, 1 / 3], abs=1e-4)
    assert target_mask(source, mixture, "dominant").tolist() == [1, 0, 0]
    # interference may leave less in the mixture than in the source
    assert target_mask(source, torch.tensor([2.0, 5.0, 9.0]), "binary").tolist() == [1, 0, 0]


def test_louder_positions_count_more():
    logits, target = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    quiet_first = mask_loss(logits, target, torch.tensor([0.0, 1e9]))
    assert quiet_first.item() == pytest.approx((1e-3 * np.log(2) + 10 * np.log1p(np.exp(2))) / 2)
    assert mask_loss(logits, target).item() == pytest.approx((np.log(2) + np.log1p(np.exp(2))) / 2)


def test_sizes_that_do_not_fit_are_named():
    small = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    with pytest.raises(UserError, match=r"starts with 24: set model\.head_dim"):
        Separator(DeepAVFusion(ViT((32, 32), **small), ViT((32, 32), in_chans=1, **small), num_fusion_tokens=(2, 1, 1)))


# ---- masks to audio


def test_front_end_matches_golden():
    golden = cases.load("audio_front_end.npz")
    with cases.float64():
        mixture = cases.wave((1, 48000), 0.08, 0.00007, 0.8) + cases.wave((1, 48000), 0.31, 0.0003, 0.4)
        logits = cases.wave((1, 128, 192), 0.013, 0.0007, 3)
        found = MelMask("transposed")(logits.sigmoid().unsqueeze(1), mixture)
    torch.testing.assert_close(found, torch.from_numpy(golden["reconstruction"]), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("spread", "least"), [("transposed", 20), ("normalised", 100)])
def test_a_mel_mask_of_ones_returns_the_mixture(spread, least):
    noise = torch.randn(2, 48000, generator=torch.Generator().manual_seed(0))
    assert snr(MelMask(spread)(torch.ones(2, 1, N_MELS, 192), noise), noise) >= least


def test_an_stft_mask_of_ones_returns_the_mixture():
    noise = torch.randn(1, 48000, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, N_FFT // 2 + 1, 48000 // HOP_LENGTH + 1)
    assert snr(MelMask().apply_to_bins(ones, noise), noise) >= 60


def test_a_mask_lets_its_band_and_its_time_through():
    time = torch.arange(48000) / 16000
    low, high = torch.sin(2 * np.pi * 300 * time), torch.sin(2 * np.pi * 3000 * time)
    power = LogMel()(low.unsqueeze(0))
    mask = (power > power.amax() - 3).float()
    found = MelMask()(mask, (low + high).unsqueeze(0))[0]
    assert snr(found[1000:-1000], low[1000:-1000]) > 30
    half = torch.ones(1, 1, N_MELS, 192)
    half[..., 96:] = 0
    found = MelMask()(half, low.unsqueeze(0))[0]
    assert snr(found[:23000], low[:23000]) > 60
    assert found[25000:].abs().max() < 1e-6


def test_audio_keeps_full_precision_under_autocast():
    noise = torch.randn(1, 48000, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(1, 1, N_MELS, 192, generator=torch.Generator().manual_seed(1))
    expected = LogMel()(noise), MelMask()(mask, noise)
    with torch.autocast("cpu", torch.bfloat16):
        found = LogMel()(noise), MelMask()(mask, noise)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
