"""data=folder: which videos are found, how they are labelled, cut into windows and split, and what is kept of them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deepavfusion.config.compose import instantiate
from deepavfusion.data.lists import folder as reader
from deepavfusion.data.lists.clip_list import ClipList, held_out_videos, say_lists
from deepavfusion.data.lists.folder import folder
from deepavfusion.data.lists.videos import durations as kept
from deepavfusion.data.lists.videos.durations import Known, look_into
from deepavfusion.data.lists.videos.find import find_videos, video_at
from deepavfusion.data.lists.videos.windows import name_of, windows
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.types import Clip
from helpers.errors import refusal
from helpers.runs import compose
from helpers.videos import make_folder, write, write_long


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Files are not opened: each is as long as this says, 4 s if it says nothing; its content is its own bytes."""
    given: dict[str, float] = {}

    def look(root, videos):
        found = {}
        for video in videos:
            place = root / video.path
            there = place.is_file() and given.get(video.path) != 0
            content = f"{abs(hash(place.read_bytes())):016x}"[:16] if there else ""
            status = "ok" if there else "missing" if video.size < 0 else "no_audio"
            found[video.path] = Known(
                given.get(video.path, 4.0) if there else 0.0, content, status, "" if there else "!"
            )
        return found

    monkeypatch.setattr(reader, "durations", look)
    return given


def files(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode(errors="surrogateescape"))
    return root


def table(root: Path, text: str) -> Path:
    (root / "videos.csv").write_text(text, encoding="utf-8")
    return root


def labels_of(clips: ClipList) -> dict[str, list[str]]:
    return {clip.id.rpartition("@")[0]: [clips.classes[n] for n in clip.classes] for clip in clips.clips}


# ---- what is found


def test_links_are_followed_without_a_loop_and_nothing_is_listed_twice(tmp_path: Path) -> None:
    other = files(tmp_path / "elsewhere", "x.MP4", "deep/y.WebM")
    root = files(tmp_path / "root", "b/1.mov", "b/.hidden.mp4", ".cache/2.mp4", "notes.txt", "b/sound.wav", "list.csv")
    (root / "a").symlink_to(other)  # sorts before what it leads to
    (root / "b" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "b")
    (root / "gone.mkv").symlink_to(root / "nowhere.mkv")
    (root / "self").symlink_to(root / "self")
    found, notes = find_videos(str(root))
    assert [video.path for video in found] == ["a/deep/y.WebM", "a/x.MP4", "b/1.mov", "gone.mkv"]
    assert [video.size for video in found] == [11, 5, 7, -1]
    assert notes == [
        "3 files are not named like a video (.txt: 1, no ending: 1, .wav: 1), and not used.",
        f"2 folders are a link to another one below {root}, e.g. again, and not read twice.",
    ]


def test_what_file_systems_keep_is_not_looked_at(tmp_path: Path) -> None:
    root = files(tmp_path, "a/1.mp4", "a/._1.mp4", "a/@eaDir/1.mp4", "$RECYCLE.BIN/S-1/2.mp4", "__MACOSX/3.mp4")
    assert [video.path for video in find_videos(str(root))[0]] == ["a/1.mp4"]


def test_a_folder_that_can_be_listed_and_not_entered_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = files(tmp_path, "a/1.mp4", "b/2.mp4")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("/b"))  # root may enter any
    assert "b cannot be read (Permission denied): make it readable" in refusal(find_videos, str(root))


def test_a_folder_without_videos_says_what_it_looked_for(tmp_path: Path) -> None:
    assert "no file below" in refusal(folder, files(tmp_path, "a.txt"), "train")
    assert "does not exist" in refusal(folder, tmp_path / "nowhere", "train")


# ---- labels


def test_sub_folders_are_classes_and_folders_that_all_share_are_not(tmp_path: Path, lengths: dict[str, float]) -> None:
    root = files(tmp_path, "set/clips/dog/1.mp4", "set/clips/dog/2020/2.mp4", "set/clips/cat, (big)/[1]=a.mp4")
    found = folder(root, "all")
    assert found.classes == ["cat, (big)", "dog"]
    assert labels_of(found) == {
        "set/clips/cat, (big)/[1]=a.mp4": ["cat, (big)"],
        "set/clips/dog/1.mp4": ["dog"],
        "set/clips/dog/2020/2.mp4": ["dog"],
    }
    assert not found.multi_label
    assert {clip.label for clip in folder(root, "all", classes="none").clips} == {-1}


@pytest.mark.parametrize("paths", [("1.mp4", "2.mp4"), ("all/1.mp4", "all/2.mp4")])
def test_one_folder_has_no_classes(tmp_path: Path, lengths: dict[str, float], paths: tuple[str, ...]) -> None:
    root = files(tmp_path, *paths)
    found = folder(root, "all")
    assert (found.classes, [clip.label for clip in found.clips]) == ([], [-1, -1])
    assert "a sub-folder for each class" in refusal(folder, root, "all", classes="folder")


def test_a_video_beside_the_classes_is_an_error(tmp_path: Path, lengths: dict[str, float]) -> None:
    root = files(tmp_path, "dog/1.mp4", "cat/1.mp4", "stray.mp4")
    assert "1 video lies beside" in refusal(folder, root, "train")
    assert len(folder(root, "all", classes="none")) == 3


def test_folders_named_like_splits_are_splits(tmp_path: Path, lengths: dict[str, float]) -> None:
    root = files(tmp_path, "train/dog/1.mp4", "train/cat/2.mp4", "test/dog/3.mp4", "val/cat/4.mp4")
    ids = {split: [clip.id for clip in folder(root, split).clips] for split in ("train", "val", "test")}
    assert ids == {
        "train": ["train/cat/2.mp4@0-end", "train/dog/1.mp4@0-end"],
        "val": ["val/cat/4.mp4@0-end"],
        "test": ["test/dog/3.mp4@0-end"],
    }
    assert folder(root, "train").classes == ["cat", "dog"]


def test_a_table_names_parts_labels_and_splits(tmp_path: Path, lengths: dict[str, float]) -> None:
    root = files(tmp_path, "a b.mp4", "ü.mp4", "left.mp4", "n/c.mkv")
    lengths.update({"a b.mp4": 100.0, "ü.mp4": 12.0, "n/c.mkv": 8.0})
    table(
        root,
        "label,path,start,end,split\n"
        "cat;dog,a b.mp4,5,27.5,train\n"  # 22.5 s
        "dog,a b.mp4,60,,train\n"
        "bird,u\u0308.mp4,,,test\n"  # as another system spells it
        "bird,./n/c.mkv,,99,test\n"
        "bird,gone.mp4,,,test\n"
        "bird,n/c.mkv,9,,test\n",
    )
    train, test = folder(root, "train"), folder(root, "test")
    assert {clip.id: (clip.start, clip.end) for clip in train.clips} == {
        "a b.mp4@5-15": (5, 15),
        "a b.mp4@15-27.5": (15, 27.5),
        **{f"a b.mp4@{n}-{n + 10}": (n, n + 10) for n in (60, 70, 80)},
        "a b.mp4@90-end": (90, None),
    }
    assert train.classes == test.classes == ["bird", "cat", "dog"]
    assert train.multi_label
    assert test.multi_label
    assert {clip.labels for clip in train.clips} == {(1, 2), (2,)}
    assert [clip.id for clip in test.clips] == ["n/c.mkv@0-end", "ü.mp4@0-end"]
    assert [clip.id for clip in test.missing] == ["gone.mp4@0-end"]
    assert [(clip.id, why) for clip, why in test.excluded] == [("n/c.mkv@9-end", "too_short")]
    assert "1 video on disk is not in videos.csv, and not used, e.g. left.mp4." in train.notes
    assert len(folder(root, "all", annotations="none", classes="none")) == 10 + 1 + 1 + 1


def test_lines_of_one_clip_give_it_all_their_labels(tmp_path: Path, lengths: dict[str, float]) -> None:
    root = table(files(tmp_path, "a.mp4"), "path,label\na.mp4,x\na.mp4,y\na.mp4,x\n")
    found = folder(root, "all")
    assert labels_of(found) == {"a.mp4": ["x", "y"]}
    assert any("1 line of videos.csv gives a clip further labels" in note for note in found.notes)


BAD_TABLES = {
    "": "is empty",
    "path;label\na.mp4;x;y\n": "expected 2 cells",
    "file,label\na.mp4,x\n": "expected a header",
    "path,label,colour\na.mp4,x,red\n": "expected a header",
    "path\n../secret.mp4\n": "expected a path below",
    "path\n/etc/passwd\n": "expected a path below",
    "path,start\na.mp4,1:30\n": "expected seconds such as 12.5",
    "path,start\na.mp4,nan\n": "expected seconds such as 12.5",
    "path,end\na.mp4,1e99\n": "expected seconds such as 12.5",
    "path,start,end\na.mp4,5,5\n": "expected an end after its start",
    "path,label\na.mp4,x\nb.mp4,\n": "has no label",
    "path,split\na.mp4,train\nb.mp4,\n": "has no split",
    "path,split\na.mp4,all\nb.mp4,train\n": "has another meaning",
    "path,split\na.mp4,train\nb.mp4,Train\n": "differ only in case",
    "path;start\na.mp4;1,5\n": "with a point",
    "path,start,split\na.mp4,0,train\na.mp4,2,test\n": "the same video in 'train'",
    "path,split\na.mp4,train\ncopy.mp4,test\nb.mp4,test\n": "a copy of 'a.mp4' or a link to it in 'train'",
    'path,label\na.mp4,"x\n': "cannot be read as CSV",
    "path\na.mp4\n" + "x" * 2**20 + "\n": "has more than",
}


@pytest.mark.parametrize("text", BAD_TABLES, ids=range(len(BAD_TABLES)))
def test_a_table_that_is_not_right_is_one_sentence(tmp_path: Path, lengths: dict[str, float], text: str) -> None:
    root = table(files(tmp_path, "a.mp4", "b.mp4"), text)
    (root / "copy.mp4").symlink_to(root / "a.mp4")
    assert BAD_TABLES[text] in refusal(folder, root, "train")


def test_what_a_table_has_and_a_run_may_not_read_is_said(tmp_path: Path, lengths: dict[str, float]) -> None:
    root = files(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    lengths.update(dict.fromkeys(("a.mp4", "b.mp4"), 30.0))
    table(root, "path,end,label,split\na.mp4,40,Dog,train\nb.mp4,30.9,dog,train\nc.mp4,,dog,valid\n")
    notes = folder(root, "train").notes
    assert any(
        note.startswith("there are the splits train of 2 videos, valid of 1 video; data.train_split") for note in notes
    )
    assert "1 class differs from another one only in case, e.g. 'dog' from 'Dog'; they are kept apart." in notes
    assert "1 part ends after the video does, e.g. of a.mp4, of 30.0 s, at 40 s, and so with the video." in notes


# ---- windows


def test_windows_leave_nothing_out() -> None:
    for seconds in np.arange(0.1, 61.0, 0.7):
        found = windows(seconds, 10.0)
        ends = [seconds if end is None else end for _, end in found]
        assert found[0][0] == 0
        assert ends[-1] == seconds
        assert [start for start, _ in found[1:]] == ends[:-1]
        assert all(end - start == 10 for (start, _), end in zip(found[:-1], ends[:-1], strict=True))
        assert len(found) == 1 or 5 <= seconds - found[-1][0] < 15
    assert [name_of("a/b.mp4", each) for each in windows(20.0, 2.5, 1.25, 6.0)] == [
        "a/b.mp4@1.25-3.75",
        "a/b.mp4@3.75-6",
    ]


def test_a_window_is_the_part_of_its_file(tmp_path: Path) -> None:
    """Its clock begins with it, and nothing outside of it is read."""
    path = str(write(tmp_path / "v.mp4", seconds=6.0))
    store = RawStore()
    with store.open(Clip("", path)) as whole, store.open(Clip("", path, start=2.0, end=4.5)) as part:
        assert (part.audio_end, part.video_end) == (2.5, 2.5)
        assert torch.equal(part.audio(0.5, 1.5), whole.audio(2.5, 1.5))
        assert len(part.audio(2.0, 3.0)) == 8000
        assert len(part.audio(2.5, 1.0)) == 0
        assert [frame.pixels.tobytes() for frame in part.frames([0.0, 1.0])] == [
            frame.pixels.tobytes() for frame in whole.frames([2.0, 3.0])
        ]
        assert part.frame_times() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    with store.open(Clip("", path, start=4.0)) as last:
        assert last.audio_end == pytest.approx(2.0, abs=0.05)


# ---- splits


def test_no_video_is_on_both_sides_and_others_stay_where_they_are(tmp_path: Path, lengths: dict[str, float]) -> None:
    root = files(tmp_path, *(f"{kind}/{n}.mp4" for kind in ("cat", "dog") for n in range(30)))
    lengths.update({f"cat/{n}.mp4": 60.0 for n in range(5)})
    os.link(root / "cat" / "0.mp4", root / "dog" / "hard.mp4")
    (root / "dog" / "soft.mp4").symlink_to(root / "cat" / "0.mp4")
    (root / "dog" / "copy.mp4").write_bytes((root / "cat" / "0.mp4").read_bytes())

    def sides(**options) -> tuple[set[str], set[str]]:
        lists = [folder(root, split, **options) for split in ("train", "test")]
        assert lists[0].classes == lists[1].classes == ["cat", "dog"]
        train, test = ({clip.video_id for clip in clips.clips} for clips in lists)
        assert not train & test
        return tuple({clip.path.removeprefix(f"{root}/") for clip in clips.clips} for clips in lists)  # type: ignore

    train, test = sides()
    same = {"cat/0.mp4", "dog/hard.mp4", "dog/soft.mp4", "dog/copy.mp4"}
    assert same <= train or same <= test
    assert 5 <= len(test) <= 22
    assert sides() == (train, test)
    assert sides(split_seed=1)[1] != test
    files(root, *(f"cat/new {n}.mp4" for n in range(10)))
    (root / "dog" / "1.mp4").rename(root / "cat" / "renamed.mp4")
    more_train, more_test = sides()
    assert test - {"dog/1.mp4"} <= more_test
    assert train - {"dog/1.mp4"} <= more_train
    assert ("cat/renamed.mp4" in more_test) == ("dog/1.mp4" in test)
    held = folder(root, "train").held_out(0.2, seed=0)
    rest, out = ({clip.video_id for clip in clips.clips} for clips in held)
    assert rest
    assert out
    assert not rest & out
    assert not out & {clip.video_id for clip in folder(root, "test").clips}


@pytest.mark.parametrize("seed", range(20))
def test_each_class_of_two_videos_has_one_on_either_side(seed: int) -> None:
    classes = {f"{name}{n}": [name] for name, count in (("a", 2), ("b", 3), ("c", 1), ("d", 9)) for n in range(count)}
    found = held_out_videos(classes, 0.2, seed, classes)
    for name in "abd":
        members = {key for key in classes if key[0] == name}
        assert members & found
        assert members - found
    assert held_out_videos(classes, 0.0, seed, classes) == set()
    usable = classes.keys() - {"b0", "b1"}
    assert "b2" not in held_out_videos({key: classes[key] for key in ("b0", "b1", "b2")}, 1e-9, seed, usable)


def test_a_hold_out_of_few_videos_is_neither_empty_nor_all() -> None:
    clips = [Clip(f"{n}", "", video=f"v{n // 2}") for n in range(8)]
    for share in (0.001, 0.999):
        rest, out = ClipList("train", clips, []).held_out(share, seed=0)
        assert len(rest) + len(out) == 8
        assert len(rest) >= 2
        assert len(out) >= 2
    assert len(ClipList("train", clips, []).held_out(0.0, 0)[1]) == 0


# ---- durations


def test_durations_are_those_of_the_packets_whatever_the_header_claims(tmp_path: Path) -> None:
    """A file that a browser recorded has no duration in its header; a download that was cut off keeps the whole one."""
    whole = write_long(tmp_path / "whole.mkv", write(tmp_path / "s.mkv", seconds=2.0), 2.0, 3)
    content = whole.read_bytes()
    at = content.index(b"\x44\x89\x88")  # Matroska's Duration, a float64 in ms
    claims = {f"{ms:g}": content[at : at + 3] + np.array(ms, ">f8").tobytes() for ms in (2e3, 12e3, 5e6, 9e7, np.nan)}
    for name, duration in {**claims, "unknown": b"\xec\x89" + bytes(9)}.items():  # Void
        (tmp_path / f"{name}.mkv").write_bytes(content[:at] + duration + content[at + 11 :])
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    for name in ("whole", "unknown", "cut", *claims):
        found = look_into(video_at(f"{name}.mkv", tmp_path / f"{name}.mkv"), str(tmp_path))
        assert (found.status, found.detail) == ("ok", ""), name
        assert found.seconds == pytest.approx(4.0 if name == "cut" else 6.0, abs=0.3 if name == "cut" else 0.1), name


def test_what_cannot_be_used_is_named_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And found out once, until a file changes."""
    monkeypatch.setattr(kept, "can_start_processes", lambda: False)  # which takes seconds; test-full has them
    write(tmp_path / "good.mp4", seconds=1.0)
    write(tmp_path / "mute.mp4", seconds=1.0, sound=False)
    (tmp_path / "broken.webm").write_bytes(bytes(500))
    (tmp_path / "empty.mov").touch()
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.mkv")
    found = folder(tmp_path, "all")
    assert [clip.id for clip in found.clips] == ["good.mp4@0-end"]
    assert {clip.id: why for clip, why in found.excluded} == {
        "broken.webm@0-end": "undecodable",
        "empty.mov@0-end": "truncated",
        "mute.mp4@0-end": "no_audio",
        "pipe.mkv@0-end": "undecodable",
    }
    assert [clip.id for clip in found.missing] == ["gone.mp4@0-end"]
    assert found.details["mute.mp4@0-end"] == "the file has no audio stream"
    assert (len(found), found.listed) == (1, 6)
    assert any(note.startswith("5 videos of 6 cannot be used: broken.webm (undecodable") for note in found.notes)
    opened: list[str] = []

    def watch(root, videos):
        opened.extend(video.path for video in videos)
        return iter(())

    monkeypatch.setattr(kept, "_open", watch)
    assert folder(tmp_path, "all").excluded == found.excluded
    assert opened == []
    os.utime(tmp_path / "good.mp4", (1, 1))
    with pytest.raises(KeyError):
        folder(tmp_path, "all")
    assert opened == ["good.mp4"]


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes would: its files are opened in its own process."""
    write(tmp_path / "a.mp4", seconds=1.0)
    script = tmp_path / "mine.py"
    script.write_text("import deepavfusion\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(kept, "call_apart", lambda *_: pytest.fail("started processes"))
    assert len(folder(tmp_path, "all")) == 1
    script.write_text("if __name__ == '__main__':\n    pass\n")
    assert kept.can_start_processes()


def fake(videos):
    for video in videos:
        yield video, Known(12.5, "0123456789abcdef", "ok")


HOSTILE = {
    "garbage": b"\x00\xff\xfe garbage",
    "other": b"path,label\r\na.mp4,x\r\n",
    "long": None,
    "huge": b"path,bytes,modified,seconds,content,status,detail\na.mp4,{size},{modified},1e300,0123456789abcdef,ok,\n",
    "nan": b"path,bytes,modified,seconds,content,status,detail\na.mp4,{size},{modified},nan,0123456789abcdef,ok,\n",
    "word": b"path,bytes,modified,seconds,content,status,detail\na.mp4,{size},{modified},1,0123456789abcdef,evil,\n",
    "more": b"path,bytes,modified,seconds,content,status,detail\na.mp4,{size},{modified},1,0123456789abcdef,ok,,,\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_of_durations_that_is_damaged_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = files(tmp_path, "a.mp4").joinpath("a.mp4").stat()
    text = HOSTILE[kind] or b"x" * 2**21
    text = text.replace(b"{size}", b"%d" % status.st_size).replace(b"{modified}", b"%d" % status.st_mtime_ns)
    place = tmp_path / kept.NAME
    place.write_bytes(text)
    monkeypatch.setattr(kept, "_open", lambda root, videos: fake(videos))
    assert [clip.end for clip in folder(tmp_path, "all").clips] == [None]
    assert "is made anew" in capsys.readouterr().out
    assert place.read_text().splitlines()[1].endswith(",12.5,0123456789abcdef,ok,")
    assert sorted(path.name for path in tmp_path.iterdir()) == [kept.NAME, "a.mp4"]
    folder(tmp_path, "all")
    assert "is made anew" not in capsys.readouterr().out


def test_what_cannot_be_read_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a lock on a file nor a process that hung changes its size and time."""
    root = files(tmp_path / "root", "locked.mp4", "hung.mp4", "good.mp4")
    opened: list[list[str]] = []

    def look(root, videos):
        opened.append(sorted(video.path for video in videos))
        for video, known in fake(videos):
            yield video, Known(0.0, "", "hung", "") if video.path == "hung.mp4" else known

    monkeypatch.setattr(kept, "_open", look)
    monkeypatch.setattr(kept, "_is_readable", lambda root, video: video.path != "locked.mp4")
    monkeypatch.setattr(kept, "look_into", lambda video, root: Known(0.0, "", "undecodable", "locked"))
    for _ in "train", "test":  # within a process, once
        found = folder(root, "all")
        assert {clip.id: status for clip, status in found.excluded} == {
            "hung.mp4@0-end": "hung",
            "locked.mp4@0-end": "undecodable",
        }
    assert opened == [["good.mp4", "hung.mp4"]]
    assert len((root / kept.NAME).read_text().splitlines()) == 2
    monkeypatch.setattr(kept, "_is_readable", lambda root, video: True)
    monkeypatch.setattr(kept, "_unwritten", {})
    folder(root, "all")
    assert opened[1:] == [["hung.mp4", "locked.mp4"]]


def test_a_table_of_a_few_videos_leaves_what_is_kept_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = files(tmp_path, "a.mp4", "b.mp4", "gone.mp4")
    opened: list[str] = []

    def look(root, videos):
        opened.extend(video.path for video in videos)
        return fake(videos)

    monkeypatch.setattr(kept, "_open", look)
    folder(root, "all")
    files(root, "new.mp4")
    (root / "gone.mp4").unlink()
    table(root, "path\nnew.mp4\n")
    folder(root, "all")
    folder(root, "all", annotations="none")
    assert opened == ["a.mp4", "b.mp4", "gone.mp4", "new.mp4"]
    assert "gone" not in (root / kept.NAME).read_text()


def test_where_nothing_can_be_kept_files_are_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, calls = files(tmp_path, "a.mp4"), []
    monkeypatch.setattr(kept, "_open", lambda root, videos: calls.append(1) or fake(videos))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_csv", full)
    assert len(folder(root, "all")) == len(folder(root, "all")) == len(calls) == 1
    assert capsys.readouterr().out.count("cannot be kept") == 1


def test_a_link_in_place_of_the_durations_is_replaced_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    root = files(tmp_path / "root", "a.mp4")
    (root / kept.NAME).symlink_to(victim)
    monkeypatch.setattr(kept, "_open", lambda root, videos: fake(videos))
    folder(root, "all")
    assert victim.read_text() == "precious"
    assert not (root / kept.NAME).is_symlink()


def test_where_the_folder_cannot_be_written_to_durations_lie_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = files(tmp_path / "root", "a.mp4")
    (root / kept.NAME).mkdir()  # as root may write anywhere
    (root / kept.NAME / "x").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    calls: list[int] = []

    def counted(root, videos):
        calls.append(len(videos))
        return fake(videos)

    monkeypatch.setattr(kept, "_open", counted)
    assert len(folder(root, "all")) == len(folder(root, "all")) == 1
    assert calls == [1]
    (cached,) = (tmp_path / "home").rglob("*.csv")
    assert cached.read_text().count("a.mp4") == 1


@pytest.mark.full
def test_ten_thousand_files_start_in_seconds_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, *(f"{n % 100:03}/{n:05}.mp4" for n in range(10_000)))
    monkeypatch.setattr(
        kept, "_open", lambda root, videos: ((v, Known(12.5, f"{n:016x}", "ok")) for n, v in enumerate(videos))
    )
    folder(tmp_path, "train")
    monkeypatch.setattr(kept, "_open", lambda root, videos: pytest.fail("opened again"))
    data = instantiate(compose("data=folder", f"data.root={tmp_path}").data)
    began = time.process_time()
    data.setup("fit")
    assert time.process_time() - began < 5
    assert len(data.lists["train"]) + len(data.lists["test"]) == 10_000


# ---- names


def test_ids_are_unique_and_printable_whatever_the_names(tmp_path: Path, lengths: dict[str, float]) -> None:
    strange = os.fsdecode(b"\xff\xfe.mp4")
    root = files(tmp_path, "é.mp4", "e\u0301.mp4", strange, "new\nline.mp4", "\x1b[31m.mp4", "=1+1.mp4")
    found = folder(root, "all")
    ids = [clip.id for clip in found.clips]
    assert len(set(ids)) == 6
    assert all(each.isprintable() for each in ids)
    assert {"é.mp4@0-end", "é.mp4 (2)@0-end", "\\xff\\xfe.mp4@0-end", "new\\nline.mp4@0-end"} <= set(ids)
    assert all(os.path.exists(clip.path) for clip in found.clips)


def test_the_folder_of_the_readme_has_what_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small: an hour is 360 windows of one video, all on one side."""
    monkeypatch.setattr(kept, "can_start_processes", lambda: False)  # which takes seconds
    root = make_folder(tmp_path, each=4, kinds=("cats", "größe"), long=12)
    train, test = folder(root, "train"), folder(root, "test")
    windows_of = [
        clip for clips in (train, test) for clip in clips.clips if "with blanks 1" in clip.id and "cats" in clip.id
    ]
    assert len(windows_of) == 12
    assert len({clip.video_id for clip in windows_of}) == 1
    assert not {clip.video_id for clip in train.clips} & {clip.video_id for clip in test.clips}
    assert train.listed + test.listed == 8 + 11
    assert [why for clips in (train, test) for _, why in clips.excluded] == ["no_audio"]


def test_what_holds_for_every_split_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    one = ClipList("train", [Clip("a", "a.mp4")], [], notes=["1 file is not a video.", "no class."])
    say_lists([one, ClipList("test", [], [], notes=["1 file is not a video."])])
    assert capsys.readouterr().out.splitlines() == [
        "data: 1 file is not a video.",
        "train: no class.",
        "train: 1 of 1 clips of the train split are on disk",
        "test: the test split lists no clip",
    ]


def test_a_list_of_which_nothing_is_there_says_what_to_correct(lengths: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "videos.csv").write_text("path\ngone.mp4\n")
    (tmp_path / "here.mp4").touch()
    said = refusal(folder, tmp_path, "all")
    assert "holds here.mp4, videos.csv; correct the paths in the CSV file" in said
    assert "demo" not in said
