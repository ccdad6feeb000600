"""Exported files give what the network gives, run without it, and say what they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.demo import demo
from deepavfusion.export import export, formats
from deepavfusion.export.check import inputs_of
from deepavfusion.export.export import export_checkpoint
from deepavfusion.export.graphs import MODALITIES, Graph
from deepavfusion.export.spectra import ExportedLogMel, ExportedMelMask
from deepavfusion.inference import classify_video, load_task
from deepavfusion.inference.encoders import open_network
from deepavfusion.models.classifier import mean_of_heads
from deepavfusion.models.retriever import solo_means
from deepavfusion.transforms.audio import SAMPLE_RATE, LogMel, MelMask
from deepavfusion.transforms.image import Normalise
from helpers.checkpoints import (
    SEPARATOR,
    SPOKEN,
    build,
    encoder,
    save,
    write_classifier,
    write_segmenter,
    write_separator,
)
from helpers.errors import refusal
from helpers.media import noise, write_video
from helpers.runs import call, sentence

TARGET = "deepavfusion.tasks.{0}.{1}"
FUSIONS: dict[str, dict[str, Any]] = {
    **{kind: {"fusion": kind} for kind in ("factorized", "dense", "token")},
    "none": {"fusion_layers": "none"},
    "the last": {"fusion_layers": [1]},
}


def write_retriever(path: Path, **more: Any) -> Path:
    config = {"_target_": TARGET.format("retrieve", "Retrieve"), "num_classes": 3, "embed_dim": 8, "pretrained": None}
    config |= {"net": encoder(32, 128), **more}
    task = build(config)
    for norm in task.net.norms.values() if config.get("frozen") else ():
        norm.running_mean.normal_()
    return save(path, task, {"task": "retrieve", "model": config, "data": {}, "classes": ["a", "b", "c"]})


def write_pretrained(path: Path, depth: int = 2, **net: Any) -> Path:
    """An encoder whose fusion tokens depend on all that they should: random weights, twice as large as at the start."""
    sizes = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    config = {"_target_": TARGET.format("pretrain", "Pretrain"), "net": encoder(16, 128, **net), "pretrained": None}
    for stream in ("image", "audio"):
        config["net"][stream]["depth"] = depth
    return save(path, build(config | sizes), {"task": "pretrain", "model": config | sizes, "data": {}, "classes": []})


WRITERS = {
    "classify": write_classifier,
    "probe": lambda path: write_classifier(path, frozen=True),
    "multi-label": lambda path: write_classifier(path, multi_label=True),
    "retrieve": write_retriever,
    "frozen retriever": lambda path: write_retriever(path, frozen=True),
    "separate": write_separator,
    "binary masks": lambda path: write_separator(path, {**SEPARATOR, "mask": "binary"}),
    "segment": write_segmenter,
    "segment classes": lambda path: write_segmenter(path, 5),
    "pretrain": write_pretrained,
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "ä b.mp4", noise(4.5), frames=9)


def opened(path: Path) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["deepavfusion"])


# ---------------------------------------------------------------- sound by matrix products


def tones() -> Tensor:
    time = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    quiet = torch.from_numpy(noise(2.0)[0]) * 1e-4
    tone = 0.9 * torch.sin(2 * torch.pi * 440 * time) * (time > 0.3)
    return torch.stack([torch.from_numpy(noise(2.0, seed=1)[0]), tone, tone + quiet, torch.zeros(len(time))])


def test_the_log_mel_is_that_of_the_network_and_exact() -> None:
    waveform, exported = tones(), ExportedLogMel()
    exact = LogMel().double()(waveform.double())
    assert (exported(waveform) - exact).abs().max() < 1e-6
    difference = (exported(waveform) - LogMel()(waveform)).abs().amax(dim=(1, 2, 3))
    assert difference[0] < 1e-5  # noise
    assert difference.max() < 1e-2  # beside a loud tone, where the float32 FFT is not exact
    assert difference[3] < 1e-6  # silence


@pytest.mark.parametrize("length", [16_000, 48_000, 20_000])
def test_a_mel_mask_gives_the_same_sound(length: int) -> None:
    waveform = tones()[:, : min(length, 32_000)].repeat(1, 2)[:, :length]
    mask = torch.rand(len(waveform), 1, 128, length // 250, generator=torch.Generator().manual_seed(0))
    found = ExportedMelMask(length)(mask, waveform)
    torch.testing.assert_close(found, MelMask("normalised")(mask, waveform), rtol=0, atol=2e-6)
    torch.testing.assert_close(ExportedMelMask(length)(torch.ones_like(mask), waveform), waveform, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- what is exported


def by_hand(name: str, net: nn.Module, image: Tensor, spectrogram: Tensor, waveform: Tensor) -> dict[str, Tensor]:
    """The outputs as the network's documentation has them."""
    net_: Any = net
    if name in ("classify", "probe", "multi-label"):
        logits = net_(image, spectrogram)
        rows = torch.stack([*(logits[head] for head in ("image", "audio", "fusion")), mean_of_heads(logits)], dim=1)
        return {"logits": rows, "scores": rows.sigmoid() if name == "multi-label" else rows.softmax(-1)}
    if "retrieve" in name:
        means = solo_means(net_.encoder, image, spectrogram)
        return {f"{stream}_embedding": unit for stream, unit in net_.project(means).items()}
    if name == "separate":
        mask = (net_(image, spectrogram)).exp().clamp(max=1)
        return {"mask": mask[:, 0], "estimate": MelMask()(mask, waveform)}
    if name == "binary masks":
        mask = net_(image, spectrogram).sigmoid()
        return {"mask": mask[:, 0], "estimate": MelMask()(mask, waveform)}
    if name == "pretrain":
        encoded = net_.encoder(image, spectrogram)
        return {f"{stream}_tokens": getattr(encoded, stream) for stream in ("image", "audio", "fusion")}
    logits = net_(image, spectrogram)
    return {"scores": logits.sigmoid() if name == "segment" else logits.softmax(dim=1)}


@pytest.mark.parametrize("name", WRITERS)
@torch.no_grad()
def test_a_graph_gives_what_the_network_does(name: str, tmp_path: Path) -> None:
    network, _ = open_network(WRITERS[name](tmp_path / "a.ckpt"))
    graph = Graph(network)
    given = inputs_of(graph, None, count=2)
    image, spectrogram = Normalise()(given["image"]), LogMel()(given["waveform"])
    expected = by_hand(name, network.net, image, spectrogram, given["waveform"])
    found = graph(**given)
    assert list(found) == list(expected)
    for output, tensor in expected.items():
        torch.testing.assert_close(found[output], tensor, rtol=0, atol=1e-6)
        assert (tensor[0] - tensor[1]).abs().max() > 0, output
    prepared = Graph(network, preprocess=False)
    assert {key: shape for key, (_, shape) in prepared.inputs().items()} == {
        "image": tuple(image.shape[1:]),
        "spectrogram": tuple(spectrogram.shape[1:]),
    }
    assert torch.equal(next(iter(prepared(image=image, spectrogram=spectrogram).values())), next(iter(found.values())))


@torch.no_grad()
def test_a_graph_of_one_modality_has_not_seen_the_other(tmp_path: Path) -> None:
    network, _ = open_network(write_classifier(tmp_path / "a.ckpt"))
    both = inputs_of(Graph(network), None, count=2)
    image, spectrogram = Normalise()(both["image"]), LogMel()(both["waveform"])
    heads = {"image": ["image", "fusion", "all"], "audio": ["audio", "fusion", "all"]}
    for modality, alone in (("image", (image, None)), ("audio", (None, spectrogram))):
        graph = Graph(network, modality)
        (name,) = graph.inputs()
        logits = network.net(*alone)
        assert graph.heads == heads[modality]
        rows = torch.stack([*logits.values(), mean_of_heads(logits)], dim=1)
        torch.testing.assert_close(graph(**{name: both[name]})["logits"], rows)
        tokens = Graph(network, modality, head=False)(**{name: both[name]})
        assert list(tokens) == [f"{modality}_tokens", "fusion_tokens"]
        assert torch.equal(tokens["fusion_tokens"], network.net.encoder(*alone).fusion)


# ---------------------------------------------------------------- files


def test_an_onnx_file_runs_by_itself_and_says_what_it_is(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_pretrained(tmp_path / "my.ckpt", depth=1), tmp_path / "new" / "e.onnx"
    words = ("export=onnx", "modality=audio", f"input={source}", f"output={output}", f"check={video}")
    call(monkeypatch, "convert", *words)
    text = capsys.readouterr().out
    assert "input image" not in text
    assert "input waveform: float32 [batch, 32000]" in text
    differences = re.findall(r"(\w+)_tokens: differs from the network by at most (\S+) \(batch 1\), (\S+) \(b", text)
    assert [name for name, *_ in differences] == ["audio", "fusion"]
    assert all(float(value) <= 1e-4 for _, *values in differences for value in values)
    session, about = opened(output)
    graph = Graph(open_network(source)[0], "audio")
    given = inputs_of(graph, None, count=3)
    found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    with torch.no_grad():
        for name, array, tensor in zip(about["outputs"], found, graph(**given).values(), strict=True):
            np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=1e-4, err_msg=name)
    shown = {node.name: node.shape for node in (*session.get_inputs(), *session.get_outputs())}
    assert {name: each["shape"] for part in ("inputs", "outputs") for name, each in about[part].items()} == shown
    assert {shape[0] for shape in shown.values()} == {"batch"}
    assert about["modalities"] == ["audio"]
    assert about["source"]["checkpoint"] == "my.ckpt"
    assert len(about["source"]["sha256"]) == 64
    assert (about["audio"]["sample_rate"], about["image"]["size"], about["format"]) == (16_000, 64, 1)
    model = onnx.load(output)
    assert model.producer_name == "deepavfusion"
    assert model.opset_import[0].version == about["made_with"]["opset"] == 18
    for place in (REPOSITORY, tmp_path, Path(torch.__file__).parents[1]):
        assert str(place).encode() not in output.read_bytes()


def test_a_program_of_torch_export_is_equal_and_says_what_it_is(tmp_path: Path, video: Path) -> None:
    net = encoder(16, 128)
    net["image"]["depth"] = net["audio"]["depth"] = 1
    source = write_classifier(tmp_path / "a.ckpt", net=net)
    found = export_checkpoint(source, tmp_path / "a.pt2", "torch", modality="audio", check=video)
    assert {value for by_batch in found.differences.values() for value in by_batch.values()} == {0.0}
    extra = {"deepavfusion.json": ""}
    module: Any = torch.export.load(tmp_path / "a.pt2", extra_files=extra).module()
    about = json.loads(extra["deepavfusion.json"])
    assert (about["classes"], about["heads"], about["multi_label"]) == (SPOKEN, ["audio", "fusion", "all"], False)
    graph = Graph(load_task(source), "audio")
    given = inputs_of(graph, None, count=3)
    with torch.no_grad():
        torch.testing.assert_close(module(**given)["scores"], graph(**given)["scores"], rtol=0, atol=1e-6)
    assert str(REPOSITORY).encode() not in (tmp_path / "a.pt2").read_bytes()


# ---------------------------------------------------------------- what cannot be exported


def fake(monkeypatch: pytest.MonkeyPatch, off: float, bound: float = 1e-4) -> None:
    """A format whose files are off by so much."""
    graphs: list[Graph] = []

    def write(graph: Graph, description: str, path: Path) -> list[Path]:
        graphs.append(graph)
        path.write_text(f"ours {description}")
        return [path]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor + off for name, tensor in graphs[-1](**inputs).items()}

    mine = formats.Format(".onnx", bound, write, lambda _: run, lambda path: path.read_text().startswith("ours"))
    monkeypatch.setitem(export.FORMATS, "onnx", mine)


@pytest.mark.parametrize("off", [2e-4, float("nan")])
def test_a_file_that_differs_from_the_network_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: Path, off: float
) -> None:
    source, output = write_pretrained(tmp_path / "a.ckpt"), tmp_path / "a.onnx"
    fake(monkeypatch, 1e-5)
    export_checkpoint(source, output, "onnx", check=video)
    before = output.read_bytes()
    fake(monkeypatch, off)
    text = refusal(export_checkpoint, source, output, "onnx", check=video)
    assert text.startswith("the exported image_tokens differs from the network by ")
    assert f"on {video}, expected at most 0.0001, so the file was removed: give check=<another video>, or pre" in text
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "a.onnx"]


def test_files_of_others_are_left_as_they_are(tmp_path: Path) -> None:
    source = write_pretrained(tmp_path / "a.ckpt")
    for kind, name in (("onnx", "a.onnx"), ("torch", "a.pt2"), ("onnx", "b.onnx.data")):
        mine = tmp_path / name
        mine.write_bytes(b"mine")
        output = str(mine).removesuffix(".data")
        assert f"{mine} is there, and convert.py has not written it" in refusal(export_checkpoint, source, output, kind)
        assert mine.read_bytes() == b"mine"
    (tmp_path / "c.onnx").mkdir()
    assert "has not written it" in refusal(export_checkpoint, source, tmp_path / "c.onnx", "onnx")


def test_what_cannot_be_exported_is_said_in_a_sentence(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, segmenter = write_pretrained(tmp_path / "a.ckpt"), write_segmenter(tmp_path / "s.ckpt")
    output = tmp_path / "a.pt2"
    assert "expected a name that ends in .pt2" in refusal(export_checkpoint, source, tmp_path / "a.onnx", "torch")
    text = refusal(export_checkpoint, segmenter, output, "torch", modality="image")
    assert "a segmenter needs image and audio: omit it, or export the encoder alone (head=false)" in text
    (tmp_path / "no.mp4").write_bytes(b"no video")
    assert "no.mp4 cannot be used as check" in refusal(
        export_checkpoint, source, output, "torch", check=tmp_path / "no.mp4"
    )
    words = (f"input={source}", f"output={tmp_path / 'a.safetensors'}", "modality=image")
    text = sentence(monkeypatch, capsys, *words, script="convert")
    assert text == "convert.py: only an export reads modality: add export=onnx or export=torch, or omit it."
    found = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    text = refusal(export_checkpoint, source, tmp_path / "a.onnx", "onnx", check=video)
    assert "packages that are not installed (onnxscript): " in text
    assert f"`{sys.executable} -m pip install onnx onnxscript onnxruntime` installs them" in text
    assert not output.exists()


# ---------------------------------------------------------------- all of them, which takes minutes


@pytest.mark.full
@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_every_fusion_is_exported(kind: str, fusion: str, modality: str, tmp_path: Path, video: Path) -> None:
    source = write_pretrained(tmp_path / "a.ckpt", **FUSIONS[fusion])
    output = tmp_path / f"a{formats.FORMATS[kind].suffix}"
    found = export_checkpoint(source, output, kind, modality, check=video)
    assert list(found.differences) == [f"{stream}_tokens" for stream in (*MODALITIES[modality], "fusion")]
    assert all(set(by_batch) == {1, 5} for by_batch in found.differences.values())
    if fusion == "factorized" and modality == "both":
        again = export_checkpoint(source, output, kind, preprocess=False, check=video)  # replaces it
        assert list(again.differences) == list(found.differences)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "pretrain"])
def test_every_head_is_exported(kind: str, name: str, tmp_path: Path, video: Path) -> None:
    source = WRITERS[name](tmp_path / "a.ckpt")
    found = export_checkpoint(source, tmp_path / f"a{formats.FORMATS[kind].suffix}", kind, check=video)
    assert found.differences


@pytest.mark.full
def test_a_large_network_has_its_weights_beside_it(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "ONE_FILE", 1000)
    source = write_pretrained(tmp_path / "a.ckpt")
    for _ in range(2):  # replaced by the second
        found = export_checkpoint(source, tmp_path / "a.onnx", "onnx", check=video)
        assert found.files == [tmp_path / "a.onnx", tmp_path / "a.onnx.data"]
    session, _ = opened(tmp_path / "a.onnx")
    assert len(session.get_inputs()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "a.onnx", "a.onnx.data"]


@pytest.mark.full
def test_the_lines_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    classify, segment = (block for block in blocks if "classifier.onnx" in block or "segmenter.pt2" in block)
    export_checkpoint(write_classifier(tmp_path / "c.ckpt"), tmp_path / "classifier.onnx", "onnx", check=video)
    export_checkpoint(write_segmenter(tmp_path / "s.ckpt"), tmp_path / "segmenter.pt2", "torch", check=video)
    monkeypatch.chdir(tmp_path)
    exec(classify, {})
    assert capsys.readouterr().out.strip() in SPOKEN
    names: dict[str, Any] = {}
    exec(segment, names)
    assert names["scores"].shape == (1, 1, 64, 64)


@pytest.mark.full
def test_the_example_classifies_without_this_project(tmp_path: Path) -> None:
    """As `predict.py task=classify`, in a process that can import neither it nor PyTorch."""
    source = write_classifier(tmp_path / "a.ckpt")
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=demo.Counts(vggsound_train=1, vggsound_test=1))
    clips = sorted(tmp_path.glob("vggsound/clips/*/*.mp4"))[:3]
    short = write_video(tmp_path / "short.mp4", noise(1.2, rate=44_100, channels=2), rate=44_100)
    export_checkpoint(source, tmp_path / "a.onnx", "onnx", check=clips[0])
    script = (
        "import json, runpy, sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'deepavfusion', 'PIL'))\n"
        f"classify = runpy.run_path({str(REPOSITORY / 'notebooks' / 'onnx_classify.py')!r})['classify']\n"
        "found = [classify(sys.argv[1], video) for video in sys.argv[2:]]\n"
        "print(json.dumps([[classes, scores.tolist()] for classes, scores in found]))"
    )
    words = [sys.executable, "-c", script, tmp_path / "a.onnx", *clips, short]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    task = load_task(source)
    for video, (classes, scores) in zip([*clips, short], json.loads(done.stdout), strict=True):
        expected = classify_video(task, video)
        assert classes == expected.classes
        np.testing.assert_allclose(scores, expected.mean, rtol=0, atol=5e-3, err_msg=str(video))
