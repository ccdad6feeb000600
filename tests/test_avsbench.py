"""The AVSBench reader: subsets, annotated frames, joined names, and its messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepavfusion.data.lists.avsbench import avsbench, names_in
from helpers.errors import refusal

NAMES = {"background": 0, "man": 1, "emergency-car": 2, "steel_guitar": 3, "guitar": 4}
HEADER = "vid,uid,s_min,s_sec,a_obj,split,label\n"
METADATA = (
    HEADER
    + """\
-aaaaaaaaaa,-aaaaaaaaaa_1000_6000,0,1,man,train,v1s
bbbbbbbbbbb,bbbbbbbbbbb_0_5000,0,0,guitar,train,v1s
ccccccccccc,ccccccccccc_0_5000,0,0,emergency-car,val,v1s
ddddddddddd,ddddddddddd_0_5000,0,0,steel_guitar_man,train,v1m
eeeeeeeeeee,eeeeeeeeeee_0_10000,0,0,guitar_man_emergency-car,train,v2
fffffffffff,fffffffffff_0_10000,0,0,guitar,test,v2
"""
)
A, B, C = "v1s/-aaaaaaaaaa_1000_6000", "v1s/bbbbbbbbbbb_0_5000", "v1s/ccccccccccc_0_5000"
D, E, F = "v1m/ddddddddddd_0_5000", "v2/eeeeeeeeeee_0_10000", "v2/fffffffffff_0_10000"
MASKS = {A: 1, B: 1, C: 5, D: 5, E: 10, F: 10}


def make(root: Path, metadata: str = METADATA, names: object = NAMES, masks: dict[str, int] = MASKS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.csv").write_bytes(metadata.encode())
    (root / "label2idx.json").write_text(names if isinstance(names, str) else json.dumps(names))
    for clip, count in masks.items():
        for folder, suffix, files in (
            ("frames", "jpg", 10 if clip.startswith("v2") else 5),
            ("labels_semantic", "png", count),
        ):
            (root / clip / folder).mkdir(parents=True)
            for n in range(files):
                (root / clip / folder / f"{n}.{suffix}").touch()
        (root / clip / "audio.wav").touch()
    return root


def message(root: Path, split: str = "train", subset: str = "s4", **options: str) -> str:
    return refusal(avsbench, root, split, subset, **options)


def test_s4(tmp_path: Path) -> None:
    train = avsbench(make(tmp_path), "train", "s4", train_frames="first")
    assert train.classes == ["background", "man", "emergency-car", "steel_guitar", "guitar"]
    assert [(c.id, c.video, c.label, c.labels, c.frames) for c in train.clips] == [
        ("v1s_-aaaaaaaaaa_1000_6000", "-aaaaaaaaaa", 1, (1,), (0,)),
        ("v1s_bbbbbbbbbbb_0_5000", "bbbbbbbbbbb", 4, (4,), (0,)),
    ]
    assert [clip.path for clip in train.clips] == [str(tmp_path / A), str(tmp_path / B)]
    val = avsbench(tmp_path, "val", "s4", train_frames="first")
    assert [(clip.label, clip.frames) for clip in val.clips] == [(2, (0, 1, 2, 3, 4))]
    assert train.missing == val.missing == train.notes == val.notes == []
    assert not train.multi_label
    test = avsbench(tmp_path, "test", "s4")
    assert (test.listed, test.classes) == (0, train.classes)


def test_ms3_and_avss(tmp_path: Path) -> None:
    ms3 = avsbench(make(tmp_path), "train", "ms3")
    assert [(c.id, c.label, c.labels, c.frames) for c in ms3.clips] == [
        ("v1m_ddddddddddd_0_5000", 3, (1, 3), (0, 1, 2, 3, 4))
    ]
    avss = avsbench(tmp_path, "train", "avss")
    assert [(Path(c.path).relative_to(tmp_path).as_posix(), c.labels, len(c.frames)) for c in avss.clips] == [
        (D, (1, 3), 5),
        (A, (1,), 1),
        (B, (4,), 1),
        (E, (1, 2, 4), 10),
    ]
    assert avss.clips[3].label == 4
    assert ms3.multi_label
    assert avss.multi_label
    assert ms3.notes == avss.notes == []
    assert [len(clip.frames) for clip in avsbench(tmp_path, "train", "avss", train_frames="first").clips] == [1] * 4


def test_all_the_masks_of_training(tmp_path: Path) -> None:
    make(tmp_path, masks=MASKS | {A: 5})
    assert [clip.frames for clip in avsbench(tmp_path, "train", "s4", train_frames="all").clips] == [
        (0, 1, 2, 3, 4),
        (0,),
    ]


def test_incomplete_folders(tmp_path: Path) -> None:
    clips = [f"v1m/{letter * 11}_0_5000" for letter in "ghijklm"]
    rows = "".join(f"{clip[4:15]},{clip[4:]},0,0,man,val,v1m\n" for clip in clips)
    make(tmp_path, METADATA + rows, masks=dict.fromkeys(clips[:-1], 5))
    whole, mute, also_mute, blind, bare, partial = (tmp_path / clip for clip in clips[:-1])
    for folder in (mute, also_mute):
        (folder / "audio.wav").unlink()
    for file in (blind / "frames").iterdir():
        file.unlink()
    for file in (bare / "labels_semantic").iterdir():
        file.unlink()
    (partial / "labels_semantic/1.png").unlink()
    (partial / "frames/4.jpg").unlink()
    for name in ("00.png", "-1.png", "x.png", "7.PNG", "².png", "3.png.tmp"):
        (partial / "labels_semantic" / name).touch()
    (partial / "frames/7.jpg").touch()
    found = avsbench(tmp_path, "val", "ms3")
    assert [(clip.path, clip.frames) for clip in found.clips] == [
        (str(whole), (0, 1, 2, 3, 4)),
        (str(partial), (0, 2, 3)),
    ]
    assert [Path(clip.path).name[0] for clip in found.missing] == ["h", "i", "j", "k", "m"]
    assert [(clip.labels, clip.frames) for clip in found.missing] == [((1,), (0, 1, 2, 3, 4))] * 5  # as published
    assert found.lost_frames == 2  # of the partial one
    assert found.notes == [
        f"1 clip has fewer images with masks than published (5, in v2 10) in the val split, e.g. {clips[5]}.",
        f"2 clips have no audio.wav (counted as missing) in the val split, e.g. {clips[1]}.",
        f"1 clip has no images in frames (counted as missing) in the val split, e.g. {clips[3]}.",
        f"1 clip has no masks in labels_semantic (counted as missing) in the val split, e.g. {clips[4]}.",
    ]
    assert found.coverage == "2 of 7 clips of the val split are on disk"


def test_the_first_picture_has_no_mask(tmp_path: Path) -> None:
    make(tmp_path, masks=MASKS | {A: 2})
    (tmp_path / A / "labels_semantic/0.png").unlink()
    found = avsbench(tmp_path, "train", "s4", train_frames="first")
    assert [clip.video for clip in found.missing] == ["-aaaaaaaaaa"]
    assert found.notes == [f"1 clip has no mask of an image in use (counted as missing) in the train split, e.g. {A}."]
    assert avsbench(tmp_path, "train", "s4", train_frames="all").clips[0].frames == (1,)


def test_names_that_hold_the_joint_themselves() -> None:
    names = ["guitar", "steel_guitar", "steel", "man", "a", "a_b", "b_c", "c"]
    assert names_in("man", names) == ("man",)
    assert names_in("man_guitar_man", names) == ("man", "guitar", "man")
    assert names_in("steel_guitar_man", names) == ("steel_guitar", "man")  # the fewest
    assert names_in("guitar_steel", names) == ("guitar", "steel")
    assert names_in("a_b_c", names) is None  # a_b + c or a + b_c
    for text in ("", "_", "man_", "_man", "man__guitar", "woman", "man guitar", "man_woman"):
        assert names_in(text, names) is None
    assert names_in("_".join(["a"] * 60), names) == ("a",) * 60
    assert names_in("_".join(["a_b_c"] * 60), names) is None


@pytest.mark.parametrize(
    ("a_obj", "hint"),
    [("gitar", "did you mean 'guitar'?"), ("man_gitar", "did you mean 'guitar'?"), ("", "line"), ("man__man", "line")],
)
def test_an_object_without_a_name(tmp_path: Path, a_obj: str, hint: str) -> None:
    make(tmp_path, METADATA + f"ggggggggggg,ggggggggggg_0_5000,0,0,{a_obj},val,v1s\n")
    text = message(tmp_path)
    assert f"{tmp_path / 'metadata.csv'}, line 8, has the a_obj {a_obj!r}" in text
    assert "data.index.label2idx" in text
    assert hint in text
    assert len(avsbench(tmp_path, "train", "ms3").clips) == 1  # the line of another subset


def test_names_that_are_numbered_from_one(tmp_path: Path) -> None:
    found = avsbench(make(tmp_path, names={name: n + 1 for name, n in NAMES.items()}), "train", "ms3")
    assert found.classes == list(NAMES)
    assert found.clips[0].labels == (1, 3)
    assert found.notes == ["label2idx.json begins with 1, 'background'; class indices begin with 0 and are one less."]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"background": 0, "man": 2}, "does not number its names one by one"),
        ({"background": 2, "man": 3}, "does not number its names one by one"),
        ({"background": 0, "man": 0}, "does not number its names one by one"),
        ({"background": 0, "man": "1"}, "does not number its names one by one"),
        ({"background": False, "man": True}, "does not number its names one by one"),
        ({"background": 0, "man": 1.0}, "does not number its names one by one"),
        ({}, "does not number its names one by one"),
        ([], "does not number its names one by one"),
        ('{"background": 0, "man": 1, "man": 2}', "has the key 'man' twice"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_bad_names(tmp_path: Path, names: object, sentence: str) -> None:
    text = message(make(tmp_path, names=names))
    assert str(tmp_path / "label2idx.json") in text
    assert sentence in text


@pytest.mark.parametrize(
    "line",
    [
        "ggggggggggg,ggggggggggg_0_5000,0,0,man,training,v1s",
        "ggggggggggg,ggggggggggg_0_5000,0,0,man,train,v3",
        "ggggggggggg,ggggggggggg_0_5000,0,0,man,train",
        "ggggggggggg,ggggggggggg_0_5000,0,0,man,train,v1s,",
        "ggggggggggg,../ggggggggggg,0,0,man,train,v1s",
        "ggggggggggg,..,0,0,man,train,v1s",
        "ggggggggggg,,0,0,man,train,v1s",
        "../ggggggggggg,ggggggggggg_0_5000,0,0,man,train,v1s",
        'ggggggggggg,"ggggggggggg_0_5000,0,0,man,train,v1s',
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    text = message(make(tmp_path, METADATA + line + "\n"))
    assert f"{tmp_path / 'metadata.csv'}, line 8" in text
    assert "fix the line" in text


def test_columns_go_by_their_names(tmp_path: Path) -> None:
    rows = [line.split(",") for line in METADATA.splitlines()]
    shuffled = "\ufeff" + "".join(",".join([*reversed(row), "more"]) + "\r\n" for row in rows)
    assert [clip.video for clip in avsbench(make(tmp_path, shuffled), "train", "s4").clips] == [
        "-aaaaaaaaaa",
        "bbbbbbbbbbb",
    ]
    (tmp_path / "metadata.csv").write_text(METADATA.removeprefix(HEADER))
    text = message(tmp_path)
    assert f"{tmp_path / 'metadata.csv'}, line 1" in text
    assert "data.index.metadata" in text


def test_repeated_lines(tmp_path: Path) -> None:
    again = METADATA.splitlines(True)[1]
    found = avsbench(make(tmp_path, METADATA + again + again.replace("train", "val")), "train", "s4")
    assert found.listed == 2
    assert found.notes == [
        "metadata.csv lists 2 clips more than once, e.g. v1s_-aaaaaaaaaa_1000_6000 in lines 2 and 8; the first line "
        "counts.",
        "metadata.csv gives 1 clip different sources or splits, e.g. v1s_-aaaaaaaaaa_1000_6000 in lines 2 and 9; the "
        "first line counts.",
    ]


def test_strangers_on_disk(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "v1s/unlisted").mkdir()
    assert avsbench(tmp_path, "train", "s4").notes == ["1 folder on disk is not in metadata.csv, e.g. v1s/unlisted."]
    assert avsbench(tmp_path, "train", "ms3").notes == []


def test_missing_root_and_files(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist" in message(tmp_path / "gone")
    text = message(tmp_path)
    assert f"{tmp_path / 'label2idx.json'} does not exist" in text
    assert "data.index.label2idx" in text
    (make(tmp_path) / "metadata.csv").unlink()
    text = message(tmp_path)
    assert f"{tmp_path / 'metadata.csv'} does not exist" in text
    assert "data.index.metadata" in text
    assert "There is no split of AVSBench 'holdout'" in message(tmp_path, "holdout")
    assert "There is no subset of AVSBench 's5'; expected one of s4, ms3, avss: set data.index.subset" in message(
        tmp_path, subset="s5"
    )
    assert "data.index.train_frames" in message(tmp_path, train_frames="one")
    (tmp_path / "metadata.csv").write_text(METADATA)
    assert "leaves the data folder" in message(tmp_path, clip_pattern="../{uid}")
    assert "expected the fields uid, label and vid" in message(tmp_path, clip_pattern="{id}")
    assert "leaves the data folder" in message(tmp_path, metadata="../metadata.csv")


def test_nothing_on_disk(tmp_path: Path) -> None:
    text = message(make(tmp_path, masks={D: 5}), "train", "s4")
    assert "None of the 2 clips of the train split is on disk" in text
    assert f"expected for example {tmp_path / A}" in text
    assert "holds label2idx.json, metadata.csv, v1m" in text
