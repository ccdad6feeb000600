"""`predict.py task=search`: nearest clips checked by hand, the index that is kept, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.inference.encoders import open_network
from deepavfusion.inference.features import Features, extract_features
from deepavfusion.inference.search import index as index_module
from deepavfusion.inference.search.index import folder_index, hash_of, matching, read_index
from deepavfusion.inference.search.nearest import MATCHES, Neighbour, Search, search_clips
from deepavfusion.inference.write.features import write_features
from deepavfusion.inference.write.search import as_table, draw, write_search
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import SAMPLE_RATE, LogMel
from deepavfusion.transforms.image import Normalise
from deepavfusion.types import Clip
from helpers.checkpoints import SIZE, build, encoder, save, write_classifier
from helpers.errors import refusal
from helpers.media import coloured_noise, noise
from helpers.runs import call

CLIPS, SECONDS = 4, 2.0  # complete ones; of the network's window


def film(path: Path, seed: int, seconds: float = 2.5) -> Path:
    frames = np.roll(coloured_noise(round(seconds * 4), 96, 128), 24 * seed, axis=2)
    sound = noise(seconds, seed=seed) * np.linspace(1, 0, round(seconds * SAMPLE_RATE), dtype=np.float32) ** seed
    write_mp4(path, frames, 4, sound, SAMPLE_RATE, audio_bit_rate=128_000)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and in a folder four films, one without audio and one audio file; beside it an image."""
    root = tmp_path_factory.mktemp("world")
    write_classifier(root / "a.ckpt")
    (root / "clips").mkdir()
    for n in range(CLIPS):
        film(root / "clips" / f"{n}.mp4", n)
    write_mp4(root / "clips" / "mute.mp4", coloured_noise(10, 64, 64), 4)
    write_wav(root / "clips" / "sound.wav", noise(2.5, seed=9), SAMPLE_RATE)
    Image.fromarray(coloured_noise(1, 96, 128)[0]).save(root / "still.jpg")
    (root / "text.mp4").write_text("no video")
    return root


@pytest.fixture(scope="module")
def network(world: Path) -> Task:
    found, _ = open_network(world / "a.ckpt")
    assert isinstance(found, Task)
    return found


@pytest.fixture(scope="module")
def index(network: Task, world: Path) -> Features:
    return extract_features(network, world / "clips", passes="unimodal")


def inputs_of(path: Path) -> tuple[Tensor, Tensor]:
    """Image and spectrogram of the middle window, by the data path of evaluation."""
    dataset = WindowDataset(ClipList("", [Clip("", str(path))], []), RawStore(), SampleSpec(SIZE, SECONDS))
    (sample,) = dataset[0, 0]
    return Normalise()(sample.image[None]), LogMel()(sample.waveform[None])


def by_hand(network: Task, path: Path) -> dict[str, Tensor]:
    """The mean of all tokens of a pass that sees, and of one that hears, of the middle window."""
    image, audio = inputs_of(path)
    with torch.no_grad():
        seen, heard = network.net.encoder(image, None), network.net.encoder(None, audio)
    return {
        "image": F.normalize(torch.cat([seen.image, seen.fusion], dim=1).mean(dim=1)[0], dim=0),
        "audio": F.normalize(torch.cat([heard.audio, heard.fusion], dim=1).mean(dim=1)[0], dim=0),
    }


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("match", MATCHES)
def test_scores_are_cosines_of_unimodal_passes(match: str, network: Task, index: Features, world: Path) -> None:
    found = search_clips(network, index, world / "clips" / "1.mp4", match, top_k=10)
    clips = {str(path): by_hand(network, path) for path in (world / "clips" / f"{n}.mp4" for n in range(CLIPS))}
    query = clips[str(world / "clips" / "1.mp4")]
    expected = {
        path: np.mean([float(query[by] @ clip[of]) for by, of in MATCHES[match]]) for path, clip in clips.items()
    }
    scores = {each.path: each.score for each in found.nearest}
    like = match in ("both", "image", "audio")
    assert (str(world / "clips" / "1.mp4") in scores) is not like  # one's own image is no find
    assert {path: score for path, score in scores.items() if path in expected} == pytest.approx(
        {path: score for path, score in expected.items() if path in scores}, abs=1e-5
    )
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    others = {"both": 0, "image": 1, "audio": 1, "image_to_audio": 1, "audio_to_image": 1}[match]
    assert found.candidates == len(found.nearest) == CLIPS - like + others
    assert (found.clips, found.match, found.modalities) == (6, match, "image audio")
    if like:
        assert found.own_rank is None
        assert "the query is in the index itself, and was left out of the comparison" in found.notes
    else:
        assert found.nearest[found.own_rank - 1].path == str(world / "clips" / "1.mp4")
        assert any("was not trained to compare audio and images" in note for note in found.notes)


def test_a_copy_is_nearest(network: Task, index: Features, world: Path, tmp_path: Path) -> None:
    copy = shutil.copy(world / "clips" / "2.mp4", tmp_path / "copy.mp4")
    for match in ("both", "image", "audio"):
        found = search_clips(network, index, copy, match, top_k=2)
        assert len(found.nearest) == 2
        assert found.nearest[0] == Neighbour(
            str(world / "clips" / "2.mp4"), str(world / "clips" / "2.mp4"), found.nearest[0].score, "image audio", ""
        )
        assert found.nearest[0].score == pytest.approx(1, abs=1e-6)
        assert found.nearest[1].score < 1 - 1e-6


def test_the_match_follows_from_what_there_is(network: Task, index: Features, world: Path) -> None:
    clips = world / "clips"
    for query, match in ((clips / "0.mp4", "both"), (clips / "sound.wav", "audio"), (world / "still.jpg", "image")):
        assert search_clips(network, index, query).match == match
    assert search_clips(network, index, clips / "mute.mp4").match == "image"
    heard = extract_features(network, [clips / "sound.wav"], passes="unimodal")
    found = search_clips(network, heard, world / "still.jpg")
    assert (found.match, found.nearest[0].modalities) == ("image_to_audio", "audio")
    assert "6 files" not in " ".join(found.notes)
    (score,) = (each.score for each in search_clips(network, index, world / "still.jpg", "image_to_audio").nearest[-1:])
    assert -1 <= score < 1


def test_a_retriever_compares_by_its_projections(world: Path, tmp_path: Path) -> None:
    config = {
        "_target_": "deepavfusion.tasks.retrieve.Retrieve",
        "num_classes": 3,
        "embed_dim": 8,
        "frozen": True,
        "pretrained": "auto",
        "net": encoder(32, 128),
    }
    task = build(config)
    for norm in task.net.norms.values():
        norm.running_mean.normal_()
    save(tmp_path / "r.ckpt", task, {"task": "retrieve", "model": config, "data": {}, "classes": ["a", "b", "c"]})
    network, _ = open_network(tmp_path / "r.ckpt")
    paths = [world / "clips" / f"{n}.mp4" for n in range(CLIPS)]
    index = extract_features(network, paths, passes="unimodal")
    found = search_clips(network, index, paths[0], "audio_to_image", top_k=10)
    clips = {str(path): inputs_of(path) for path in paths}
    with torch.no_grad():
        query = network.net(None, clips[str(paths[0])][1])["audio"][0]
        images = {path: network.net(image, None)["image"][0] for path, (image, _) in clips.items()}
    scores = {each.path: each.score for each in found.nearest}
    assert scores == pytest.approx({path: float(query @ image) for path, image in images.items()}, abs=1e-5)
    assert not any("not trained to compare" in note for note in found.notes)
    assert found.embedding == "projections of unimodal passes"


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_searched(network: Task, index: Features, world: Path) -> None:
    wav, still, clips = world / "clips" / "sound.wav", world / "still.jpg", world / "clips"
    text = refusal(search_clips, network, index, wav, "image_to_audio")
    assert (
        f"query {wav} has no image, by which match=image_to_audio compares: choose match=audio or audio_to_image"
        in text
    )
    assert "has no audio, by which match=both compares" in refusal(search_clips, network, index, still, "both")
    seen = extract_features(network, [clips / "mute.mp4"], passes="unimodal")
    heard = extract_features(network, [wav], passes="unimodal")
    text = refusal(search_clips, network, seen, wav, "audio")
    assert (
        "no file of the index has audio, which match=audio needs: choose match=audio_to_image, or index other" in text
    )
    halves = extract_features(network, [clips / "mute.mp4", wav], passes="unimodal")
    assert "no file of the index has both image and audio: choose" in refusal(
        search_clips, network, halves, clips / "0.mp4", "both"
    )
    assert "match is 'nearest': choose one of both, image" in refusal(search_clips, network, index, wav, "nearest")
    assert "text.mp4 cannot be used, undecodable" in refusal(search_clips, network, index, world / "text.mp4")
    assert "nowhere.mp4 cannot be used, missing: there is no such file: expected a complete file" in refusal(
        search_clips, network, index, "nowhere.mp4"
    )
    for top_k in (0, -1):
        assert f"top_k is {top_k}, expected a whole number from 1 to" in refusal(
            search_clips, network, index, wav, "audio", top_k
        )
    joint = extract_features(network, [clips / "0.mp4"])
    assert (
        "the index has level=pooled and image, audio, fusion, expected means of unimodal passes, in which no"
        in refusal(search_clips, network, joint, wav)
    )
    assert "holds nothing but the query" in refusal(search_clips, network, heard, wav)
    broken = extract_features(network, [clips / "0.mp4", clips / "1.mp4"], passes="unimodal")
    broken.embeddings["solo_image"][1] = np.nan
    assert "the image embedding of" in refusal(search_clips, network, broken, still)
    broken.embeddings["solo_image"] = broken.embeddings["solo_image"][:, :16]
    broken.embeddings["fusion_of_image"] = broken.embeddings["fusion_of_image"][:, :16]
    assert "embeddings of 16 numbers, the network of 32: it is of another checkpoint" in refusal(
        search_clips, network, broken, still
    )


def test_files_that_are_no_index(network: Task, index: Features, world: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    assert "index.npz does not exist: expected a folder, or the .npz file of python src/predict.py" in refusal(
        read_index, path
    )
    write_features(extract_features(network, [world / "clips" / "0.mp4"]), path, "a.ckpt", "ab" * 32)
    assert "has no embeddings of unimodal passes, only joint ones, whose audio has met the image: write" in refusal(
        read_index, path
    )
    tokens = extract_features(network, [world / "clips" / "0.mp4"], level="tokens", passes="unimodal")
    write_features(tokens, path, "a.ckpt", "ab" * 32)
    assert "holds single tokens, expected their means (level=pooled)" in refusal(read_index, path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert "other.npz holds no features: write it" in refusal(read_index, tmp_path / "other.npz")

    write_features(index, path, str(world / "a.ckpt"), hash_of(world / "a.ckpt"))
    whole, content = path.read_bytes(), dict(np.load(path))
    found = read_index(path)
    assert found.features.paths == index.paths
    assert matching(found, world / "a.ckpt") is found
    other = write_classifier(tmp_path / "other.ckpt", classes=["a", "b"])
    text = refusal(matching, found, other)
    assert f"was made with another checkpoint than {other} ({world / 'a.ckpt'}, as it was then)" in text
    assert "gone.ckpt, which does not exist: give that file as ckpt_path" in refusal(
        matching, found, tmp_path / "gone.ckpt"
    )
    middle = whole.index(b"PK\x03\x04", len(whole) // 2)
    damages: dict[str, bytes] = {
        "cut": whole[: len(whole) // 2],
        "text": b"an index?" * 100,
        "empty": b"",
        "bits": whole.replace(content["solo_audio"].tobytes()[:64], bytes(64), 1),
        "lost": whole[:middle] + whole[middle + 100 :],
    }
    for name, data in damages.items():
        (tmp_path / f"{name}.npz").write_bytes(data)
        assert f"{name}.npz is damaged, or no features file (" in refusal(read_index, tmp_path / f"{name}.npz"), name
    np.savez_compressed(tmp_path / "small.npz", **{**content, "solo_image": np.zeros((10**6, 32), np.float32)})
    assert "it is compressed" in refusal(read_index, tmp_path / "small.npz")
    for name, values in (
        ("solo_image", content["solo_image"][:2]),
        ("solo_image", content["solo_image"].astype(np.float64)),
        ("modalities", np.array(["smell"] * 6)),
        ("place", content["place"][1:]),
        ("path", np.arange(6)),
        ("place", np.array(["a\0b"] * 6)),
        ("windows", np.array(0)),
        ("windows", np.array(2**40)),
    ):
        np.savez(tmp_path / "odd.npz", **{**content, name: values})
        assert "odd.npz is damaged, or no features file (ValueError" in refusal(read_index, tmp_path / "odd.npz")
    np.savez(tmp_path / "code.npz", **{**content, "remark": np.array([Neighbour], dtype=object)})
    assert "code.npz is damaged" in refusal(read_index, tmp_path / "code.npz")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }"
        archive.writestr("path.npy", header.ljust(127) + b"\n")
    assert "path.npy is shorter than it says" in refusal(read_index, tmp_path / "lies.npz")


# ---------------------------------------------------------------- the index that is kept


def test_an_index_is_read_again_only_where_something_changed(
    network: Task, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, read = tmp_path / "clips", list[list[str]]()
    shutil.copytree(world / "clips", clips)
    (clips / "text.mp4").write_text("no video")
    digest = hash_of(world / "a.ckpt")

    def watched(network: Any, inputs: Any, **more: Any) -> Features:
        read.append([Path(path).name for path in inputs.files])
        return extract_features(network, inputs, **more)

    def indexed(checkpoint: str = digest, windows: int = 1) -> tuple[Features, str]:
        found, line = folder_index(network, clips, tmp_path / "kept", world / "a.ckpt", checkpoint, windows)
        assert (found.checkpoint, found.sha256) == (str(world / "a.ckpt"), checkpoint)
        return found.features, line

    monkeypatch.setattr(index_module, "extract_features", watched)
    first, line = indexed()
    assert read == [["0.mp4", "1.mp4", "2.mp4", "3.mp4", "mute.mp4", "sound.wav", "text.mp4"]]
    assert line.endswith(": built, 6 files")
    (kept,) = (tmp_path / "kept").glob("clips-*.npz")
    again, line = indexed()
    assert (len(read), line) == (1, f"index {kept}: nothing changed, reused as it is")
    assert again.failed == first.failed  # not even what failed is tried again
    for name, values in first.embeddings.items():
        np.testing.assert_array_equal(again.embeddings[name], values)
    monkeypatch.chdir(tmp_path)
    found, line = folder_index(network, "clips", Path("kept"), world / "a.ckpt", digest)
    assert (len(read), line) == (1, f"index kept/{kept.name}: nothing changed, reused as it is")
    assert (found.features.paths[0], found.features.places) == ("clips/0.mp4", first.places)  # named as it is today

    film(clips / "0.mp4", 7)
    shutil.copy(world / "clips" / "2.mp4", clips / "0a.mp4")
    (clips / "3.mp4").unlink()
    found, line = indexed()
    assert read[1:] == [["0.mp4", "0a.mp4"]]
    assert line.endswith(": 2 new or changed, 1 gone, 5 reused")
    assert [Path(path).name for path in found.paths] == ["0.mp4", "0a.mp4", "1.mp4", "2.mp4", "mute.mp4", "sound.wav"]
    assert found.modalities == ["image audio"] * 4 + ["image", "audio"]
    fresh = extract_features(network, clips, passes="unimodal")
    for name, values in fresh.embeddings.items():
        np.testing.assert_allclose(found.embeddings[name], values, atol=1e-5)
    assert found.states == fresh.states
    assert found.failed == fresh.failed
    (clips / "0a.mp4").unlink()
    assert indexed()[1].endswith(": 0 new or changed, 1 gone, 6 reused")
    assert len(read) == 2
    os.utime(clips / "1.mp4", ns=(1, 1))  # the time alone
    indexed()
    assert read[2:] == [["1.mp4"]]

    indexed(checkpoint="cd" * 32)
    indexed(windows=2)
    assert len(read) == 5
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 3
    kept.write_bytes(kept.read_bytes()[:1000])
    assert indexed()[1].endswith(": built, 5 files")


def test_folders_without_anything(network: Task, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    given = (network, tmp_path / "in", tmp_path / "kept", tmp_path / "a.ckpt", "ab" * 32)
    assert "in holds no video or audio file: none of its 0 files ends in" in refusal(folder_index, *given)
    (tmp_path / "in" / "a.mp4").write_text("a film?")
    assert "none of 1 file could be used (" in refusal(folder_index, *given)
    assert refusal(folder_index, network, "nowhere", *given[2:]).startswith("index nowhere does not exist: expected")


def test_files_that_changed_since_are_named(network: Task, world: Path, tmp_path: Path) -> None:
    for n in range(3):
        shutil.copy(world / "clips" / f"{n}.mp4", tmp_path / f"{n}.mp4")
    index = extract_features(network, tmp_path, passes="unimodal")
    os.utime(tmp_path / "1.mp4", ns=(1, 1))
    (tmp_path / "2.mp4").unlink()
    found = search_clips(network, index, tmp_path / "0.mp4")
    assert {Path(each.path).name: each.state for each in found.nearest} == {"1.mp4": "changed", "2.mp4": "gone"}
    assert f"{tmp_path / '1.mp4'} was changed since it was indexed" in found.notes
    assert f"{tmp_path / '2.mp4'} is not there any more" in found.notes


# ---------------------------------------------------------------- files


def test_the_list_and_the_sheet(network: Task, index: Features, world: Path, tmp_path: Path) -> None:
    found = search_clips(network, index, world / "clips" / "0.mp4", "audio_to_image", top_k=3)
    listed = write_search(found, tmp_path, "an index", SECONDS, network.origin)
    assert {path.name for path in tmp_path.iterdir()} == {"0_nearest.json", "0_nearest.png"}
    saved = json.loads((tmp_path / "0_nearest.json").read_text())
    assert saved == {key: value for key, value in listed.items() if key != "list"}
    assert [(each["rank"], each["path"]) for each in saved["nearest"]] == [
        (rank, each.path) for rank, each in enumerate(found.nearest, 1)
    ]
    assert (saved["match"], saved["modalities"], saved["own_rank"]) == (
        "audio_to_image",
        ["image", "audio"],
        found.own_rank,
    )
    assert saved["checkpoint"] == str(network.origin.path)
    with Image.open(tmp_path / "0_nearest.png") as sheet:
        assert sheet.width > 700
    table = as_table(found)
    assert (table.row_count, str(table.title)) == (3, "nearest of 5, images by audio")


def test_the_sheet_shows_what_there_is(world: Path, tmp_path: Path) -> None:
    clips = world / "clips"
    places = [clips / "0.mp4", clips / "mute.mp4", clips / "sound.wav", tmp_path / "gone.mp4", *[clips / "1.mp4"] * 4]
    nearest = [Neighbour(path.name, str(path), 0.9 - n / 10, "image", "") for n, path in enumerate(places)]
    figure = draw(Search(str(world / "still.jpg"), "image", "image", "mean tokens", nearest, 8, 8), SECONDS)
    assert len(figure.axes) == 2 * 9
    tiles = list(zip(figure.axes[::2], figure.axes[1::2], strict=True))
    pictures = [(bool(image.images), bool(mel.images)) for image, mel in tiles]
    assert pictures[:5] == [(True, False), (True, True), (True, False), (False, True), (False, False)]
    assert [text.get_text() for text in tiles[3][0].texts] == ["no image"]
    titles = [text.get_text() for text in figure.texts]
    assert titles[0] == "still.jpg · nearest of 8, image by image"
    assert {"query", "1 · 0.900", "2 · 0.800", "clips\nmute.mp4"} <= set(titles)
    assert len(figure.artists + figure.patches) >= 1  # the query is framed


# ---------------------------------------------------------------- from the command line


def test_search_from_the_command_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, folder = tmp_path / "logs", world / "clips"
    (checkpoints := logs / "pretrain" / "latest" / "checkpoints").mkdir(parents=True)
    shutil.copy(world / "a.ckpt", checkpoints / "last.ckpt")
    given = [f"paths.log_dir={logs}", "device=cpu", "num_workers=0"]

    def run(*more: str) -> list[str]:
        call(monkeypatch, "predict", "task=search", *given, *more)
        return capsys.readouterr().out.splitlines()

    def sentence(*more: str) -> str:
        with pytest.raises(SystemExit) as end:
            call(monkeypatch, "predict", "task=search", *given, *more)
        assert end.value.code == 2
        (text,) = capsys.readouterr().err.strip().splitlines()
        return text

    query = f"query={world / 'still.jpg'}"
    lines = run(f"index={folder}", query, "top_k=2")
    assert any(": built, 6 files; compared by cosines of mean tokens" in line for line in lines)
    (run_dir,) = (logs / "predict" / "runs").iterdir()
    assert {path.name for path in run_dir.iterdir()} == {"still_nearest.json", "still_nearest.png"}
    listed = json.loads((run_dir / "still_nearest.json").read_text())
    assert len(listed["nearest"]) == 2
    assert any(f"{listed['nearest'][0]['score']:.3f}" in line for line in lines)
    assert lines[-1].startswith(f"Written to {run_dir}: still_nearest.png, still_nearest.json")
    lines = run(f"index={folder}", query, f"output={tmp_path / 'out'}")
    assert any(": nothing changed, reused as it is; " in line for line in lines)

    # A file of features, with the checkpoint that it names.
    npz = tmp_path / "features.npz"
    more = [f"ckpt_path={world / 'a.ckpt'}", "passes=unimodal", f"output={npz}"]
    call(monkeypatch, "predict", "task=features", f"input={folder}", *given, *more)
    capsys.readouterr()
    lines = run(f"index={npz}", f"query={folder / 'sound.wav'}", "match=audio_to_image", f"output={tmp_path / 'out'}")
    listed = json.loads((tmp_path / "out" / "sound_nearest.json").read_text())
    assert (listed["checkpoint"], listed["index"], listed["compared"]) == (str(world / "a.ckpt"), str(npz), 5)
    assert any(line.startswith("Note: the network was not trained to compare") for line in lines)

    other = write_classifier(tmp_path / "other.ckpt", classes=["a", "b"])
    assert "was made with another checkpoint than" in sentence(f"index={npz}", query, f"ckpt_path={other}")
    assert "has no image, by which match=image compares" in sentence(
        f"index={npz}", f"query={folder / 'sound.wav'}", "match=image"
    )
    assert "no query was given; add query=<video, audio file or image>, e.g." in sentence(f"index={npz}")
    assert "no index was given; add index=<folder of videos, list of them or features.npz>" in sentence(query)
    assert "match is 'all', expected" in sentence(f"index={npz}", query, "match=all")
    assert len(list((logs / "predict" / "runs").iterdir())) == 1  # nothing is left of what did not begin


def test_the_examples_of_the_docs_run_as_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "python.md").read_text(), re.S)
    embedding, nearest = (block for block in blocks if "data/demo/vggsound/clips" in block)
    assert len([line for line in embedding.splitlines() if line]) <= 5
    (checkpoints := tmp_path / "logs" / "pretrain" / "latest" / "checkpoints").mkdir(parents=True)
    shutil.copy(world / "a.ckpt", checkpoints / "last.ckpt")
    shutil.copytree(world / "clips", tmp_path / "data" / "demo" / "vggsound" / "clips")
    monkeypatch.chdir(tmp_path)
    exec(f"import deepavfusion\n{embedding}{nearest}", {})
    _, *lines = capsys.readouterr().out.split("data/demo/vggsound/clips/")
    assert lines[0].startswith("0.mp4 image audio [")
    assert [line.split()[0] for line in lines[1:5]].count("0.mp4") == 0  # not its own neighbour
    assert len(lines) == 1 + 4
