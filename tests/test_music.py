"""The MUSIC reader: split by the lists, several clips a video, duets, and what it tells a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.music import ids_of_test, music
from helpers.errors import refusal

Videos = dict[str, list[str]]
SOLO, DUET, SOLO21 = "MUSIC_solo_videos", "MUSIC_duet_videos", "MUSIC21_solo_videos"
# Sorted, "-aaaaaaaaaa" comes first and is the one test video.
SOLOS = {"violin": ["-aaaaaaaaaa", "bbbbbbbbbb_"], "acoustic_guitar": ["ccccccccccc", "ddddd-ddddd"]}
DUETS = {"violin acoustic_guitar": ["eeeeeeeeeee"], "acoustic_guitar violin": ["fffffffffff"]}


def make(root: Path, lists: dict[str, Videos] | None = None, on_disk: tuple[str, ...] = ()) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, videos in ({SOLO: SOLOS, DUET: DUETS} if lists is None else lists).items():
        (root / f"{name}.json").write_text(json.dumps({"version": 1.0, "videos": videos}, indent=4))
    for name in on_disk:
        path = root / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def message(root: Path, split: str = "train", **options: object) -> str:
    return refusal(music, root, split, **options)


def ids(found: ClipList) -> list[str]:
    return [clip.id for clip in found.clips]


ALL = tuple(f"{name}/{video}.mp4" for name, videos in (SOLOS | DUETS).items() for video in videos)


def test_solos(tmp_path: Path) -> None:
    train, test = (music(make(tmp_path, on_disk=ALL), split) for split in ("train", "test"))
    assert train.classes == test.classes == ["acoustic_guitar", "violin"]
    assert [(clip.id, clip.video, clip.label, clip.labels) for clip in train.clips] == [
        ("bbbbbbbbbb_", "bbbbbbbbbb_", 1, ()),
        ("ccccccccccc", "ccccccccccc", 0, ()),
        ("ddddd-ddddd", "ddddd-ddddd", 0, ()),
    ]
    assert [clip.path for clip in test.clips] == [str(tmp_path / "clips/violin/-aaaaaaaaaa.mp4")]
    assert not train.multi_label
    assert train.missing == test.missing == train.notes == test.notes == []  # duets are listed, if not chosen


def test_duets_are_train_and_have_two_labels(tmp_path: Path) -> None:
    train, test = (music(make(tmp_path, on_disk=ALL), split, lists=[SOLO, DUET]) for split in ("train", "test"))
    assert train.multi_label
    assert test.multi_label
    assert [(clip.id, clip.label, clip.labels) for clip in train.clips] == [
        ("bbbbbbbbbb_", 1, (1,)),
        ("ccccccccccc", 0, (0,)),
        ("ddddd-ddddd", 0, (0,)),
        ("eeeeeeeeeee", 1, (0, 1)),
        ("fffffffffff", 0, (0, 1)),
    ]
    assert train.clips[3].path == str(tmp_path / "clips/violin acoustic_guitar/eeeeeeeeeee.mp4")
    assert [(clip.id, clip.labels) for clip in test.clips] == [("-aaaaaaaaaa", (1,))]
    assert ids(music(tmp_path, "duet", lists=[SOLO, DUET])) == ["eeeeeeeeeee", "fffffffffff"]


def test_several_clips_of_a_video_and_names_that_run_on(tmp_path: Path) -> None:
    on_disk = (
        "violin/bbbbbbbbbb_.mp4",
        "violin/bbbbbbbbbb__0001.mp4",
        "violin/bbbbbbbbbb_-2.mp4",
        "violin/bbbbbbbbbb_.f137.mp4",
        "violin/bbbbbbbbbb_x.mp4",  # of another, unlisted video
        "violin/bbbbbbbbbb_.mp4.part",
        "violin/bbbbbbbbbb_.mkv",
        "acoustic_guitar/bbbbbbbbbb_.mp4",  # in a folder of another instrument
        "acoustic_guitar/ddddd-ddddd_0002.mp4",
        "acoustic_guitar/ddddd-ddddd_0010.mp4",
        "acoustic_guitar/ddddd.mp4",
    )
    found = music(make(tmp_path, on_disk=on_disk), "train")
    assert ids(found) == [
        "bbbbbbbbbb_",
        "bbbbbbbbbb_-2",
        "bbbbbbbbbb_.f137",
        "bbbbbbbbbb__0001",
        "ddddd-ddddd_0002",
        "ddddd-ddddd_0010",
    ]
    assert {clip.video for clip in found.clips} == {"bbbbbbbbbb_", "ddddd-ddddd"}
    assert [(clip.id, clip.path) for clip in found.missing] == [
        ("ccccccccccc", str(tmp_path / "clips/acoustic_guitar/ccccccccccc.mp4"))
    ]
    assert found.listed == 7
    assert found.notes == ["3 clips on disk are not in the lists of MUSIC."]


def test_an_id_that_goes_on_in_another_id(tmp_path: Path) -> None:
    """The clip `-aaaaaaaaaa_bbbbbbbbbb` is one of the first video, however much it looks like a second id."""
    lists = {SOLO: {"violin": ["-aaaaaaaaaa", "_bbbbbbbbbb", "aaaaaaaaaa_", "aaaaaaaaaa-"]}}
    on_disk = ("violin/-aaaaaaaaaa_bbbbbbbbbb.mp4", "violin/aaaaaaaaaa__.mp4", "violin/aaaaaaaaaa-_0.mp4")
    train, test = (music(make(tmp_path, lists, on_disk), split) for split in ("train", "test"))
    assert [(clip.id, clip.video) for clip in test.clips] == [("-aaaaaaaaaa_bbbbbbbbbb", "-aaaaaaaaaa")]
    assert [(clip.id, clip.video) for clip in train.clips] == [
        ("aaaaaaaaaa-_0", "aaaaaaaaaa-"),
        ("aaaaaaaaaa__", "aaaaaaaaaa_"),
    ]
    assert [clip.id for clip in train.missing] == ["_bbbbbbbbbb"]


def test_the_published_rule_of_the_split() -> None:
    def size(n: int) -> int:
        return len(ids_of_test(f"{number:011d}" for number in range(n)))

    assert [size(n) for n in (260, 536, 1164)] == [130, 134, 146]  # every 2nd, 4th, 8th
    assert [size(n) for n in (1, 9, 128, 130, 259)] == [1, 1, 13, 13, 26]  # every 10th
    ids_of_536 = {f"{number:011d}" for number in range(536)}
    assert ids_of_test(sorted(ids_of_536, reverse=True)) == {f"{number:011d}" for number in range(0, 536, 4)}


def test_the_split_does_not_depend_on_what_is_on_disk(tmp_path: Path) -> None:
    videos = [f"{number:011d}" for number in range(300)]
    lists = {SOLO: {"violin": videos[::2], "cello": videos[1::2]}}
    folder = {video: "cello" if n % 2 else "violin" for n, video in enumerate(videos)}
    some = music(make(tmp_path / "a", lists, tuple(f"{folder[v]}/{v}.mp4" for v in videos[:50:5])), "test")
    other = music(make(tmp_path / "b", lists, tuple(f"{folder[v]}/{v}_1.mp4" for v in videos[100:200])), "test")
    for found in (some, other):
        assert {clip.video for clip in found.clips + found.missing} == set(videos[::2])
        assert found.classes == ["cello", "violin"]
    assert ids(some) == videos[:50:10]
    assert music(tmp_path / "a", "train").listed == 150


def test_a_duet_with_the_id_of_a_solo(tmp_path: Path) -> None:
    duets = {"violin acoustic_guitar": ["-aaaaaaaaaa", "ccccccccccc", "eeeeeeeeeee"]}
    make(tmp_path, {SOLO: SOLOS, DUET: duets}, (*ALL[:4], "violin acoustic_guitar/-aaaaaaaaaa.mp4"))
    train, test = (music(tmp_path, split, lists=[SOLO, DUET]) for split in ("train", "test"))
    assert [(clip.id, clip.labels) for clip in test.clips] == [("-aaaaaaaaaa", (1,))]
    assert [clip.labels for clip in train.clips if clip.id == "ccccccccccc"] == [(0,)]
    note = "The lists give 2 videos different instruments, e.g. -aaaaaaaaaa 'violin' and 'violin acoustic_guitar'; "
    assert train.notes == test.notes == [f"{note}the first counts."]
    first = music(tmp_path, "test", lists=[DUET, SOLO])
    assert [(clip.id, clip.labels) for clip in first.clips] == [("-aaaaaaaaaa", (0, 1))]


def test_an_instrument_in_several_lists_is_one_class(tmp_path: Path) -> None:
    more = {"violin": ["-aaaaaaaaaa", "hhhhhhhhhhh"], "pipa": ["iiiiiiiiiii", "iiiiiiiiiii"]}
    make(tmp_path, {SOLO: SOLOS, SOLO21: more}, (*ALL[:4], "violin/hhhhhhhhhhh.mp4", "pipa/iiiiiiiiiii.mp4"))
    found = music(tmp_path, "train", lists=[SOLO, SOLO21])
    assert found.classes == ["acoustic_guitar", "pipa", "violin"]
    assert [(clip.id, clip.label) for clip in found.clips if clip.id[0] in "bhi"] == [
        ("bbbbbbbbbb_", 2),
        ("hhhhhhhhhhh", 2),
        ("iiiiiiiiiii", 1),
    ]
    assert found.notes == [f"1 video is repeated in a list, e.g. iiiiiiiiiii in {SOLO21}.json; each counts once."]
    assert music(tmp_path, "train", lists=[SOLO21]).classes == ["pipa", "violin"]


def test_strangers_on_disk(tmp_path: Path) -> None:
    strange = ("violn/a.mp4", "violn/b.mp4", "violin/new.mp4", "violin/notes.txt", "violin acoustic_guitar/x.mp4")
    found = music(make(tmp_path, on_disk=(*ALL, *strange)), "train")
    assert found.notes == [
        "clips/violn matches no label of the lists of MUSIC; its 2 clips are not used; did you mean 'violin'?",
        "2 clips on disk are not in the lists of MUSIC.",
    ]


def test_a_list_that_is_not_used_does_not_stop_anyone(tmp_path: Path) -> None:
    make(tmp_path, on_disk=ALL)
    (tmp_path / f"{SOLO21}.json").write_text("<html>404</html>")
    (note,) = music(tmp_path, "train").notes
    assert note.startswith(f"An unused list cannot be read: {tmp_path / SOLO21}.json cannot be read as JSON")


def test_other_layouts_of_the_clips(tmp_path: Path) -> None:
    make(tmp_path, on_disk=("violin/bbbbbbbbbb_/0001.mp4", "violin/bbbbbbbbbb_/x.mp4"))
    found = music(tmp_path, "train", clip_pattern="clips/{instrument}/{id}/*.mp4")
    assert [(clip.id, clip.path) for clip in found.clips] == [
        ("bbbbbbbbbb__0001", str(tmp_path / "clips/violin/bbbbbbbbbb_/0001.mp4")),
        ("bbbbbbbbbb__x", str(tmp_path / "clips/violin/bbbbbbbbbb_/x.mp4")),
    ]
    make(tmp_path / "flat", on_disk=("../bbbbbbbbbb_.mp4", "../bbbbbbbbbb__1.mp4"))
    found = music(tmp_path / "flat", "train", clip_pattern="{id}.mp4")
    assert [(clip.id, clip.path) for clip in found.clips] == [("bbbbbbbbbb_", str(tmp_path / "flat/bbbbbbbbbb_.mp4"))]
    for pattern in ("clips/*/{id}.mp4", "clips/{id}*_*.mp4"):
        assert "at most one '*', in the file name: fix data.index.clip_pattern" in message(
            tmp_path, clip_pattern=pattern
        )
    assert "expected the fields id and instrument" in message(tmp_path, clip_pattern="{label}/{id}.mp4")
    assert "leaves the data folder" in message(tmp_path, clip_pattern="../{id}*.mp4")
    assert "gives all clips the same path" in message(tmp_path, clip_pattern="{instrument}/*.mp4")


def test_byte_order_mark(tmp_path: Path) -> None:
    path = make(tmp_path, on_disk=ALL) / f"{SOLO}.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(music(tmp_path, "train").clips) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be read as JSON"),
        ('{"videos": {"violin": ["-aaaaaaaaaa",]}}', "cannot be read as JSON"),
        ('{"videos": {"violin": ["\xe4"]}}', "cannot be read as JSON"),  # written as Latin-1
        ('{"violin": ["-aaaaaaaaaa"]}', "is not a list of MUSIC"),
        ('["-aaaaaaaaaa"]', "is not a list of MUSIC"),
        ('{"videos": {"violin": "-aaaaaaaaaa"}}', "is not a list of MUSIC"),
        ('{"videos": {"violin": ["-aaaaaaaaaa"], "violin": []}}', "has the key 'violin' twice"),
        ('{"videos": {"violin": ["short"]}}', "lists 'short' under 'violin'"),
        ('{"videos": {"violin": [12345678901]}}', "lists 12345678901 under 'violin'"),
        ('{"videos": {"violin": ["../aaaaaaaa"]}}', "lists '../aaaaaaaa' under 'violin'"),
        ('{"videos": {"violin": ["aaaaaaaaaaa\\n"]}}', "under 'violin'"),
        ('{"videos": {"../violin": ["-aaaaaaaaaa"]}}', "the instrument '../violin' cannot be part of a file name"),
    ],
)
def test_bad_list_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (make(tmp_path) / f"{SOLO}.json").write_text(text, encoding="latin-1")
    text = message(tmp_path)
    assert str(tmp_path / f"{SOLO}.json") in text
    assert sentence in text


def test_a_duet_of_unknown_instruments(tmp_path: Path) -> None:
    make(tmp_path, {SOLO: SOLOS, DUET: {"violin acoustic_gitar": ["eeeeeeeeeee"]}})
    text = message(tmp_path, lists=[SOLO, DUET])
    assert f"{tmp_path / DUET}.json has the duet 'violin acoustic_gitar', but no solo list has 'acoustic_gitar'" in text
    assert "did you mean 'acoustic_guitar'?" in text
    text = message(tmp_path, lists=[DUET])
    assert "name no solo videos" in text
    assert f"data.index.lists, e.g. [{SOLO}]" in text


def test_missing_root_and_lists(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist" in message(tmp_path / "gone")
    text = message(tmp_path)
    assert f"{tmp_path / SOLO}.json does not exist" in text
    assert '{"videos": {instrument: [ids]}}' in text
    assert "data.index.lists" in text
    assert "leaves the data folder" in message(tmp_path, lists=["../list"])
    assert f"set data.index.lists=[{SOLO}]" in message(tmp_path, lists=SOLO)
    assert "name no solo videos" in message(tmp_path, lists=[])
    assert "There is no split of MUSIC 'val'" in message(tmp_path, "val")


def test_nothing_on_disk(tmp_path: Path) -> None:
    make(tmp_path, on_disk=ALL[:1])
    text = message(tmp_path, lists=[SOLO, DUET])
    assert "None of the 5 clips of the train split is on disk" in text
    assert f"expected for example {tmp_path / 'clips/violin/bbbbbbbbbb_.mp4'}" in text
    assert "clips/violin/ holds -aaaaaaaaaa.mp4" in text
