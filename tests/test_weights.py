"""Published and own checkpoints load through one door, and what is no checkpoint is named."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deepavfusion.models.fusion import FUSION_ATTENTION
from deepavfusion.models.mae import MaskedAutoencoder
from deepavfusion.models.vit import ViT
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.file import OPTIMIZER, read_file
from deepavfusion.weights.weights import describe, load_encoder, load_mae, load_vit, our_name, read_weights
from helpers import golden as cases
from helpers.runs import call

REPOSITORY = Path(__file__).resolve().parents[1]


def tiny_mae(seed: int) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    return MaskedAutoencoder(cases.tiny_encoder(), decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)


def published(seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint as the original code writes it, with the golden names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) for n, s in cases.load_json("mae_tiny_names.json").items()}


def mae_vit(in_chans: int = 3) -> dict[str, torch.Tensor]:
    """An MAE checkpoint: class token, learned-position row for it, decoder."""
    names = cases.load_json("encoder_tiny_names.json")
    stream = "image." if in_chans == 3 else "audio."
    tensors = {n.removeprefix(stream): torch.randn(s) for n, s in names.items() if n.startswith(stream)}
    tensors["pos_embed"] = torch.randn(1, 197, 48)
    return tensors | {"cls_token": torch.zeros(1, 1, 48), "decoder_embed.weight": torch.zeros(32, 48)}


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"state_dict": published(), "epoch": 199, "args": {"blr": 1.5e-4}}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_checkpoint_fills_the_whole_network(tmp_path, prefix):
    path, tensors = tmp_path / "published.pth", published()
    torch.save({"state_dict": {prefix + n: t for n, t in tensors.items()}, "epoch": 1}, path)
    model = tiny_mae(1)
    report = load_mae(model, path)
    assert report.new == report.unused == []
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if not name.endswith(("image.pos_embed", "audio.pos_embed")):
            assert torch.equal(parameters[our_name(name)], tensor), name
    # the encoders' embedding is fixed, whatever the file says
    assert torch.equal(parameters["encoder.image.pos_embed"], tiny_mae(2).encoder.image.pos_embed)


def test_published_checkpoint_fills_an_encoder_and_ignores_the_decoders(original):
    encoder = cases.tiny_encoder()
    report = load_encoder(encoder, original)
    assert torch.equal(encoder.fusion_tokens, published()["encoder.fusion_tokens"])
    assert report.new == []
    assert {name.split(".")[0] for name in report.unused} == {"image_decoder", "audio_decoder"}


@pytest.mark.parametrize(("in_chans", "stream"), [(3, "image"), (1, "audio")])
def test_mae_vits_load_without_class_token_and_decoder(tmp_path, in_chans, stream):
    path, tensors = tmp_path / "mae.pth", mae_vit(in_chans)
    torch.save({"model": tensors, "args": argparse.Namespace(lr=1e-3, model="mae_vit")}, path)
    vit = getattr(cases.tiny_encoder(), stream)
    report = load_vit(vit, path)
    assert report.new == []
    assert torch.equal(vit.blocks[3].mlp.fc2.weight, tensors["blocks.3.mlp.fc2.weight"])
    assert torch.equal(vit.norm.bias, tensors["norm.bias"])
    with pytest.raises(UserError, match=r"single ViT.*model\.image_weights"):
        load_mae(tiny_mae(0), path)


def test_optimizer_states_are_not_read_for_their_weights(tmp_path):
    moments = {"state": {0: {"exp_avg": torch.arange(4.0)}}}
    torch.save({"state_dict": {"net.a": torch.ones(3)}, "optimizer_states": [moments], "epoch": 2}, tmp_path / "a.ckpt")
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    at = content.find(torch.arange(4.0).numpy().tobytes())
    content[at] ^= 1
    (tmp_path / "b.ckpt").write_bytes(content)
    read = read_file(tmp_path / "b.ckpt", without=OPTIMIZER)
    assert set(read) == {"state_dict", "epoch"}
    assert torch.equal(read["state_dict"]["net.a"], torch.ones(3))
    with pytest.raises(UserError, match="damaged"):
        read_file(tmp_path / "b.ckpt")


def test_a_lightning_checkpoint_is_ours(tmp_path):
    path, source, target = tmp_path / "last.ckpt", tiny_mae(3), tiny_mae(4)
    torch.save({"state_dict": {f"net.{n}": t for n, t in source.state_dict().items()}, "epoch": 3}, path)
    assert read_weights(path).kind == "ours"
    load_mae(target, path)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("content", ["original", "vit"])
def test_convert_writes_what_loads_again(tmp_path, original, content, monkeypatch, capsys):
    source = original
    if content == "vit":
        source = tmp_path / "mae.pth"
        torch.save({"model": mae_vit()}, source)
    output = tmp_path / "out" / "weights.safetensors"
    call(monkeypatch, "convert", f"input={source}", f"output={output}")
    assert "embed_dim = 48" in capsys.readouterr().out
    assert set(load_file(output)) == set(read_weights(source).tensors)
    if content == "vit":
        assert load_vit(cases.tiny_encoder().image, output).new == []
    else:
        a, b = tiny_mae(5), tiny_mae(6)
        load_mae(a, source), load_mae(b, output)
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_wrong_sizes_name_a_tensor_and_the_config_that_would_fit(original):
    model = MaskedAutoencoder(cases.tiny_encoder("dense"), 32, 2, 4)
    with pytest.raises(UserError) as error:
        load_mae(model, original)
    text = str(error.value)
    assert "does not fit the model" in text
    assert "model.net.fusion is factorized in the file and dense here: set model.net.fusion=factorized" in text
    assert "embed_dim" not in text  # which fits
    with pytest.raises(UserError, match=r"embed_dim is 48 .* and 96 here.*depth is 4 .* set .*embed_dim=48 .*depth=4"):
        load_vit(ViT((64, 64), embed_dim=96, depth=2, num_heads=4), save_vit(original.parent))


class MeanAttention(nn.Module):
    """A kind of fusion that somebody adds: without queries."""

    def __init__(self, dim: int, num_heads: int, attn_ratio: float, num_tokens: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * dim, dim)

    def forward(self, fusion: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        means = torch.cat([image.mean(dim=1), audio.mean(dim=1)], dim=-1)
        return self.proj(means)[:, None].expand_as(fusion)


@pytest.mark.parametrize(("registered", "kind"), [(True, "mean"), (False, "<unknown>")])
def test_weights_of_a_new_kind_of_fusion_are_described(monkeypatch, registered, kind):
    monkeypatch.setitem(FUSION_ATTENTION, "mean", MeanAttention)
    model = cases.tiny_encoder("mean")
    model(*cases.clip_inputs()).fusion.sum().backward()
    if not registered:
        monkeypatch.delitem(FUSION_ATTENTION, "mean")
    found = describe({f"encoder.{name}": tensor for name, tensor in model.state_dict().items()})
    assert (found["net.fusion"], found["net.fusion_layers"]) == (kind, [0, 1, 2, 3])


def test_a_file_with_fewer_fusion_layers_does_not_pass_for_the_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    source = MaskedAutoencoder(cases.tiny_encoder(fusion_layers=[0, 2]), 32, 2, 4)
    torch.save({"state_dict": {f"net.{n}": t for n, t in source.state_dict().items()}}, path)
    with pytest.raises(UserError, match=r"fusion_layers is \[0, 2\] in the file and \[0, 1, 2, 3\] here"):
        load_mae(tiny_mae(0), path)


def save_vit(folder: Path) -> Path:
    torch.save({"model": mae_vit()}, folder / "mae.pth")
    return folder / "mae.pth"


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def broken_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.pth"
    torch.save({"state_dict": published()}, whole)
    files = {name: folder / f"{name}.pth" for name in ("truncated", "empty", "text", "foreign", "tensorless", "bomb")}
    files["truncated"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files["empty"].write_bytes(b"")
    files["text"].write_text("this is no checkpoint")
    torch.save({"state_dict": {"resnet.conv1.weight": torch.zeros(3)}}, files["foreign"])
    torch.save({"epoch": 3}, files["tensorless"])
    files["bomb"].write_bytes(pickle.dumps({"state_dict": Bomb()}))
    files["missing"] = folder / "missing.pth"
    files["safetensors"] = folder / "cut.safetensors"
    files["safetensors"].write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    return files


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("truncated", "cannot be read"),
        ("empty", "cannot be read"),
        ("text", "cannot be read"),
        ("foreign", "resnet.conv1.weight"),
        ("tensorless", "no tensors"),
        ("bomb", "was not loaded"),
        ("safetensors", "cannot be read"),
    ],
)
def test_what_is_no_checkpoint_gets_one_sentence(tmp_path, monkeypatch, kind, words):
    monkeypatch.chdir(tmp_path)
    path = broken_files(tmp_path)[kind]
    with pytest.raises(UserError) as error:
        load_mae(tiny_mae(0), path)
    text = str(error.value)
    assert words in text
    assert str(path) in text
    assert "expected" in text
    assert not (tmp_path / "exploded").exists()
