"""The set of photographs and recordings, made from a package whose pictures are colours and whose sounds are tones."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deepavfusion.commands import prepare
from deepavfusion.data.lists.avsbench import avsbench
from deepavfusion.data.lists.folder import folder as folder_of_videos
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.lists.videos import durations
from deepavfusion.demo import demo, kinds, package
from deepavfusion.demo.kinds import BACKDROPS, KINDS, THINGS
from deepavfusion.demo.package import BELOW, INSTALLED, NAME, _sound, read_package
from deepavfusion.demo.plans import SECONDS
from deepavfusion.demo.scenes import COVER, LONGEST, Scene
from deepavfusion.demo.stamps import background
from deepavfusion.media import Media
from deepavfusion.utils.errors import UserError
from helpers.runs import compose

CHOSEN = ("bear", "cow", "penguin")
COUNTS = demo.Counts(
    stamps_train=2, stamps_test=1, stamps_other=1, stamps_s4_train=1, stamps_s4_val=0, stamps_s4_test=1
)
BEAR, BEAR_SOUND = KINDS["bear"].pictures[0], KINDS["bear"].train[0][0]
WHOLE, OTHERS = dict(KINDS), (dict(BACKDROPS), dict(THINGS))
LOW, HIGH = 440.0, 2000.0  # Hz, of what train and test clips play of the bear
GREEN, RED, BLUE = (0, 255, 0), (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Three kinds, few other pictures, and short clips."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(KINDS) - set(CHOSEN):
            patch.delitem(KINDS, name)
        for table in (BACKDROPS, THINGS):
            for train in (True, False):
                patch.setitem(table, train, table[train][:2])
        patch.setitem(SECONDS, "vggsound", 1.5)
        yield


@pytest.fixture(autouse=True)
def unread() -> None:
    read_package.cache_clear()


def write_picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (80, 60)) -> None:
    """An oval of one colour on nothing; a background fills its picture."""
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = 255 * ((x**2 + y**2 < 1) | (colour == BLUE))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_sound(path: Path, waveform: np.ndarray) -> None:
    """FLAC in an Ogg file, 22 050 Hz; PyAV's packages do not encode Vorbis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="ogg") as file:
        stream = file.add_stream("flac", rate=22_050, layout="mono")
        samples = np.round(32_767 * waveform).astype(np.int16)
        for start in range(0, len(samples), 4096):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 22_050, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dpkg -x` gives."""
    root = tmp_path_factory.mktemp("package") / "unpacked"
    stamps, doc = root / BELOW, root / "usr/share/doc" / NAME
    for path, used in kinds.pictures().items():
        write_picture(stamps / path, {"bear": GREEN, "background": BLUE}.get(used, RED))
    time = np.arange(6 * 22_050) / 22_050
    for path in kinds.recordings():
        border = KINDS["bear"].train[0][2] if path == BEAR_SOUND else 9.0
        write_sound(stamps / path, 0.3 * np.sin(2 * np.pi * np.where(time < border, LOW, HIGH) * time))
    (stamps / BEAR).with_suffix(".txt").write_text("A bear, by ä.\nfr.utf8=Un ours.\n")
    doc.mkdir(parents=True)
    (doc / "copyright").write_text("License: GPL-2\n")
    (doc / "changelog.gz").write_bytes(gzip.compress(b"New bear by A. Painter"))
    return root


@pytest.fixture
def unpacked(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "unpacked"))


@pytest.fixture(scope="module")
def folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    read_package.cache_clear()
    return made(original, tmp_path_factory.mktemp("demo"))


def made(unpacked: Path, root: Path, seed: int = 0, counts: demo.Counts = COUNTS) -> Path:
    return demo.ensure(root, ["stamps"], seed, workers=1, counts=counts, package=str(unpacked))[0]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of(path: Path) -> list[list[str]]:
    """Without a header."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_folder_serves_all_readers_and_says_what_it_is_made_of(original: Path, folder: Path) -> None:
    for list_, test in (("vggsound", "test"), ("other_animals", "other")):
        read = {split: vggsound(folder, split, annotations=f"annotations/{list_}.csv") for split in ("train", "test")}
        assert {split: (len(clips), clips.missing) for split, clips in read.items()} == {
            "train": (6, []), "test": (3, []),
        }  # fmt: skip
        assert read["test"].classes == read["train"].classes == list(CHOSEN)
        paths = {os.path.relpath(clip.path, folder): CHOSEN[clip.label] for clip in read["test"].clips}
        assert paths == {row["path"]: row["label"] for row in rows(folder / "videos.csv") if row["split"] == test}
    four = rows_of(folder / "annotations/four_kinds.csv")
    assert four == [row for row in rows_of(folder / "annotations/vggsound.csv") if row[2] == "bear"]
    assert len(four) == 3
    for split in ("train", "test"):
        masked = avsbench(folder, split, "s4", train_frames="first")
        assert (len(masked), masked.missing, masked.notes) == (3, [], [])
        assert masked.classes == ["background", *CHOSEN]
    sources = {row["file"]: row for row in rows(folder / "sources.csv")}
    assert set(sources) == {*kinds.pictures(), *kinds.recordings()}
    assert sources[BEAR]["description"] == "A bear, by ä."
    assert sources[BEAR]["sha256"] == hashlib.sha256((original / BELOW / BEAR).read_bytes()).hexdigest()
    licence = (folder / "LICENCE.txt").read_text()
    assert "License: GPL-2" in licence
    assert "New bear by A. Painter" in licence


def test_masks_are_those_of_the_animal_that_is_heard(folder: Path) -> None:
    """The bear is green, other animals are red, backgrounds are blue."""
    of_bear = [
        row["path"] for row in rows(folder / "clips.csv") if row["path"].startswith("v1s") and row["label"] == "bear"
    ]
    assert len(of_bear) == 2
    for path in of_bear:
        for mask in sorted((folder / path / "labels_semantic").iterdir()):
            frame = np.asarray(Image.open(folder / path / "frames" / f"{mask.stem}.jpg")).astype(int)
            values = np.asarray(Image.open(mask))
            assert set(np.unique(values)) == {0, 1}
            green = frame.argmax(axis=-1) == 1
            assert (green & (values > 0)).sum() > 0.9 * (green | (values > 0)).sum()
            assert (frame.argmax(axis=-1) == 0).sum() > 300  # a silent one


def test_animals_cover_equal_areas_whatever_their_shape() -> None:
    """Long and thin, or filling their picture: the same number of pixels; too long ones are as long as they may be."""

    def shown(width: int, height: int) -> tuple[int, int]:
        whole = Image.new("RGBA", (width, height), (0, 255, 0, 255))
        scene = Scene(np.random.default_rng(3), ["it"], [[9.0]], draw=lambda *_: whole, even=True)
        (sprite,) = scene.sprites
        return sprite.image.width * sprite.image.height, max(sprite.image.size)

    square, long, thread = shown(300, 300), shown(300, 100), shown(300, 5)
    assert long[0] == pytest.approx(square[0], rel=0.02)
    assert square[1] < long[1] < thread[1]
    assert thread[1] == pytest.approx(square[1] * LONGEST / COVER, rel=0.02)


def test_backgrounds_are_out_of_focus_and_paler_than_their_photographs() -> None:
    """Stripes of strong colours become one colour between their grey and their own."""
    stripes = np.zeros((960, 960, 4), np.uint8)
    stripes[..., 3], stripes[::2, :, 0], stripes[1::2, :, 2] = 255, 255, 255
    shown = np.asarray(background(Image.fromarray(stripes), np.random.default_rng(0), 120, 120)).astype(float)
    assert shown.std(axis=(0, 1)).max() < 3
    red, green, blue = shown.mean(axis=(0, 1))
    assert 10 < red - green < 0.5 * 128
    assert 10 < blue - green < 0.5 * 128


def test_test_clips_play_other_parts_of_the_recording(folder: Path) -> None:
    heard: dict[str, list[float]] = {}
    for row in rows(folder / "videos.csv"):
        if row["label"] == "bear":
            with Media(folder / row["path"]) as media:
                waveform = media.audio(0.0, 1.5, 16_000).numpy()
                assert media.info.video_duration == pytest.approx(1.5)
            power = np.abs(np.fft.rfft(waveform)) ** 2
            high = power[round(1000 * len(waveform) / 16_000) :].sum() / power.sum()
            heard.setdefault(row["split"], []).append(high)
    assert {split: len(shares) for split, shares in heard.items()} == {"train": 2, "test": 1, "other": 1}
    assert max(heard["train"]) < 0.05
    assert min(*heard["test"], *heard["other"]) > 0.95


def test_the_files_follow_from_seed_and_package(folder: Path, unpacked: Path, tmp_path: Path) -> None:
    fewer = replace(COUNTS, stamps_train=1, stamps_test=0, stamps_other=0, stamps_s4_test=0)
    again, other = (made(unpacked, tmp_path / name, seed, fewer) for name, seed in (("again", 0), ("other", 1)))
    first, second = hashes(folder), hashes(again)
    clips = {name: value for name, value in second.items() if name.startswith(("clips/", "v1s/"))}
    assert clips.items() <= first.items()  # fewer clips: the same ones
    assert {first[name] == second[name] for name in ("LICENCE.txt", "sources.csv", "label2idx.json")} == {True}
    whole = [value for name, value in first.items() if name.endswith((".mp4", ".wav"))]
    assert len(set(whole)) == len(whole) == 12 + 6
    assert not set(whole).intersection(hashes(other).values())
    shutil.rmtree(unpacked)  # a set that is there needs the package no more
    assert made(unpacked, tmp_path / "again", counts=fewer) == again


def test_it_is_read_as_a_folder_of_videos_with_its_splits(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the reader keeps beside the videos does not make them another's folder."""
    here = lambda root, videos: ((video, durations.look_into(video, os.fspath(root))) for video in videos)  # noqa: E731
    monkeypatch.setattr(durations, "_open", here)  # not in processes
    fewer = replace(COUNTS, stamps_train=1, stamps_s4_train=0, stamps_s4_test=0)
    root = made(original, tmp_path, counts=fewer)
    for split in ("train", "test", "other"):
        clips = folder_of_videos(root, split)
        assert {os.path.relpath(clip.path, root): CHOSEN[clip.label] for clip in clips.clips} == {
            row["path"]: row["label"] for row in rows(root / "videos.csv") if row["split"] == split
        }
        assert clips.classes == list(CHOSEN)
    assert (root / ".deepavfusion_durations.csv").exists()
    assert demo.ensure(tmp_path, ["stamps"], 1, 1, fewer, package=str(original)) == [root]


def test_stamps_are_made_only_if_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "stamps" not in demo.SETS
    monkeypatch.setattr(package, "INSTALLED", tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"needs the Debian package {NAME}.*apt-get install .*{NAME}.*package=stamps"):
        demo.ensure(tmp_path / "demo", ["stamps"], workers=1, counts=COUNTS)
    with pytest.raises(UserError, match=rf"package=.*holds no stamps; expected .*{NAME}"):
        made(tmp_path, tmp_path / "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [".lock"]
    with pytest.raises(UserError, match=r"package=x is for the set stamps.*add sets=\[stamps\]"):
        prepare.make_demo(compose("command=demo", "package=x", f"root={tmp_path}/none", config="prepare"))
    assert not (tmp_path / "none").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def leads_out(file: Path) -> None:
    target = Path(shutil.move(file, file.parents[len(Path(BEAR).parts) + 3]))
    file.symlink_to(target)


def becomes_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (BEAR, cut, "cannot be used"),
    (BEAR, lambda file: write_picture(file, GREEN, (3000, 200)), "it has 3000 × 200 pixels, expected 2048 at most"),
    (BEAR, lambda file: write_picture(file, GREEN, (200, 20)), "less than 24 pixels wide or high"),
    (BEAR, lambda file: Image.new("RGBA", (50, 50)).save(file), "transparent all over"),
    (BEAR, lambda file: file.unlink(), "it does not exist"),
    (BEAR, leads_out, "a link that leads out of the package"),
    (BEAR, becomes_pipe, "named pipe"),
    (BEAR, lambda file: file.write_text("%!PS-Adobe"), "it is no image"),
    (BEAR, lambda file: os.truncate(file, 2**30), "bytes, expected"),
    (BEAR_SOUND, lambda file: file.write_bytes(b""), "it is empty"),
    (BEAR_SOUND, lambda file: file.write_text("no sound"), "cannot be used"),
    (BEAR_SOUND, lambda file: write_sound(file, np.zeros(6 * 22_050)), "nothing is heard from 0.10 to 1.90 s"),
    (BEAR_SOUND, lambda file: write_sound(file, 0.1 * np.ones(22_050)), "expected sound up to 1.90 s"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "damage", "said"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_file_that_cannot_be_used_is_named(
    unpacked: Path, tmp_path: Path, path: str, damage: Callable[[Path], object], said: str
) -> None:
    damage(unpacked / BELOW / path)
    with pytest.raises(UserError) as error:
        made(unpacked, tmp_path / "demo")
    assert str(error.value).startswith(f"{unpacked / BELOW / path} cannot be used: ")
    assert said in str(error.value)
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [".lock"]


def test_a_package_without_its_licence_is_not_used(unpacked: Path, tmp_path: Path) -> None:
    (unpacked / "usr/share/doc" / NAME / "changelog.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"changelog\.gz cannot be used: it is no gzip file"):
        made(unpacked, tmp_path / "demo")
    (unpacked / "usr/share/doc" / NAME / "copyright").unlink()
    with pytest.raises(UserError, match="copyright does not exist; expected the stamps' licence"):
        made(unpacked, tmp_path / "demo")


def test_what_is_tested_was_not_in_training() -> None:
    """Of the whole table: backgrounds and things, parts of recordings, and for other animals their photographs."""
    assert len(WHOLE) == 20
    pictures = [path for kind in WHOLE.values() for path in (*kind.pictures, *kind.others)]
    pictures += [path for table in OTHERS for train in table.values() for path in train]
    assert len(pictures) == len(set(pictures))
    for name, kind in WHOLE.items():
        assert {path for path, _, _ in kind.other}.isdisjoint(path for path, _, _ in kind.train), name
        for path, start, end in kind.train:
            assert start < end
            for other, first, last in kind.test:
                assert first < last
                assert other != path or last <= start or end <= first, name
        assert {path for path, _, _ in kind.test} == {path for path, _, _ in kind.train}


@pytest.mark.full
@pytest.mark.skipif(not INSTALLED.is_dir(), reason=f"needs {NAME}")
def test_no_part_of_a_test_clip_repeats_one_of_training() -> None:
    """Of the package itself: 0.3 s of a recording that is a loop would correlate by 0.8 and more."""
    read, window = (
        {part: _sound(INSTALLED, part) for kind in WHOLE.values() for part in (*kind.train, *kind.test, *kind.other)},
        4800,
    )
    for name, kind in WHOLE.items():
        trained = np.concatenate([np.pad(read[part], (0, window)) for part in kind.train]).astype(np.float64)
        energy = np.sqrt(np.maximum(np.convolve(trained**2, np.ones(window), "valid"), 1.0))
        for part in (*kind.test, *kind.other):
            for start in range(0, max(1, len(read[part]) - window + 1), 800):
                piece = read[part][start : start + window].astype(np.float64)
                size = len(trained) + len(piece)
                product = np.fft.irfft(np.fft.rfft(trained, size) * np.fft.rfft(piece, size).conj(), size)
                match = np.abs(product[: len(energy)]) / energy / np.linalg.norm(piece)
                assert match.max() < 0.75, (name, part, start)
