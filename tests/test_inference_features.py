"""What `predict.py task=features` makes of videos: embeddings that evaluation would see, and a list of what failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import deepavfusion.inference as inference
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.inference.encoders import open_encoder, sizes_of
from deepavfusion.inference.features import Features, extract_features
from deepavfusion.inference.growing import GrowingArray
from deepavfusion.inference.inputs import read_input
from deepavfusion.inference.write.features import summary, write_features
from deepavfusion.media import Media
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.mae import MaskedAutoencoder
from deepavfusion.models.vit import ViT
from deepavfusion.transforms.audio import SAMPLE_RATE, LogMel
from deepavfusion.transforms.image import Normalise
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError
from helpers.checkpoints import write_classifier, write_segmenter, write_separator
from helpers.errors import refusal
from helpers.golden import original_name
from helpers.media import coloured_noise, noise
from helpers.verify import Trap

STREAMS = ("image", "audio", "fusion")


def tiny(dim: int = 64, size: int = 64, frames: int = 64, depth: int = 2, seed: int = 0, **more: Any) -> DeepAVFusion:
    """One second of sound; heads of 64 channels, as where they are not recorded."""
    torch.manual_seed(seed)
    sizes: Any = {"patch_size": 16, "embed_dim": dim, "depth": depth, "num_heads": max(1, dim // 64), "mlp_ratio": 2.0}
    image, audio = ViT((size, size), in_chans=3, **sizes), ViT((128, frames), in_chans=1, **sizes)
    encoder = DeepAVFusion(image, audio, **{"num_fusion_tokens": (4, 2, 2), **more}).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "pos_embed" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


@pytest.fixture(scope="module")
def encoder() -> DeepAVFusion:
    return tiny()


def film(path: Path, seconds: float, seed: int = 0) -> Path:
    frames = np.roll(coloured_noise(round(seconds * 4), 96, 128), 8 * seed, axis=2)
    write_mp4(path, frames, 4, noise(seconds, seed=seed), SAMPLE_RATE, audio_bit_rate=128_000)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of different lengths in two folders, three files that cannot be used, and two that are no videos."""
    folder = tmp_path_factory.mktemp("videos")
    for n, name in enumerate(("b.mp4", "sub/a.MP4", "sub/c.mkv", "a.mp4")):
        (folder / name).parent.mkdir(exist_ok=True)
        film(folder / "new.mp4", 2.0 + 0.7 * n, seed=n).rename(folder / name)
    film(folder / "short.mp4", 0.5, seed=9)
    (folder / "broken.mp4").write_bytes(b"not a film" * 100)
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:4000])
    (folder / "void.mp4").touch()
    (folder / "notes.txt").write_text("a")
    (folder / "sub" / "README").write_text("a")
    (folder / ".hidden.mp4").write_text("a")
    return folder


GOOD, BAD = ["a.mp4", "b.mp4", "short.mp4", "sub/a.MP4", "sub/c.mkv"], ["broken.mp4", "cut.mp4", "void.mp4"]


def windows_of(encoder: DeepAVFusion, path: Path, windows: int = 1) -> tuple[Tensor, Tensor]:
    """Pictures and spectrograms of a file, by evaluation's dataset and the transforms one by one."""
    size, seconds = sizes_of(encoder)
    dataset = WindowDataset(
        ClipList("", [Clip("", str(path))], []), RawStore(), SampleSpec(size, seconds), windows=windows
    )
    group = dataset[0, 0]
    assert isinstance(group, list)
    image = Normalise()(torch.stack([sample.image for sample in group]))
    return image, LogMel()(torch.stack([sample.waveform for sample in group]))


def same(found: Features, other: Features, tolerance: float = 1e-5) -> None:
    assert found.paths == other.paths
    for stream in STREAMS:
        np.testing.assert_allclose(getattr(found, stream), getattr(other, stream), atol=tolerance)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("windows", [1, 3])
def test_features_are_those_of_evaluation(windows: int, encoder: DeepAVFusion, videos: Path) -> None:
    found = extract_features(encoder, videos, windows=windows)
    assert found.paths == [str(videos / name) for name in GOOD]
    assert (found.level, found.windows, found.image_size, found.audio_seconds) == ("pooled", windows, 64, 1.0)
    for n, name in enumerate(GOOD):
        image, audio = windows_of(encoder, videos / name, windows)
        with torch.no_grad():
            output = encoder(image, audio)
        for stream in STREAMS:
            array = getattr(found, stream)
            assert (array.shape, array.dtype) == ((5, 64), np.float32)
            expected = getattr(output, stream).mean(dim=1).mean(dim=0)
            np.testing.assert_allclose(array[n], expected.numpy(), atol=1e-5)
    assert np.ptp(found.image, axis=0).max() > 0.01
    assert np.ptp(found.audio, axis=0).max() > 0.01


def test_the_middle_window_counts(encoder: DeepAVFusion, videos: Path) -> None:
    """Of b.mp4, 2 s: from 0.5 s to 1.5 s, with the frame at 1 s."""
    dataset = WindowDataset(ClipList("", [Clip("", str(videos / "b.mp4"))], []), RawStore(), SampleSpec(64, 1.0))
    (sample,) = dataset[0, 0]
    assert (sample.window_start, sample.frame_time) == (pytest.approx(0.5, abs=0.04), 1.0)
    with RawStore().open(dataset.clips[0]) as clip, torch.no_grad():
        (by_hand,) = dataset.windows(dataset.clips[0], clip, [sample.window_start])
        output = encoder(Normalise()(by_hand.image[None]), LogMel()(by_hand.waveform[None]))
    found = extract_features(encoder, [videos / "b.mp4"])
    np.testing.assert_allclose(found.fusion, output.fusion.mean(dim=1), atol=1e-5)


def test_tokens(encoder: DeepAVFusion, videos: Path, tmp_path: Path) -> None:
    found = extract_features(encoder, videos, level="tokens", scratch=tmp_path, batch_size=2)
    shapes = {"image": (5, 16, 64), "audio": (5, 32, 64), "fusion": (5, 8, 64)}
    for n, name in enumerate(GOOD):
        with torch.no_grad():
            output = encoder(*windows_of(encoder, videos / name))
        for stream in STREAMS:
            array = getattr(found, stream)
            assert (array.shape, array.dtype) == (shapes[stream], np.float32)
            assert isinstance(array, np.memmap)  # on disk
            np.testing.assert_allclose(array[n], getattr(output, stream)[0], atol=1e-5)
    assert not list(tmp_path.iterdir())  # in files without names
    pooled = extract_features(encoder, videos)
    np.testing.assert_allclose(pooled.audio, found.audio.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (100, 1)])
@pytest.mark.parametrize("windows", [1, 4])
def test_batches_and_workers_change_nothing(
    batch_size: int, workers: int, windows: int, encoder: DeepAVFusion, videos: Path
) -> None:
    calls: list[tuple[int, int]] = []
    reference = extract_features(encoder, videos, windows=windows)
    given: dict[str, Any] = {"windows": windows, "batch_size": batch_size, "num_workers": workers}
    found = extract_features(encoder, videos, **given, on_progress=lambda *n: calls.append(n))
    same(found, reference)
    assert found.failed == reference.failed
    together = max(1, batch_size // windows)
    assert calls == [(min(n, 8), 8) for n in range(together, 8 + together, together)]


def test_half_precision_gives_float32(videos: Path) -> None:
    reference = extract_features(tiny(), [videos / "a.mp4"])
    half = extract_features(tiny().bfloat16(), [videos / "a.mp4"])
    assert half.image.dtype == half.audio.dtype == half.fusion.dtype == np.float32
    same(half, reference, 0.1)


# ---------------------------------------------------------------- one modality


@pytest.fixture(scope="module")
def partial(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """a.mp4 with image and audio, without audio, its audio alone, b.mp4, and an image file."""
    folder = tmp_path_factory.mktemp("partial")
    with Media(videos / "a.mp4") as media:
        seconds = media.info.audio_end
        write_mp4(folder / "mute.mp4", media.frames([n / 4 for n in range(round(seconds * 4))]), 4)
        write_wav(folder / "a.wav", media.audio(0.0, seconds).numpy()[None], SAMPLE_RATE)
    Image.fromarray(coloured_noise(1, 96, 128)[0]).save(folder / "still.png")
    return [str(path) for path in (videos / "a.mp4", folder / "mute.mp4", folder / "a.wav", videos / "b.mp4")] + [
        str(folder / "still.png")
    ]


@pytest.mark.parametrize("windows", [1, 2])
def test_files_with_one_modality(windows: int, encoder: DeepAVFusion, videos: Path, partial: list[str]) -> None:
    found = extract_features(encoder, partial, windows=windows, passes="all")
    assert found.paths == partial
    assert found.failed == found.remarks == []
    assert found.modalities == ["image audio", "image", "audio", "image audio", "image"]
    assert found.places == partial
    image, audio = windows_of(encoder, videos / "a.mp4", windows)
    with torch.no_grad():
        passes = {"image": encoder(image, None).pooled(), "audio": encoder(None, audio).pooled()}
    for row, modality, absent in ((1, "image", "audio"), (2, "audio", "image")):
        for name, stream in ((f"solo_{modality}", modality), (f"fusion_of_{modality}", "fusion")):
            expected = passes[modality][stream].mean(dim=0).numpy()
            np.testing.assert_allclose(found.embeddings[name][0], expected, atol=1e-5)
            np.testing.assert_allclose(found.embeddings[name][row], expected, atol=0.1)  # its content was encoded anew
            assert np.isnan(found.embeddings[name.replace(modality, absent)][row]).all()
        np.testing.assert_array_equal(getattr(found, modality)[row], found.embeddings[f"solo_{modality}"][row])
        np.testing.assert_array_equal(found.fusion[row], found.embeddings[f"fusion_of_{modality}"][row])
        assert np.isnan(getattr(found, absent)[row]).all()
    assert np.isfinite(found.image[4]).all()
    assert np.abs(found.fusion[0] - found.embeddings["fusion_of_image"][0]).max() > 1e-3  # the joint pass is another
    # Rows of complete files do not depend on what else there is, to the last bit.
    complete = [partial[0], partial[3]]
    alone = extract_features(encoder, complete, windows=windows)
    assert list(alone.embeddings) == ["image", "audio", "fusion"]
    for stream in STREAMS:
        np.testing.assert_array_equal(getattr(found, stream)[[0, 3]], getattr(alone, stream))
    unimodal = extract_features(encoder, partial, windows=windows, batch_size=2, passes="unimodal")
    assert sorted(unimodal.embeddings) == ["fusion_of_audio", "fusion_of_image", "solo_audio", "solo_image"]
    for name, values in unimodal.embeddings.items():
        np.testing.assert_allclose(values, found.embeddings[name], atol=1e-5)


def test_files_with_one_modality_in_the_npz(encoder: DeepAVFusion, partial: list[str], tmp_path: Path) -> None:
    found = extract_features(encoder, partial, level="tokens")
    assert found.audio.shape == (5, 32, 64)
    assert np.isnan(found.audio[1]).all()
    write_features(found, tmp_path / "features.npz", "last.ckpt", "ab" * 32)
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        assert file["modalities"].tolist() == found.modalities
        assert file["place"].tolist() == partial
        assert file["size"].tolist() == [Path(path).stat().st_size for path in partial]
        assert file["checkpoint_sha256"].item() == "ab" * 32
        np.testing.assert_array_equal(file["audio"], found.audio)
    lines = summary(found, tmp_path / "features.npz", None)
    assert lines[1:] == [
        f"  2 with image alone (modalities): fusion is of image only, audio is nan: {partial[1]}, {partial[4]}",
        f"  1 with audio alone (modalities): fusion is of audio only, image is nan: {partial[2]}",
    ]


def test_a_folder_has_audio_files_and_an_earlier_file_is_replaced(
    encoder: DeepAVFusion, partial: list[str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(Path(partial[2]).read_bytes())
    found = extract_features(encoder, tmp_path / "in")
    assert (found.modalities, np.isfinite(found.fusion).all()) == (["audio"], True)
    names = ("path", "image", "audio", "fusion", "failed", "failed_reason", "level", "audio_seconds")
    np.savez(tmp_path / "old.npz", **dict.fromkeys(names, np.zeros(1)))  # of an earlier version
    write_features(found, tmp_path / "old.npz")
    with np.load(tmp_path / "old.npz", allow_pickle=False) as file:
        assert file["modalities"].tolist() == ["audio"]


# ---------------------------------------------------------------- which videos


def test_failures_are_listed(encoder: DeepAVFusion, videos: Path) -> None:
    found = extract_features(encoder, videos, batch_size=2)
    assert [failure.path for failure in found.failed] == [str(videos / name) for name in BAD]
    reasons = [failure.reason for failure in found.failed]
    assert reasons[0].startswith("undecodable: ")
    assert reasons[1].startswith("truncated: ")
    assert reasons[2] == "truncated: the file is empty"
    (remark,) = found.remarks
    assert remark.path == str(videos / "short.mp4")
    assert remark.reason.startswith("too short: 0.5")
    assert remark.reason.endswith("the window is 1 s; extended by its mirror image")
    (note,) = found.notes
    assert note == "2 files skipped, not named like a video or audio file (.txt: 1, no suffix: 1)"
    assert len(found) + len(found.failed) == 8


def test_lists(encoder: DeepAVFusion, videos: Path, tmp_path: Path) -> None:
    other = tmp_path / "list.txt"
    other.write_text(f"# mine\n\n  {videos}/b.mp4 \nnowhere.mp4\n{videos}/sub/../a.mp4\n{videos}/a.mp4\n")
    found = extract_features(encoder, other)
    assert found.paths == [f"{videos}/b.mp4", f"{videos}/sub/../a.mp4"]
    assert [(failure.path, failure.reason) for failure in found.failed] == [
        ("nowhere.mp4", "missing: there is no such file")
    ]
    assert found.failed[0].place == str(tmp_path / "nowhere.mp4")
    assert found.notes == [f"1 path is listed more than once and counted once, e.g. {videos}/a.mp4"]
    np.testing.assert_array_equal(found.image, extract_features(encoder, [videos / "b.mp4", videos / "a.mp4"]).image)


def test_relative_to_the_list(videos: Path) -> None:
    for name, text in (
        ("list.txt", "sub/c.mkv\nb.mp4\n"),
        ("plain.csv", 'sub/c.mkv,3\n"b.mp4",4\n'),
        ("table.csv", "\ufeffid,Path,label\n1,sub/c.mkv,x\n# 2,a.mp4,x\n3,b.mp4,y\n4,,z\n"),
    ):
        path = videos.parent / "lists" / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "sub").mkdir(exist_ok=True)
        path.write_text(text)
        read = read_input(path)
        assert read.files == {"sub/c.mkv": f"{path.parent}/sub/c.mkv", "b.mp4": f"{path.parent}/b.mp4"}
        assert read.notes == []
    assert list(read_input(videos / "b.mp4").files) == [str(videos / "b.mp4")]


def test_a_folder_that_links_to_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.webm").touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "b.mp4").touch()
    assert list(read_input(tmp_path).files) == [str(tmp_path / "in" / "a.webm")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere", None, "does not exist: expected a folder of videos, a list"),
        ("folder/a.txt", b"", "folder holds no video or audio file: none of its 1 file ends in .3g2, .3gp, .asf, .avi"),
        ("empty.txt", b"# nothing\n\n", "empty.txt lists no video"),
        ("latin.txt", b"caf\xe9.mp4\n", "latin.txt is not UTF-8 text"),
        ("latin.csv", b"caf\xe9.mp4\n", "latin.csv, line 1, is not UTF-8 text"),
    ],
)
def test_inputs_that_cannot_be(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert words in refusal(read_input, tmp_path / name.split("/")[0])


def test_settings_that_would_mean_nothing(encoder: DeepAVFusion) -> None:
    given = (extract_features, encoder, ["a.mp4"])
    assert "level is 'frames' and windows is 1, expected level=pooled" in refusal(*given, level="frames")
    assert "expected level=pooled, or level=tokens with windows=1" in refusal(*given, level="tokens", windows=2)


# ---------------------------------------------------------------- file


def test_the_file(encoder: DeepAVFusion, videos: Path, tmp_path: Path) -> None:
    found = extract_features(encoder, videos, windows=2)
    output = tmp_path / "new" / "features.npz"
    failed = write_features(found, output, "some/last.ckpt")
    assert failed == tmp_path / "new" / "features_failed.txt"
    assert {path.name for path in output.parent.iterdir()} == {"features.npz", "features_failed.txt"}
    with np.load(output, allow_pickle=False) as file:
        saved = dict(file)
    for stream in STREAMS:
        np.testing.assert_array_equal(saved[stream], getattr(found, stream))
        assert saved[stream].dtype == np.float32
    assert saved["path"].tolist() == found.paths
    assert saved["failed"].tolist() == [str(videos / name) for name in BAD]
    assert saved["failed_reason"].tolist() == [failure.reason for failure in found.failed]
    assert saved["remark"].tolist() == [str(videos / "short.mp4")]
    assert saved["remark_reason"].tolist() == [found.remarks[0].reason]
    described = {"checkpoint": "some/last.ckpt", "level": "pooled", "windows": 2, "image_size": 64, "audio_seconds": 1}
    assert {key: saved[key].item() for key in described} == described
    assert read_input(failed).files == {str(videos / name): str(videos / name) for name in BAD}
    assert f"# {found.failed[2].reason}\n{videos / 'void.mp4'}\n" in failed.read_text()

    lines = summary(found, output, failed)
    assert lines[0].startswith(
        f"Written to {output}: 5 of 8 files; means over the tokens, 2 windows of 1 s: image [5, 64]"
    )
    assert f"    {videos / 'void.mp4'}: truncated: the file is empty" in lines
    assert sum("mirror image" in line for line in lines) == 1

    # Nothing failed this time: the list of the failed goes.
    assert write_features(extract_features(encoder, [videos / "a.mp4"]), output) is None
    assert {path.name for path in output.parent.iterdir()} == {"features.npz"}


def test_tokens_in_the_file(encoder: DeepAVFusion, videos: Path, tmp_path: Path) -> None:
    found = extract_features(encoder, videos, level="tokens", scratch=tmp_path)
    write_features(found, tmp_path / "tokens.npz")
    with np.load(tmp_path / "tokens.npz", allow_pickle=False) as file:
        assert file["level"].item() == "tokens"
        np.testing.assert_array_equal(file["audio"], found.audio)
        assert file["audio"].shape == (5, 32, 64)


def test_all_failed(encoder: DeepAVFusion, videos: Path, tmp_path: Path) -> None:
    found = extract_features(encoder, [*(videos / name for name in BAD), "gone.mp4"])
    assert (found.image.shape, found.paths) == ((0, 64), [])
    with pytest.raises(UserError, match=r"none of 4 files could be used .*void.mp4: truncated.*; and 1 more.*see "):
        write_features(found, tmp_path / "features.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["features_failed.txt"]
    assert len(read_input(tmp_path / "features_failed.txt").files) == 4


def test_whole_or_not_at_all(
    encoder: DeepAVFusion, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = extract_features(encoder, [videos / "a.mp4"])
    for name in ("features.npy", "features", "folder.npz"):
        (tmp_path / "folder.npz").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"expected one that ends in \.npz"):
            write_features(found, tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        write_features(found, tmp_path / "file" / "features.npz")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    write_features(found, tmp_path / "features.npz")
    before = (tmp_path / "features.npz").read_bytes()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device; choose another"):
        write_features(found, tmp_path / "features.npz")
    assert (tmp_path / "features.npz").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_growing_array(tmp_path: Path) -> None:
    growing = GrowingArray((2, 3), tmp_path)
    assert growing.array().shape == (0, 2, 3)
    parts = [torch.randn(n, 2, 3) for n in (3, 0, 5)]
    for part in parts:
        growing.add(part)
    assert isinstance(growing.array(), np.memmap)
    np.testing.assert_array_equal(growing.array(), torch.cat(parts).numpy())
    assert torch.equal(growing[2:5], torch.cat(parts)[2:5])
    assert growing[7:9].shape == (1, 2, 3)
    assert growing[8:9].shape == (0, 2, 3)
    assert len(growing) == 8


# ---------------------------------------------------------------- checkpoints


def test_any_checkpoint_of_ours(tmp_path: Path, videos: Path) -> None:
    for path, task, size, dim in (
        (write_separator(tmp_path / "separate.ckpt"), "separate", (64, 3.0), 16),
        (write_segmenter(tmp_path / "segment.ckpt"), "segment", (64, 1.0), 32),
        (write_classifier(tmp_path / "classify.ckpt"), "classify", (64, 2.0), 32),
    ):
        encoder, summary_line = open_encoder(path)
        assert summary_line.startswith(f"encoder of {path} ({task}")
        assert sizes_of(encoder) == size
        assert not encoder.training
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert torch.equal(encoder.fusion_tokens, saved["net.encoder.fusion_tokens"])
        assert extract_features(encoder, [videos / "a.mp4"]).fusion.shape == (1, dim)
    task = inference.load_task(tmp_path / "segment.ckpt")
    encoder, _ = open_encoder(tmp_path / "segment.ckpt")
    same(extract_features(task, [videos / "a.mp4"]), extract_features(encoder, [videos / "a.mp4"]), 0)


KINDS: list[dict[str, Any]] = [
    {},
    {"fusion": "dense", "fusion_layers": [1], "fusion_mlp_ratio": 2.0, "fusion_attn_ratio": 0.5},
    {"fusion": "token", "num_fusion_tokens": (6, 3, 3)},
    {"dim": 128, "depth": 3, "fusion_layers": "none"},
    {"size": 96, "frames": 192},
]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_without_a_record(kind: dict[str, Any], tmp_path: Path) -> None:
    """As published, and as convert.py writes ours: the same encoder, and a sentence that says what is assumed."""
    encoder = tiny(**kind, seed=3)
    mae = MaskedAutoencoder(encoder, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
    state = mae.state_dict()
    torch.save({"state_dict": {original_name(name): t for name, t in state.items()}}, tmp_path / "published.pth")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "ours.safetensors")
    size, frames = kind.get("size", 64), kind.get("frames", 64)
    image, audio = torch.randn(2, 3, size, size), torch.randn(2, 1, 128, frames)
    with torch.no_grad():
        expected = encoder(image, audio)
        for name in ("published.pth", "ours.safetensors"):
            opened, summary_line = open_encoder(tmp_path / name)
            found = opened(image, audio)
            for stream in STREAMS:
                torch.testing.assert_close(getattr(found, stream), getattr(expected, stream))
            assert not opened.training
            assert summary_line.startswith(f"encoder of {tmp_path / name}, weights without a record: embed_dim ")
            a, b, c = kind.get("num_fusion_tokens", (4, 2, 2))
            assert summary_line.endswith(
                f"images of {size} pixels, {frames / 64:g} s of audio by its tensors; assumed as in the paper: "
                f"{kind.get('dim', 64) // 64} heads, fusion tokens in groups of {a}, {b} and {c}"
            )


def test_without_positions_the_sizes_are_the_papers(tmp_path: Path) -> None:
    state = {f"encoder.{name}": t for name, t in tiny().state_dict().items() if "pos_embed" not in name}
    save_file(state, tmp_path / "a.safetensors")
    encoder, summary_line = open_encoder(tmp_path / "a.safetensors")
    assert sizes_of(encoder) == (224, 3.0)
    assert summary_line.endswith("fusion tokens in groups of 4, 2 and 2, images of 224 pixels, 3 s of audio")


def test_files_without_an_encoder(tmp_path: Path) -> None:
    state = tiny().state_dict()
    vit = {name.removeprefix("image."): t for name, t in state.items() if name.startswith("image.")}
    narrow = {f"encoder.{name}": t for name, t in tiny(dim=48).state_dict().items()}
    lacking = {f"encoder.{name}": t for name, t in state.items() if "fusion_norm" not in name}
    for content, words in (
        ({"model": vit}, "is an MAE or AudioMAE ViT, of image or audio alone"),
        (
            {"state_dict": {"encoder.fusion_tokens": torch.zeros(1, 8, 64)}},
            "holds no encoder of DeepAVFusion (its tensors do not show net.image.depth, net.audio.depth)",
        ),
        ({"state_dict": narrow}, "has embed_dim 48 and no record of its heads, expected a multiple of 64"),
        (
            {"state_dict": lacking},
            "does not hold the tensors of a whole encoder (fusion_norm.weight is in the model and not in the file)",
        ),
    ):
        torch.save(content, tmp_path / "a.pth")
        assert words in refusal(open_encoder, tmp_path / "a.pth")
    assert "nothing.ckpt does not exist" in refusal(open_encoder, tmp_path / "nothing.ckpt")


@pytest.mark.full
def test_a_video_that_hangs_its_decoder_fails_and_the_rest_is_kept(
    encoder: DeepAVFusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that kills it; see the tests of the loader."""
    often = (0.2,)  # s between two looks at the processes, 5 s in torch
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", often)
    names = ["a", "b", "hang", "hang-once", "c"]
    for n, name in enumerate(names):
        film(tmp_path / f"{name}.mp4", 2.0, seed=n)
    paths = [str(tmp_path / f"{name}.mp4") for name in names]
    expected = extract_features(encoder, [paths[n] for n in (0, 1, 3, 4)], windows=2)

    def trapped(id: str, path: str) -> Clip:
        return Clip(id, path) if len(Path(path).stem) == 1 else Trap(Path(path).stem, path)

    monkeypatch.setattr("deepavfusion.inference.features.Clip", trapped)
    found = extract_features(encoder, paths, windows=2, num_workers=2, batch_size=4, time_limit=1.5)
    assert [Path(path).stem for path in found.paths] == ["a", "b", "hang-once", "c"]
    np.testing.assert_array_equal(found.fusion, expected.fusion)
    assert [(Path(remark.place).stem, remark.reason) for remark in found.failed] == [
        ("hang", "hung: the decoding process did not finish within 1.5 s while reading it, 2 times"),
    ]


def test_the_public_functions_are_imported_late() -> None:
    code = "import sys, deepavfusion.inference as i; print('torch' in sys.modules, *sorted(i.__all__))"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="src").stdout
    assert lines.split() == ["False", *sorted(inference.__all__)]
    for name in inference.__all__:
        assert callable(getattr(inference, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        inference.nothing  # noqa: B018


def test_real_clips(real_clips: Path, encoder: DeepAVFusion) -> None:
    found = extract_features(encoder, real_clips, num_workers=1)
    names = ["bigbuckbunny.mp4", "bikes.mp4", "music_duet_1.mp4", "music_duet_2.mp4"]
    assert [Path(path).name for path in found.paths] == names
    assert found.modalities == ["image audio", "image", "image audio", "image audio"]
    assert np.isfinite(found.fusion).all()
    assert np.isfinite(found.audio).all(axis=1).tolist() == [True, False, True, True]
