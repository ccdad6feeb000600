"""The plain reference gives what the authors' code gives, and the fast models give what the reference gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.fusion import FUSION_ATTENTION
from deepavfusion.models.mae import MaskedAutoencoder, random_patch_mask
from deepavfusion.models.reference import (
    LITERAL_MAPS,
    ReferenceDeepAVFusion,
    ReferenceMaskedAutoencoder,
    all_pairs,
    decode,
    embed_patches,
    masked_loss,
)
from deepavfusion.models.vit import ViT
from deepavfusion.types import STREAMS, PatchMask
from deepavfusion.utils.errors import UserError
from helpers import golden as cases

KINDS = tuple(FUSION_ATTENTION)
# What a comparison changes of the small model: fusion_layers, groups of fusion tokens, attn_ratio, clips
VARIANTS = {
    "published": ("all", (4, 2, 3), 0.5, 2),
    "first_layers": ([0, 2], (4, 2, 3), 0.5, 3),
    "late_fusion": ([3], (2, 3, 5), 1.0, 1),
    "no_fusion": ("none", (4, 2, 3), 0.5, 2),
    "narrow": ("all", (5, 4, 1), 0.25, 3),
    "wide": ("all", (1, 1, 1), 2.0, 1),
}


def encoder(
    cls: type[DeepAVFusion] = ReferenceDeepAVFusion,
    fusion: str = "factorized",
    layers: str | list[int] = "all",
    groups: tuple[int, int, int] = (4, 2, 3),
    attn_ratio: float = 0.5,
) -> DeepAVFusion:
    return cases.tiny_encoder(fusion, layers, groups, attn_ratio, cls)


def mae(fast: bool = False, **options) -> MaskedAutoencoder:
    cls, encoder_cls = (
        (MaskedAutoencoder, DeepAVFusion) if fast else (ReferenceMaskedAutoencoder, ReferenceDeepAVFusion)
    )
    return cls(encoder(encoder_cls, **options), decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)


def train_pair_biases(model: nn.Module) -> None:
    """The fast model does not train the factorized pairs' key bias, which cancels; the authors' code does."""
    for name, parameter in model.named_parameters():
        if name.endswith("attn.k.bias"):
            parameter.requires_grad_(True)


def batch(clips: int) -> tuple[dict[str, torch.Tensor], PatchMask, PatchMask]:
    inputs = {
        "image": cases.wave((clips, 3, 64, 64), 0.13, 0.0029),
        "audio": cases.wave((clips, 1, 32, 48), 0.19, 0.0013),
    }
    generator = torch.Generator().manual_seed(clips)
    image_mask = random_patch_mask(clips, 16, 0.75, generator=generator)
    return inputs, image_mask, random_patch_mask(clips, 6, 0.5, generator=generator)


def assert_same_gradients(fast: nn.Module, reference: nn.Module) -> None:
    """Each gradient to 1e-9 of its size (a key bias's, which cancels: of nothing, 1e-12); a missing one counts as 0."""
    theirs = dict(reference.named_parameters())
    compared = 0
    for name, parameter in fast.named_parameters():
        found, expected = (p.grad if p.grad is not None else torch.zeros_like(p) for p in (parameter, theirs[name]))
        atol = 1e-9 * expected.abs().max().item() + 1e-12
        torch.testing.assert_close(found, expected, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        compared += bool(expected.abs().max() > 1e-9)
    assert compared > 25  # no comparison of zeros with zeros


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_encoder_matches_golden_in_float64(case):
    fusion, layers, _ = cases.ENCODERS[case]
    with cases.float64():
        model = encoder(fusion=fusion, layers=layers)
        train_pair_biases(model)
        cases.assert_encoder_matches(case, model)
    # literal: nothing that has a gradient in the authors' code is without one here
    named, golden = dict(model.named_parameters()), cases.load(f"encoder_{case}.npz")
    assert [key for key in golden if key.startswith("grad/") and named[key.removeprefix("grad/")].grad is None] == []


def test_mae_matches_golden_in_float64():
    golden = cases.load("mae_plain.npz")
    with cases.float64():
        model = mae()
        train_pair_biases(model)
        names = {name: cases.original_name(name) for name, _ in model.named_parameters()}
        cases.fill_parameters(model, names)
        masks = cases.golden_masks()
        out = model(*cases.clip_inputs(), **masks)
        out.loss.backward()
        with torch.no_grad():
            for stream, decoder in (("image", model.image_decoder), ("audio", model.audio_decoder)):
                mask = masks[f"{stream}_mask"]
                expected = torch.from_numpy(golden[f"pred_{stream}"])
                everything = decode(decoder, getattr(out.encoded, stream), out.encoded.fusion, mask)
                torch.testing.assert_close(everything, expected, atol=1e-10, rtol=0)
                rows = mask.masked.unsqueeze(-1).expand(-1, -1, expected.shape[-1])
                masked = getattr(out, f"{stream}_prediction")
                torch.testing.assert_close(masked, expected.gather(1, rows), atol=1e-10, rtol=0)
    assert abs(out.image_loss.item() - golden["loss_image"]) <= 1e-10
    assert abs(out.audio_loss.item() - golden["loss_audio"]) <= 1e-10
    assert out.loss.item() == out.image_loss.item() + out.audio_loss.item()
    cases.assert_gradients_match(model, golden, names)
    named = {names[name]: p for name, p in model.named_parameters()}
    assert [key for key in golden if key.startswith("grad/") and named[key.removeprefix("grad/")].grad is None] == []


@pytest.mark.parametrize("absent", [None, "image", "audio"])
@pytest.mark.parametrize(
    ("variant", "masked"),
    [
        *((variant, True) for variant in VARIANTS),
        ("published", False),
        *(pytest.param(variant, False, marks=pytest.mark.full) for variant in VARIANTS if variant != "published"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_encoder_is_the_reference(kind, variant, masked, absent):
    layers, groups, attn_ratio, clips = VARIANTS[variant]
    with cases.float64():
        fast, reference = (
            encoder(cls, kind, layers, groups, attn_ratio) for cls in (DeepAVFusion, ReferenceDeepAVFusion)
        )
        cases.fill_parameters(fast)
        reference.load_state_dict(fast.state_dict())
        train_pair_biases(reference)
        inputs, image_mask, audio_mask = batch(clips)
        keep = {"image_keep": image_mask.keep, "audio_keep": audio_mask.keep} if masked else {}
        if absent:
            inputs[absent] = None
        outs = [model(**inputs, **keep, return_layers=True) for model in (fast, reference)]
        for out in outs:
            cases.weigh(out).backward()
    found, expected = outs
    for stream in STREAMS:
        pair = getattr(found, f"{stream}_layers"), getattr(expected, f"{stream}_layers")
        if stream == absent:
            assert [getattr(out, stream) for out in outs] == [None, None]
            assert pair == ([], [])
            continue
        torch.testing.assert_close(getattr(found, stream), getattr(expected, stream), atol=1e-10, rtol=0)
        assert [len(layers) for layers in pair] == [4, 4]
        torch.testing.assert_close(*pair, atol=1e-10, rtol=0)
    assert_same_gradients(fast, reference)


@pytest.mark.parametrize("absent", ["image", "audio"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_an_absent_modality_is_used(kind, absent):
    """Neither its parameters, nor those parts of fusion blocks that read it."""
    model = encoder(DeepAVFusion, kind)
    inputs, *_ = batch(2)
    inputs[absent] = None
    before = model(**inputs, return_layers=True)
    cases.weigh(before).backward()
    own = {"image": "attn_v", "audio": "attn_a"}[absent]
    halves = {"factorized": ("k", "v"), "dense": ("kv",), "token": ()}[kind]
    first = absent == ("audio" if kind == "dense" else "image")  # half of the columns
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(f"{absent}.") or f".{own}." in name:
                assert parameter.grad is None
                parameter.fill_(torch.nan)
        for block in model.fusion_blocks.values():
            for layer in halves:
                weight = getattr(block.attn, layer).weight
                half = weight.chunk(2, dim=1)[0 if first else 1]
                half.fill_(torch.nan)
                assert not weight.grad.chunk(2, dim=1)[0 if first else 1].any()
        after = model(**inputs, return_layers=True)
    assert list(after.tokens) == list(after.pooled()) == [stream for stream in STREAMS if stream != absent]
    for stream, tokens in after.tokens.items():
        assert torch.equal(tokens, before.tokens[stream])
    with pytest.raises(AssertionError, match="both None"):
        model(None, None)


@pytest.mark.parametrize("variant", ["published", "first_layers", "late_fusion"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_autoencoder_is_the_reference(kind, variant):
    layers, groups, attn_ratio, clips = VARIANTS[variant]
    options = {"fusion": kind, "layers": layers, "groups": groups, "attn_ratio": attn_ratio}
    with cases.float64():
        fast, reference = (mae(is_fast, **options) for is_fast in (True, False))
        cases.fill_parameters(fast)
        reference.load_state_dict(fast.state_dict())
        train_pair_biases(reference)
        inputs, image_mask, audio_mask = batch(clips)
        outs = [model(**inputs, image_mask=image_mask, audio_mask=audio_mask) for model in (fast, reference)]
        for out in outs:
            out.loss.backward()
    found, expected = outs
    for name in ("loss", "image_loss", "audio_loss", "image_prediction", "audio_prediction"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-10, rtol=0)
    for stream in STREAMS:
        torch.testing.assert_close(
            getattr(found.encoded, stream), getattr(expected.encoded, stream), atol=1e-10, rtol=0
        )
    assert_same_gradients(fast, reference)


@pytest.mark.parametrize("layers", ["all", [2, 3], "none"])
def test_audio_paired_with_several_images_is_encoded_with_each(layers):
    with cases.float64():
        fast, reference = (encoder(cls, layers=layers) for cls in (DeepAVFusion, ReferenceDeepAVFusion))
        reference.load_state_dict(fast.state_dict())
        image, audio = cases.wave((4, 3, 64, 64), 0.13, 0.0029), cases.wave((2, 1, 32, 48), 0.19, 0.0013)
        found, expected = (model(image, audio, audio_keep=cases.AUDIO_KEEP) for model in (fast, reference))
    assert found.image_layers == expected.image_layers == []  # on request only
    for stream in STREAMS:
        assert getattr(expected, stream).shape[0] == 4
        torch.testing.assert_close(getattr(found, stream), getattr(expected, stream), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_fits_both_ways(kind):
    fast, reference = mae(True, fusion=kind), mae(fusion=kind)
    shapes = [{name: t.shape for name, t in model.state_dict().items()} for model in (fast, reference)]
    assert shapes[0] == shapes[1]
    for source, target in ((fast, reference), (reference, fast)):
        cases.fill_parameters(source)
        with torch.no_grad():
            source.encoder.fusion_tokens.add_(1)
        target.load_state_dict(source.state_dict(), strict=True)
        assert all(torch.equal(t, target.state_dict()[name]) for name, t in source.state_dict().items())
    if kind == "factorized":
        names = {cases.original_name(name): list(p.shape) for name, p in reference.named_parameters()}
        assert names == cases.load_json("mae_tiny_names.json")


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_runs_near_full_precision(kind):
    model = mae(fusion=kind)
    inputs, image_mask, audio_mask = batch(2)
    full = model(**inputs, image_mask=image_mask, audio_mask=audio_mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs, image_mask=image_mask, audio_mask=audio_mask)
    out.loss.backward()
    assert out.image_prediction.dtype == torch.bfloat16  # autocast was on
    assert abs(out.loss.item() - full.loss.item()) <= 0.02 * full.loss.item()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_every_patch_is_projected_and_every_pair_exists():
    """Literal in work, too: what the fast model skips reaches the layers here."""
    rows: dict[str, set[int]] = {}

    def count(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda module, args, out: rows.setdefault(name, set()).add(args[0].shape[1]))

    model = mae(fusion="dense")
    convolved = []
    model.encoder.image.patch_embed.proj.register_forward_hook(lambda m, args, out: convolved.append(out.shape[2:]))
    count("pairs", model.encoder.fusion_blocks["0"].attn.kv)
    count("encoder mlp", model.encoder.image.blocks[0].mlp)
    count("last decoder mlp", model.image_decoder.blocks[-1].mlp)
    count("prediction", model.image_decoder.pred)
    inputs, image_mask, audio_mask = batch(1)
    model(**inputs, image_mask=image_mask, audio_mask=audio_mask)
    assert convolved == [(4, 4)]
    # 4 of 16 and 3 of 6 patches are kept, 9 fusion tokens
    assert rows == {"pairs": {12}, "encoder mlp": {9 + 4}, "last decoder mlp": {9 + 16}, "prediction": {16}}


def test_pairs_are_all_of_them_in_order():
    first, second = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[10.0], [20.0], [30.0]]])
    assert all_pairs(first, second).tolist() == [[[1, 10], [1, 20], [1, 30], [2, 10], [2, 20], [2, 30]]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", ["all", [1]])
def test_attention_maps_are_those_of_the_literal_pairs(kind, layers):
    fast = encoder(DeepAVFusion, fusion=kind, layers=layers).double().eval()
    inputs, _, _ = batch(2)
    image, audio = (value.double() for value in inputs.values())
    last = max(map(int, fast.fusion_blocks))
    seen = {}
    fast.fusion_blocks[str(last)].attn.register_forward_pre_hook(lambda module, given: seen.update(given=given))
    with torch.no_grad():
        fast(image, audio)
        of_image, of_audio = LITERAL_MAPS[FUSION_ATTENTION[kind]](fast.fusion_blocks[str(last)].attn, *seen["given"])
        found = fast.attention_maps(image, audio)
    tokens = (16, 6)
    sums = [x.sum(dim=-1) for x in (of_image, of_audio)]
    for total in sums if kind != "token" else [sum(sums)]:
        assert torch.allclose(total, torch.ones_like(total))
    for name, literal, count in zip(("image", "audio"), (of_image, of_audio), tokens, strict=True):
        even = 1 / (sum(tokens) if kind == "token" else count)
        assert found[name].shape == (2, count)
        assert torch.allclose(found[name], literal.mean(dim=1) / even, rtol=1e-9)
        assert found[name].std() > 1e-3  # not all alike


def test_no_fusion_has_no_attention_maps(monkeypatch):
    inputs, _, _ = batch(1)
    with pytest.raises(UserError, match="fusion_layers is none"):
        encoder(DeepAVFusion, layers="none").attention_maps(**inputs)
    fast = encoder(DeepAVFusion)
    monkeypatch.delattr(FUSION_ATTENTION["factorized"], "attention_maps")
    with pytest.raises(UserError, match="FactorizedAttention has no attention_maps"):
        fast.attention_maps(**inputs)


def test_patches_are_embedded_alike():
    vit = ViT((32, 48), in_chans=1, embed_dim=48, depth=0, num_heads=4)
    x = cases.wave((2, 1, 32, 48), 0.17, 0.0017)
    for keep in (None, cases.AUDIO_KEEP):
        torch.testing.assert_close(embed_patches(vit, x, keep), vit.embed(x, keep))


def test_loss_is_the_mean_over_masked_patches():
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 3.0], [7.0, 7.0], [2.0, 0.0]]])
    mask = PatchMask(keep=torch.tensor([[1]]), masked=torch.tensor([[2, 0]]))
    assert masked_loss(prediction, target, mask).item() == (1 + 9 + 4 + 0) / 4


def test_the_reference_autoencoder_wants_the_reference_encoder():
    model = ReferenceMaskedAutoencoder(encoder(DeepAVFusion), 32, 1, 4)
    with pytest.raises(AssertionError):
        model(*cases.clip_inputs(), **cases.golden_masks())


def test_only_benchmarks_know_the_reference():
    """Code and configs alike (import-linter, in `make lint`, does not see what Hydra instantiates)."""
    root = Path(__file__).resolve().parents[1]
    files = [*root.glob("src/**/*.py"), *root.glob("configs/**/*.yaml")]
    assert {root / "src/train.py", root / "configs/train.yaml"} <= set(files)
    own = root / "src/deepavfusion/models/reference.py"
    words = ("models.reference", "import reference", "ReferenceDeepAVFusion", "ReferenceMaskedAutoencoder")
    found = [path for path in files if path != own and any(word in path.read_text() for word in words)]
    allowed = (root / "src/deepavfusion/benchmarks", root / "configs/benchmark")
    assert [str(path) for path in found if not any(folder in path.parents for folder in allowed)] == []
