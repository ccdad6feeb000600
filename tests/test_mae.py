"""The masked autoencoder gives the losses, predictions and gradients of the authors' code."""

from __future__ import annotations

import pytest
import torch

from deepavfusion.models.mae import MaskedAutoencoder, patch_targets, random_patch_mask
from helpers import golden as cases


def tiny_mae(fusion: str = "factorized", fusion_layers: str | list[int] = "all") -> MaskedAutoencoder:
    encoder = cases.tiny_encoder(fusion, fusion_layers)
    return MaskedAutoencoder(encoder, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)


def test_mae_matches_golden_in_float64():
    golden = cases.load("mae_plain.npz")
    with cases.float64():
        model = tiny_mae()
        names = {name: cases.original_name(name) for name, _ in model.named_parameters()}
        assert {names[n]: list(p.shape) for n, p in model.named_parameters()} == cases.load_json("mae_tiny_names.json")
        cases.fill_parameters(model, names)
        masks = cases.golden_masks()
        out = model(*cases.clip_inputs(), **masks)
        out.loss.backward()
        with torch.no_grad():
            predictions = {
                "image": model.image_decoder(out.encoded.image, out.encoded.fusion, masks["image_mask"], True),
                "audio": model.audio_decoder(out.encoded.audio, out.encoded.fusion, masks["audio_mask"], True),
            }
    assert abs(out.image_loss.item() - golden["loss_image"]) <= 1e-10
    assert abs(out.audio_loss.item() - golden["loss_audio"]) <= 1e-10
    for stream, prediction in predictions.items():
        expected = torch.from_numpy(golden[f"pred_{stream}"])
        torch.testing.assert_close(prediction, expected, atol=1e-10, rtol=0)
        # what training computes, the masked patches alone, is the same thing
        rows = masks[f"{stream}_mask"].masked.unsqueeze(-1).expand(-1, -1, expected.shape[-1])
        torch.testing.assert_close(
            getattr(out, f"{stream}_prediction").detach(), expected.gather(1, rows), atol=1e-10, rtol=0
        )
    cases.assert_gradients_match(model, golden, names)


def test_mae_matches_golden_in_float32():
    golden = cases.load("mae_plain.npz")
    model = tiny_mae()
    cases.fill_parameters(model, {name: cases.original_name(name) for name, _ in model.named_parameters()})
    out = model(*cases.clip_inputs(), **cases.golden_masks())
    assert abs(out.image_loss.item() - golden["loss_image"]) <= 1e-4 * golden["loss_image"]
    assert abs(out.audio_loss.item() - golden["loss_audio"]) <= 1e-4 * golden["loss_audio"]


def test_masks_keep_the_published_numbers_and_partition_the_patches():
    generator = torch.Generator().manual_seed(0)
    for n, ratio, kept in ((196, 0.75, 49), (96, 0.8, 19), (49, 0.75, 12)):
        mask = random_patch_mask(3, n, ratio, generator=generator)
        assert mask.keep.shape == (3, kept)
        everything = torch.cat([mask.keep, mask.masked], dim=1).sort(dim=1).values
        assert torch.equal(everything, torch.arange(n).expand(3, -1))
        assert not torch.equal(mask.keep[0], mask.keep[1])


def test_targets_are_normalised_per_patch_in_row_column_channel_order():
    x = cases.wave((1, 3, 32, 32), 0.3, 0.01)
    raw = patch_targets(x, 16, normalise=False)
    assert torch.equal(raw[0, 1].view(16, 16, 3)[2, 5], x[0, :, 2, 16 + 5])
    target = patch_targets(x, 16)
    torch.testing.assert_close(target.mean(-1), torch.zeros(1, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.std(-1), torch.ones(1, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("layers", "reaches"), [("all", True), ([0], True), ("none", False)])
def test_audio_reaches_the_image_through_fusion_only(layers, reaches):
    model = tiny_mae(fusion_layers=layers)
    image, audio = cases.clip_inputs()
    audio.requires_grad_()
    model(image, audio, **cases.golden_masks()).image_loss.backward()
    assert (audio.grad is not None and audio.grad.abs().sum().item() > 0) == reaches


@pytest.mark.parametrize("layers", ["all", [1], "none"])
@pytest.mark.parametrize("hidden", ["image", "audio"])
def test_a_modality_that_is_hidden_entirely_is_reconstructed_from_the_other(hidden, layers):
    model, inputs = tiny_mae(fusion_layers=layers), dict(zip(("image", "audio"), cases.clip_inputs(), strict=True))
    masks = cases.golden_masks() | {f"{hidden}_mask": random_patch_mask(2, {"image": 16, "audio": 6}[hidden], 1.0)}
    seen = inputs["audio" if hidden == "image" else "image"].requires_grad_()
    out = model(**inputs, **masks)
    assert list(out.encoded.tokens) == [stream for stream in ("image", "audio", "fusion") if stream != hidden]
    assert torch.equal(out.loss, out.image_loss + out.audio_loss)
    own = getattr(out, f"{hidden}_loss")
    (reaches,) = torch.autograd.grad(own, seen, retain_graph=True, allow_unused=True)
    assert (reaches is not None and bool(reaches.any())) == (layers != "none")
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert None not in gradients.values()  # which DDP would wait for
    assert not any(g.any() for name, g in gradients.items() if name.startswith(f"encoder.{hidden}."))
    changed = inputs | {hidden: inputs[hidden] * -1}
    assert torch.equal(model(**changed, **masks).encoded.fusion, out.encoded.fusion)
    drawn = model.reconstruct(out, **inputs)
    assert drawn[hidden]["hidden"].all()


def test_an_empty_batch_has_no_loss_and_zero_gradients():
    model = tiny_mae()
    masks = {"image_mask": random_patch_mask(0, 16, 0.75), "audio_mask": random_patch_mask(0, 6, 0.8)}
    out = model(torch.zeros(0, 3, 64, 64), torch.zeros(0, 1, 32, 48), **masks)
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_reconstructions_keep_what_was_kept_and_say_what_was_hidden():
    net, masks = tiny_mae().eval(), []
    image, audio = torch.randn(2, 3, 64, 64), torch.randn(2, 1, 32, 48)
    masks = random_patch_mask(2, 16, 0.75), random_patch_mask(2, 6, 0.5)
    with torch.no_grad():
        drawn = net.reconstruct(net(image, audio, *masks), image, audio)
    for (stream, found), x, mask in zip(drawn.items(), (image, audio), masks, strict=True):
        assert found["hidden"].shape == (2, 1, *x.shape[2:])
        hidden = found["hidden"].expand_as(x)
        assert torch.equal(found["reconstructed"][~hidden], x[~hidden])
        assert (found["reconstructed"] != x)[hidden].float().mean() > 0.99
        size = getattr(net.encoder, stream).patch_size
        patches = found["hidden"].unfold(2, size, size).unfold(3, size, size).flatten(4).flatten(1, 3)
        assert (patches.all(dim=-1) == patches.any(dim=-1)).all()
        assert [row.nonzero().flatten().tolist() for row in patches.all(dim=-1)] == [
            sorted(m) for m in mask.masked.tolist()
        ]
