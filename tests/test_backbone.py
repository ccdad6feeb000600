"""The backbone gives the outputs and gradients of the authors' code."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.fusion import FUSION_ATTENTION
from deepavfusion.models.layers import patchify, sincos_pos_embed, unpatchify
from deepavfusion.models.vit import ViT
from deepavfusion.utils.errors import UserError
from helpers import golden as cases


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_encoder_matches_golden_in_float64(case):
    fusion, layers, _ = cases.ENCODERS[case]
    with cases.float64():
        cases.assert_encoder_matches(case, cases.tiny_encoder(fusion, layers))


@pytest.mark.parametrize("fusion", ["factorized", "dense", "token"])
def test_encoder_matches_golden_in_float32(fusion):
    golden = cases.load(f"encoder_{fusion}.npz")
    model = cases.tiny_encoder(fusion)
    cases.fill_parameters(model)
    out = model(*cases.clip_inputs())
    for stream in ("image", "audio", "fusion"):
        expected = torch.from_numpy(golden[stream]).float()
        atol = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(getattr(out, stream), expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("grid", "name"), [((14, 14), "grid_14x14_dim48"), ((8, 12), "grid_8x12_dim48")])
def test_position_embedding_matches_golden(grid, name):
    expected = torch.from_numpy(cases.load("sincos_pos_embed.npz")[name])
    torch.testing.assert_close(sincos_pos_embed(48, grid), expected, atol=1e-6, rtol=0)


def test_parameter_names_are_the_published_ones():
    names = {name: list(p.shape) for name, p in cases.tiny_encoder().named_parameters()}
    assert names == cases.load_json("encoder_tiny_names.json")


def test_layers_on_request_end_in_the_normed_outputs():
    model = cases.tiny_encoder(fusion_layers=[1])
    out = model(*cases.clip_inputs(), return_layers=True)
    assert [len(x) for x in (out.image_layers, out.audio_layers, out.fusion_layers)] == [4, 4, 4]
    torch.testing.assert_close(model.image.norm(out.image_layers[-1]), out.image)
    torch.testing.assert_close(model.audio.norm(out.audio_layers[-1]), out.audio)
    torch.testing.assert_close(model.fusion_norm(out.fusion_layers[-1]), out.fusion)
    # only layer 1 writes the fusion tokens
    assert torch.equal(out.fusion_layers[0], model.fusion_tokens.expand(2, -1, -1))
    assert torch.equal(out.fusion_layers[1], out.fusion_layers[3])


def test_kept_patches_keep_their_order_and_do_not_see_the_rest():
    model = cases.tiny_encoder().eval()
    image, audio = cases.clip_inputs()
    all_kept = torch.arange(16).flip(0).expand(2, -1)
    flipped = model(image, audio, image_keep=all_kept)
    plain = model(image, audio)
    torch.testing.assert_close(flipped.image.flip(1), plain.image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flipped.fusion, plain.fusion, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FUSION_ATTENTION)
def test_every_parameter_gets_a_gradient_and_removed_patches_get_exactly_zero(kind):
    model = cases.tiny_encoder(kind)
    image, audio = (x.requires_grad_() for x in cases.clip_inputs())
    out = model(image, audio, image_keep=cases.IMAGE_KEEP, audio_keep=cases.AUDIO_KEEP)
    (out.image.square().sum() + out.audio.square().sum() + out.fusion.square().sum()).backward()
    for x, keep in ((image, cases.IMAGE_KEEP), (audio, cases.AUDIO_KEEP)):
        gradient = patchify(x.grad, 16).flatten(2).abs().sum(-1)
        kept = torch.zeros_like(gradient, dtype=torch.bool).scatter(1, keep, True)
        assert (gradient[kept] > 0).all()
        assert (gradient[~kept] == 0).all()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_unpatchify_reverses_patchify():
    x = cases.wave((2, 3, 32, 48), 0.1, 0.2)
    assert torch.equal(unpatchify(patchify(x, 16), (2, 3)), x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fusion": "concat"}, ["model.net.fusion", "concat", "factorized, dense, token"]),
        ({"fusion_layers": [0, 4]}, ["model.net.fusion_layers", "0 to 3"]),
        ({"fusion_layers": "some"}, ["model.net.fusion_layers", "all, none"]),
    ],
)
def test_bad_fusion_is_named(change, words):
    with pytest.raises(UserError) as error:
        cases.tiny_encoder(**change)
    assert all(word in str(error.value) for word in words)


def test_encoders_must_match():
    with pytest.raises(UserError, match="embed_dim 48 and depth 1"):
        DeepAVFusion(
            image=ViT((32, 32), embed_dim=48, depth=1, num_heads=4),
            audio=ViT((32, 32), in_chans=1, embed_dim=48, depth=2, num_heads=4),
        )


def keep(kept, tensor):
    kept.append(tensor)
    return tensor


@pytest.mark.parametrize("fusion_layers", ["all", [0, 2]])
def test_checkpointed_layers_give_the_same_numbers_and_keep_less(fusion_layers):
    image, audio = cases.clip_inputs()
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = cases.tiny_encoder(fusion_layers=fusion_layers)
        model.checkpoint_layers = checkpointed
        for block in (*model.image.blocks, *model.audio.blocks):
            block.drop_path.drop_prob = 0.5  # drawn once more in the backward pass, alike
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda x: x):
            out = model.train()(image, audio, return_layers=True)
        outputs = [out.image, out.audio, out.fusion, *out.image_layers]
        sum(tokens.square().sum() for tokens in outputs).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((outputs, gradients, sum(x.numel() for x in kept)))
    assert found[0][1]
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=0, atol=0)
    assert found[1][2] < found[0][2] / 5
