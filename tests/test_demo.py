"""The generated demo data: layout, truth of the masks, determinism, and what `ensure` does to what it finds."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import wave
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from deepavfusion.commands import prepare
from deepavfusion.data.lists.audioset import audioset
from deepavfusion.data.lists.avsbench import avsbench
from deepavfusion.data.lists.music import music
from deepavfusion.data.lists.vggsound_music import vggsound_music
from deepavfusion.demo import clips as writer
from deepavfusion.demo import demo, plans
from deepavfusion.demo.drawings import DRAWINGS
from deepavfusion.demo.scenes import Scene
from deepavfusion.demo.sounds import OWN_REGISTER, SAMPLE_RATE, VOICES, melody, mix, perform
from deepavfusion.utils.errors import UserError
from helpers.runs import compose

TINY = demo.Counts(
    vggsound_train=1, vggsound_test=1, vggsound_music_train=1, vggsound_music_test=2, solos=1, duets=1,
    s4_train=3, s4_val=1, s4_test=1, ms3_train=2, ms3_val=1, ms3_test=1,
    audioset_balanced=18, audioset_unbalanced=2, audioset_eval=8,
)  # fmt: skip
ONE_SET = demo.Counts(vggsound_train=1, vggsound_test=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.ensure(folder, workers=1, counts=TINY)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_vggsound_layout(root: Path) -> None:
    lines = rows(root / "vggsound/annotations/vggsound.csv")
    assert len({line[0] for line in lines}) == 8 * 2
    assert all(len(line[0]) == 11 for line in lines)
    assert any(line[0].startswith("-") for line in lines)
    assert {line[3] for line in lines} == {"train", "test"}
    listed = set()
    for clip, start, label, split in lines:
        folder = {"playing violin, fiddle": "playing_violin__fiddle"}.get(label, label.replace(" ", "_"))
        listed.add(f"clips/{folder}/{clip}_{int(start):06d}_{int(start) + 10:06d}.mp4")
        of_class = [line for line in lines if line[2:] == [label, split]]
        assert len(of_class) == 1
    on_disk = {str(p.relative_to(root / "vggsound")) for p in (root / "vggsound/clips").rglob("*.mp4")}
    assert on_disk == listed


def test_every_clip_decodes_with_sound(root: Path) -> None:
    clips = [(path, 4.0) for path in sorted((root / "vggsound").rglob("*.mp4"))[::5]]
    clips += [(path, 4.0) for path in sorted((root / "audioset").rglob("*.mp4"))[::7]]
    solos = [path for path in sorted((root / "music").rglob("*.mp4")) if " " not in path.parent.name]
    (duet,) = (path for path in (root / "music").rglob("*.mp4") if path not in solos)
    clips += [(path, 3.2) for path in solos[::5]] + [(duet, 6.0)]
    assert len(clips) == 4 + 4 + 1 + 1
    for path, seconds in clips:
        with av.open(str(path)) as container:
            frames = [frame.time for frame in container.decode(video=0)]
        with av.open(str(path)) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert len(frames) == round(seconds * writer.FPS)
        assert len(sound) / SAMPLE_RATE == pytest.approx(seconds, abs=0.1)
        assert np.sqrt(np.mean(sound**2)) > 0.01


def test_vggsound_music_layout(root: Path) -> None:
    """The reader of the published lists reads them: instruments, pairs, and where the clips lie."""
    train, test = (vggsound_music(root / "vggsound_music", split) for split in ("train", "test"))
    assert (len(train), len(test), train.missing, test.missing) == (4, 8, [], [])
    assert train.classes == test.classes == sorted(train.classes)
    assert {"violin", "acoustic_guitar"} < set(train.classes)
    label = {clip.id: clip.label for clip in test.clips}
    assert [first for first, _ in test.mixtures] == list(dict.fromkeys(first for first, _ in test.mixtures))
    assert sum(label[first] == label[second] for first, second in test.mixtures) == 1
    assert all(first != second for first, second in test.mixtures)


def test_solos_keep_to_their_register(root: Path) -> None:
    """A flute plays where no guitar does: the solos' pitches are those of their instrument."""
    low, high = (melody(np.random.default_rng(0), 9.0, OWN_REGISTER[name]) for name in ("guitar", "flute"))
    assert max(note.frequency for note in low) < min(note.frequency for note in high)
    assert all(70 < note.frequency < 200 for note in low)


def test_music_lists_name_the_clips(root: Path) -> None:
    folder = root / "music"
    solos = json.loads((folder / "MUSIC_solo_videos.json").read_text())["videos"]
    duets = json.loads((folder / "MUSIC_duet_videos.json").read_text())["videos"]
    assert (folder / "MUSIC21_solo_videos.json").read_text() == (folder / "MUSIC_solo_videos.json").read_text()
    assert "acoustic_guitar" in solos
    assert len(solos) == 4
    assert sum(map(len, duets.values())) == 1
    for pair in duets:
        first, second = pair.split(" ")
        assert first != second
        assert {first, second} <= set(solos)
    videos = [*solos.items(), *duets.items()]
    listed = {f"{instrument}/{clip}.mp4" for instrument, clips in videos for clip in clips}
    assert {str(path.relative_to(folder / "clips")) for path in folder.rglob("*.mp4")} == listed
    lists = ["MUSIC_solo_videos", "MUSIC_duet_videos"]
    train, test = (music(folder, split, lists=lists) for split in ("train", "test"))
    assert (len(train), len(test)) == (4 - 1 + 1, 1)
    assert train.classes == sorted(plans.CLASSES[name][1] for name in demo.STAGE)
    assert train.missing == test.missing == train.notes == test.notes == []


def test_avsbench_layout(root: Path) -> None:
    folder = root / "avsbench"
    header, *lines = rows(folder / "metadata.csv")
    assert header == ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"]
    assert len(lines) == 9
    index = json.loads((folder / "label2idx.json").read_text())
    assert sorted(index.values()) == list(range(5))
    assert index["background"] == 0
    for _, uid, _, _, a_obj, split, label in lines:
        clip = folder / label / uid
        with wave.open(str(clip / "audio.wav")) as file:
            assert file.getnframes() / file.getframerate() == 5.0
        assert sorted(path.name for path in (clip / "frames").iterdir()) == [f"{n}.jpg" for n in range(5)]
        masks = sorted((clip / "labels_semantic").iterdir())
        count = 1 if (label, split) == ("v1s", "train") else 5
        assert [path.name for path in masks] == [f"{n}.png" for n in range(count)]
        sounding = {index[name] for name in a_obj.split("_")}
        for path in masks:
            mask = np.asarray(Image.open(path))
            assert mask.shape == np.asarray(Image.open(clip / f"frames/{path.stem}.jpg")).shape[:2]
            assert set(np.unique(mask)) == {0, *sounding}
    expected = {("s4", "train"): 3, ("s4", "val"): 1, ("ms3", "train"): 2, ("ms3", "test"): 1, ("avss", "train"): 5}
    for (subset, split), listed in expected.items():
        found = avsbench(folder, split, subset)
        assert (len(found.clips), found.missing, found.notes) == (listed, [], [])
        assert found.classes == ["background", *demo.STAGE]


AUDIOSET_SPLITS = {"balanced": "balanced_train", "unbalanced": "unbalanced_train", "eval": "eval"}  # and their lists


def test_audioset_lists_are_written_as_published(root: Path) -> None:
    folder = root / "audioset/annotations"
    header, *classes = rows(folder / "class_labels_indices.csv")
    assert header == ["index", "mid", "display_name"]
    assert [int(index) for index, _, _ in classes] == list(range(8))
    assert dict(row[1:] for row in classes) == {
        "/m/0mkg": "Accordion",
        "/m/018j2": "Banjo",
        "/m/02hnl": "Drum kit",
        "/m/0l14j_": "Flute",
        "/m/042v_gx": "Acoustic guitar",
        "/m/05r5c": "Piano",
        "/m/07gql": "Trumpet",
        "/m/07y_7": "Violin, fiddle",
    }
    line = re.compile(r'(?P<id>[\w-]{11}), (?P<start>\d+)\.000, (?P<end>\d+)\.000, "(?P<mids>/m/\w+(,/m/\w+){0,2})"')
    first_letters = set()
    for file in AUDIOSET_SPLITS.values():
        lines = (folder / f"{file}_segments.csv").read_text().splitlines()
        found = [match for match in map(line.fullmatch, lines[3:]) if match]
        assert len(found) == len(lines) - 3
        assert [text[:2] for text in lines[:3]] == ["# "] * 3
        mids = [mid for match in found for mid in match["mids"].split(",")]
        counts = f"num_ytids={len(found)}, num_segs={len(found)}"
        assert lines[1] == f"# {counts}, num_unique_labels={len(set(mids))}, num_positive_labels={len(mids)}"
        assert lines[2] == "# YTID, start_seconds, end_seconds, positive_labels"
        for match in found:
            name = f"{match['id']}_{int(match['start']):06d}_{int(match['end']):06d}.mp4"
            assert int(match["end"]) == int(match["start"]) + 10
            assert (root / "audioset/clips" / match["id"][:2] / name).is_file()
        first_letters |= {match["id"][0] for match in found}
    assert "-" in first_letters


def test_audioset_labels_are_what_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's labels are the instruments that were performed for the clip's sound, and no others."""
    performed: list[str] = []
    heard: dict[str, set[str]] = {}
    perform_, write_ = demo.perform, writer.write_mp4

    def listen(instrument: str, *rest: Any) -> Any:
        performed.append(instrument)
        return perform_(instrument, *rest)

    def note(path: Path, *rest: Any) -> None:
        heard[path.name] = {plans.CLASSES[name][3] for name in performed}
        performed.clear()
        write_(path, *rest)

    monkeypatch.setattr(demo, "perform", listen)
    monkeypatch.setattr(writer, "write_mp4", note)
    counts = demo.Counts(audioset_balanced=18, audioset_unbalanced=1, audioset_eval=1)
    (root,) = demo.ensure(tmp_path, ["audioset"], workers=1, counts=counts)
    found = audioset(root, "balanced")
    assert {Path(clip.path).name: {found.classes[label] for label in clip.labels} for clip in found.clips}.items() <= (
        heard.items()
    )
    assert Counter(len(clip.labels) for clip in found.clips) == {1: 8, 2: 8, 3: 2}
    assert {clip.label for clip in found.clips} <= set(range(8))
    assert all(clip.label in clip.labels for clip in found.clips)


def test_the_reader_finds_all_of_audioset(root: Path) -> None:
    folder = root / "audioset"
    found = {split: audioset(folder, split) for split in (*AUDIOSET_SPLITS, "full")}
    assert {split: len(clips) for split, clips in found.items()} == {
        "balanced": 18, "unbalanced": 2, "eval": 8, "full": 20,
    }  # fmt: skip
    for clips in found.values():
        assert (clips.missing, clips.excluded, clips.notes, clips.multi_label) == ([], [], [], True)
        assert clips.classes == [name for *_, name in plans.CLASSES.values()]


@pytest.mark.full
def test_verify_finds_nothing_wrong_in_audioset(root: Path) -> None:
    folder = root / "audioset"
    overrides = ["command=verify", "data=audioset", f"data.root={folder}", "splits=[full,eval]", "workers=1"]
    prepare.verify_data(compose(*overrides, config="prepare"))
    header, *lines = rows(folder / "verify.csv")
    assert [line[header.index("status")] for line in lines] == ["ok"] * 28
    for file in folder.glob("verify*"):
        file.unlink()


def test_audioset_is_balanced() -> None:
    """Of the full size: in every split each instrument sounds equally often; no video is in two splits."""
    jobs, _ = demo.PLANS["audioset"](0, demo.FULL)
    videos = [Path(job.path).name[:11] for job in jobs]
    assert len(videos) == len(set(videos)) == 384 + 192 + 160
    for file, size in {"balanced_train": 384, "unbalanced_train": 192, "eval": 160}.items():
        of_split = [job for job in jobs if job.key.startswith(f"audioset/{file}/")]
        assert len(of_split) == size
        times = Counter(name for job in of_split for name in job.sounding)
        assert set(times) == set(plans.NAMES)
        assert len(set(times.values())) == 1
        numbers = Counter(len(job.sounding) for job in of_split)
        assert numbers[1] > numbers[2] > numbers[3] > 0.1 * size
        assert numbers.total() == size == sum(numbers[number] for number in (1, 2, 3))
        pairs = {frozenset(pair) for job in of_split for pair in combinations(job.sounding, 2)}
        assert len(pairs) == 28  # any two play together somewhere
        assert 0.35 < np.mean([len(job.silent) for job in of_split]) < 0.55
        seen = [[*job.sounding, *job.silent] for job in of_split]
        assert all(len(names) == len(set(names)) <= 3 for names in seen)
        dashed = {job.sounding[0] for job in of_split if Path(job.path).name.startswith("-")}
        assert len(dashed) > 4  # the id does not tell the class


def test_masks_cover_the_sounding_instrument_and_no_other() -> None:
    """The sounding one moves, and all that changes in the frame lies in the masks of before and after."""
    for seed in range(8):
        scene = Scene(np.random.default_rng(seed), ["piano", "drum"], [[1.0]])
        before, after = scene.frame(0.9).astype(int), scene.frame(1.0).astype(int)
        changed = np.abs(before - after).max(axis=-1) > 0
        masks = [scene.masks(time)[0] for time in (0.9, 1.0)]
        touched = np.stack([np.asarray(scene.sprites[0].alpha(scene.poses(t)[0], *changed.shape[::-1])) > 0
                            for t in (0.9, 1.0)]).any(axis=0)  # fmt: skip
        assert changed.sum() > 500
        assert not (changed & ~touched).any()
        assert (touched & ~(masks[0] | masks[1])).mean() < 0.1  # only the soft edge
        silent = np.asarray(scene.sprites[1].alpha((0, 0), *changed.shape[::-1])) > 127
        assert (masks[0] & silent).sum() < 0.5 * silent.sum()


def test_overlapping_masks_are_disjoint() -> None:
    for seed in range(6):
        first, second = Scene(np.random.default_rng(seed), ["violin", "accordion", "flute"], [[1.0], [1.1]]).masks(1.1)
        assert first.any()
        assert second.any()
        assert not (first & second).any()


@pytest.mark.full
def test_files_follow_from_the_seed_and_not_from_the_workers(root: Path, tmp_path: Path) -> None:
    counts, sets = (
        replace(ONE_SET, audioset_balanced=2, audioset_unbalanced=1, audioset_eval=1),
        ["vggsound", "audioset"],
    )
    for name, seed, workers in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        demo.ensure(tmp_path / name, sets, seed, workers, counts)
    for dataset, same in zip(sets, (set(), {"annotations/class_labels_indices.csv"}), strict=True):
        one, two, other = (hashes(tmp_path / name / dataset) for name in ("one", "two", "other"))
        assert one == two
        assert {name for name, value in one.items() if value in other.values()} == same
        clips = {name: value for name, value in one.items() if name.endswith(".mp4")}
        assert len(clips) == {"vggsound": 8, "audioset": 4}[dataset]
        assert clips.items() <= hashes(root / dataset).items()  # fewer clips: the same ones


def test_no_two_clips_are_the_same(root: Path) -> None:
    clips = [value for name, value in hashes(root).items() if name.endswith((".mp4", ".wav", ".jpg"))]
    same = len(clips) - len(set(clips))
    assert same <= 5 * 9 / 4  # frames of an AVSBench clip may be equal; waveforms and clips never are
    sounds = [value for name, value in hashes(root).items() if name.endswith((".mp4", ".wav"))]
    assert len(sounds) == len(set(sounds)) == 16 + 12 + 5 + 9 + 28


def test_ensure_leaves_a_complete_set_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET)
    assert "Generating demo data" in capfd.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(before) == 8
    assert demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET) == [tmp_path / "vggsound"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == before
    assert capfd.readouterr().err == ""


def test_ensure_mends_what_a_killed_run_left(tmp_path: Path) -> None:
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET)
    complete = hashes(tmp_path / "vggsound")
    for leftover in (".vggsound.partial", ".vggsound.old"):
        shutil.copytree(tmp_path / "vggsound", tmp_path / leftover)
        next((tmp_path / leftover).rglob("*.mp4")).unlink()
    next((tmp_path / "vggsound").rglob("*.mp4")).unlink()
    assert not demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET)
    assert hashes(tmp_path / "vggsound") == complete
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "vggsound"]


def test_another_seed_or_version_is_not_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET)
    (tmp_path / "vggsound" / "verify.csv").touch()  # a report beside it changes nothing
    assert demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)
    assert not demo.is_complete(tmp_path, "vggsound", seed=1, counts=ONE_SET)
    monkeypatch.setitem(demo.OWN_VERSIONS, "music", 1)  # another set's
    assert demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)
    monkeypatch.setitem(demo.OWN_VERSIONS, "vggsound", 1)
    assert not demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)
    monkeypatch.delitem(demo.OWN_VERSIONS, "vggsound")
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    assert not demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)


def test_a_set_knows_its_own_counts_only(tmp_path: Path) -> None:
    """Other sets may grow; manifests from before it was so, which hold the counts of all sets, count too."""
    assert sorted(name for names in demo.COUNTS.values() for name in names) == sorted(
        field.name for field in fields(demo.Counts)
    )
    assert list(demo.COUNTS) == list(demo.PLANS) == [*demo.SETS, *plans.OPTIONAL]
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET)
    path = tmp_path / "vggsound/manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["counts"] == {"vggsound_train": 1, "vggsound_test": 0}
    assert demo.is_complete(tmp_path, "vggsound", counts=replace(ONE_SET, audioset_eval=8, solos=1))
    assert not demo.is_complete(tmp_path, "vggsound", counts=replace(ONE_SET, vggsound_test=1))
    path.write_text(json.dumps({**manifest, "counts": {**manifest["counts"], "solos": 5}}))
    assert demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)
    path.write_text(json.dumps({**manifest, "counts": {"vggsound_train": 1}}))
    assert not demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)


OWN = {"version": 3, "seed": 0, "counts": {"vggsound_train": 1, "vggsound_test": 0}}
MINE = ["manifest.json", "mine.mp4"]


@pytest.mark.parametrize("folder", ["vggsound", ".vggsound.partial", ".vggsound.old"])
@pytest.mark.parametrize(
    "manifest",
    [
        None,
        {"name": "mine"},
        {**OWN, "files": MINE},
        {**OWN, "files": 2},
        {**OWN, "files": 10},
        {**OWN, "version": 2, "files": ["manifest.json"]},
        {**OWN, "version": 2, "files": MINE, "name": "mine"},
        {**OWN, "version": 2, "files": 2},
        {**OWN, "counts": {"vggsound_train": 10**9}, "files": 10**9},
        {**OWN, "counts": [], "files": MINE},
        {**OWN, "files": [["mine.mp4"]]},
        5,
        [],
        "[" * 5000,
    ],
)
def test_foreign_folders_are_never_touched(tmp_path: Path, folder: str, manifest: Any) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.mp4").write_bytes(b"precious")
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (tmp_path / folder / "manifest.json").write_text(text)
    for force in (False, True):
        with pytest.raises(UserError, match=r"holds no generated demo data|is no part of the generated demo data"):
            demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET, force=force)
    assert (tmp_path / folder / "mine.mp4").read_bytes() == b"precious"


def test_files_beside_the_generated_ones_are_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET)
    folder, elsewhere = tmp_path / "vggsound", tmp_path / "elsewhere"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == sorted(hashes(folder))
    (folder / "verify.csv").write_text("report")
    (tmp_path / ".lock").write_text("mine")
    for mine in ("clips/mine.mp4", "verify_notes.txt", "clips/verify.csv"):
        (folder / mine).write_text("precious")
        assert demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)  # and so is left alone
        with pytest.raises(UserError, match=f"holds {mine}, which is no part of the generated"):
            demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET, force=True)
        assert (folder / mine).read_text() == "precious"
        (folder / mine).unlink()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": len(manifest["files"])}))
    assert demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)  # of an earlier commit
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET, force=True)
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert (folder / "verify.csv").read_text() == "report"
    assert (tmp_path / ".lock").read_text() == "mine"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    assert demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)
    with pytest.raises(UserError, match="move it away or choose another root"):
        demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET, force=True)
    assert len(hashes(elsewhere)) == len(manifest["files"]) + 1
    folder.unlink()
    elsewhere.rename(folder)
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)  # the files of another version are named, too
    demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET)
    assert json.loads((folder / "manifest.json").read_text())["version"] == demo.VERSION


def test_two_calls_at_once_do_the_work_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A lock of an open file holds between processes, and between threads that opened it each."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: demo.ensure(tmp_path, ["vggsound"], workers=1, counts=ONE_SET), range(2)))
    assert capfd.readouterr().err.count("Generating") == 1
    assert demo.is_complete(tmp_path, "vggsound", counts=ONE_SET)


def test_every_instrument_has_a_look_and_a_voice() -> None:
    assert set(DRAWINGS) == set(VOICES) == set(plans.CLASSES)


def test_overall_spectrum_does_not_tell_the_class() -> None:
    """The nearest neighbour in mean log spectrum is mostly of another class (chance 0.125)."""
    spectra, labels = [], []
    for n in range(96):
        name = plans.NAMES[n % 8]
        rng = np.random.default_rng([7, n])
        waveform = mix([perform(name, melody(rng, 2.0), rng, 2.0)], rng)
        power = np.abs(np.fft.rfft(waveform.reshape(-1, 640))) ** 2
        bands = np.add.reduceat(power, np.unique(np.geomspace(1, 300, 40).astype(int)), axis=1)
        spectra.append(np.log10(bands + 1e-7).mean(axis=0))
        labels.append(name)
    features = np.array(spectra)
    features = (features - features.mean(0)) / features.std(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features @ features.T - 2 * np.eye(len(features))
    nearest = similarity.argmax(axis=1)
    hits = np.mean([labels[n] == labels[m] for n, m in enumerate(nearest)])
    assert hits < 0.5
