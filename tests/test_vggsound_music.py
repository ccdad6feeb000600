"""The VGGSound-Music reader: two lists with other spellings, fixed pairs, and what it tells a person."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.data.lists.vggsound_music import instrument, vggsound_music
from helpers.errors import refusal

TRAIN = """\
-G-wKyj6JQ1_000030,violin
a_b-c_d_e_f_000007,steel_guitar
zzzzzzzzzzz_000254,piano
"""
HEADER = "source_1,source_2,class_1,class_2,sep_type\n"
TEST = (
    HEADER
    + """\
-est-violin_000001,test--piano_000002,"violin,_fiddle",piano,Easy
test--piano_000002,test_steel__000364,piano,"steel_guitar,_slide_guitar",Easy
test_piano2_000005,test--piano_000002,piano,piano,Hard
"""
)
TRAIN_FILES = (
    "playing_violin__fiddle/-G-wKyj6JQ1_000030_000040.mp4",
    "playing_steel_guitar__slide_guitar/a_b-c_d_e_f_000007_000017.mp4",
    "playing_piano/zzzzzzzzzzz_000254_000264.mp4",
)
TEST_FILES = (
    "playing_violin__fiddle/-est-violin_000001_000011.mp4",
    "playing_piano/test--piano_000002_000012.mp4",
    "playing_steel_guitar__slide_guitar/test_steel__000364_000374.mp4",
)


def make(root: Path, on_disk: tuple[str, ...] = TRAIN_FILES + TEST_FILES, train: str = TRAIN, test: str = TEST) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "vggmusic_train.txt").write_bytes(train.encode())
    (root / "annotations" / "vggmusic_eval_ss.csv").write_bytes(test.encode())
    for name in on_disk:
        path = root / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def message(root: Path, split: str = "train", **options: str) -> str:
    return refusal(vggsound_music, root, split, **options)


@pytest.fixture
def real_lists(tmp_path: Path) -> Path:
    """A data folder with the published lists, where they lie beside the repository; they are never committed."""
    folder = REPOSITORY.parent / "shared" / "metadata"
    if not (folder / "vggmusic_train.txt").is_file():
        pytest.skip("no lists of VGGSound-Music beside the repository")
    os.symlink(folder, tmp_path / "annotations")
    return tmp_path


def test_train_clips_and_classes(tmp_path: Path) -> None:
    found = vggsound_music(make(tmp_path), "train")
    assert found.classes == ["piano", "steel_guitar", "violin"]
    assert [(clip.id, clip.label, clip.video) for clip in found.clips] == [
        ("-G-wKyj6JQ1_000030", 2, "-G-wKyj6JQ1"),
        ("a_b-c_d_e_f_000007", 1, "a_b-c_d_e_f"),
        ("zzzzzzzzzzz_000254", 0, "zzzzzzzzzzz"),
    ]
    assert [clip.path for clip in found.clips] == [str(tmp_path / "clips" / name) for name in TRAIN_FILES]
    assert (found.missing, found.mixtures, found.notes, found.multi_label) == ([], [], [], False)


def test_test_clips_stand_once_and_pairs_are_never_filtered(tmp_path: Path) -> None:
    found = vggsound_music(make(tmp_path), "test")
    assert found.classes == ["piano", "steel_guitar", "violin"]
    assert [(clip.id, clip.label) for clip in found.clips] == [
        ("-est-violin_000001", 2),
        ("test--piano_000002", 0),
        ("test_steel__000364", 1),
    ]
    assert [(clip.id, clip.path) for clip in found.missing] == [
        ("test_piano2_000005", str(tmp_path / "clips/playing_piano/test_piano2_000005_000015.mp4"))
    ]
    assert found.mixtures == [
        ("-est-violin_000001", "test--piano_000002"),
        ("test--piano_000002", "test_steel__000364"),
        ("test_piano2_000005", "test--piano_000002"),
    ]
    assert (found.listed, found.notes) == (4, [])


def test_one_class_however_it_is_written() -> None:
    names = ["violin", "violin,_fiddle", "violin, fiddle", "violin__fiddle", "steel_guitar,_slide_guitar", "drum_kit"]
    assert [instrument(name) for name in names] == ["violin"] * 4 + ["steel_guitar", "drum_kit"]


def test_the_published_lists(real_lists: Path) -> None:
    on_disk = ("playing_harpsichord/--G-wKyj6JQ_000030_000040.mp4", "playing_bass_drum/JIemsK_0lXc_000364_000374.mp4")
    for name in on_disk:
        (real_lists / "clips" / name).parent.mkdir(parents=True)
        (real_lists / "clips" / name).touch()
    train, test = vggsound_music(real_lists, "train"), vggsound_music(real_lists, "test")
    assert (train.listed, test.listed, len(test.mixtures)) == (38704, 1201, 1201)
    assert train.classes == test.classes
    assert len(train.classes) == 49
    assert train.notes == test.notes == []  # no class in one list only, no clip in both
    assert [clip.id for clip in train.clips] == ["--G-wKyj6JQ_000030"]
    assert [clip.id for clip in test.clips] == ["JIemsK_0lXc_000364"]
    assert test.mixtures[0] == ("JIemsK_0lXc_000364", "D9qpDjafWRM_000030")
    label = {clip.id: clip.label for clip in test.clips + test.missing}
    assert sum(label[first] == label[second] for first, second in test.mixtures) == 291
    folders = {Path(clip.path).parent.name for clip in test.missing}
    assert {"playing_violin__fiddle", "playing_steel_guitar__slide_guitar"} <= folders
    for found in (train, test):
        used = Counter(clip.label for clip in found.clips + found.missing)
        assert set(used) == set(range(49))
    videos = {clip.video_id for clip in train.missing} & {clip.video_id for clip in test.missing}
    assert len(videos) == 27  # as published; config and README say so


def test_repeated_lines_and_lists_at_odds(tmp_path: Path) -> None:
    train = TRAIN + "zzzzzzzzzzz_000254,piano\nzzzzzzzzzzz_254,violin\ntest_steel__000364,steel_guitar\n"
    test = TEST + TEST.splitlines()[1] + "\n" + "test_steel__000364,-est-violin_000001,harp,piano,Easy\n"
    found = vggsound_music(make(tmp_path, train=train, test=test), "test")
    assert [(clip.id, clip.label) for clip in found.clips] == [
        ("-est-violin_000001", 2),
        ("test--piano_000002", 0),
        ("test_steel__000364", 1),
    ]
    assert len(found.mixtures) == 5
    assert found.mixtures[3] == found.mixtures[0]
    assert found.notes == [
        "annotations/vggmusic_train.txt lists 2 clips more than once, e.g. zzzzzzzzzzz_000254 in lines 3 and 4; the "
        "first line counts.",
        "annotations/vggmusic_train.txt gives 1 clip different instruments, e.g. zzzzzzzzzzz_000254 in lines 3 and 5; "
        "the first line counts.",
        "annotations/vggmusic_eval_ss.csv gives 2 clips different classes, e.g. test_steel__000364 in lines 3 and 6; "
        "the first line counts.",
        "annotations/vggmusic_eval_ss.csv lists 1 pair more than once; all are kept.",
        "1 clip is in both lists, e.g. test_steel__000364; both are kept as they are.",
    ]


def test_a_class_of_one_list_only_is_kept_and_named(tmp_path: Path) -> None:
    found = vggsound_music(make(tmp_path, train=TRAIN + "bbbbbbbbbbb_000001,pianno\n"), "train")
    assert found.classes == ["pianno", "piano", "steel_guitar", "violin"]
    assert found.notes == [
        "annotations/vggmusic_train.txt has 1 class that annotations/vggmusic_eval_ss.csv lacks, e.g. 'pianno'; did "
        "you mean 'piano'?"
    ]


def test_strangers_on_disk(tmp_path: Path) -> None:
    strange = ("playing_violin/a.mp4", "playing_piano/new________000000_000010.mp4", "playing_piano/readme.txt")
    lists = "annotations/vggmusic_train.txt or annotations/vggmusic_eval_ss.csv"
    found = vggsound_music(make(tmp_path, TRAIN_FILES + TEST_FILES + strange), "train")
    assert found.notes == [
        f"clips/playing_violin matches no label of {lists}; its 1 clip is not used; did you mean "
        "'playing_violin__fiddle'?",
        f"1 clip on disk is not in {lists}.",
    ]
    rest = tuple(f"class_{n}/{n}.mp4" for n in range(6))  # the folder of all of VGGSound
    found = vggsound_music(make(tmp_path, rest), "train")
    assert found.notes[0] == f"7 folders match no label of {lists}, e.g. clips/class_0; their 7 clips are not used."


def test_a_pattern_that_lacks_a_field(tmp_path: Path) -> None:
    make(tmp_path, (), train=TRAIN + "zzzzzzzzzzz_000111,piano\n")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/zzzzzzzzzzz.mp4").touch()
    found = vggsound_music(tmp_path, "train", clip_pattern="flat/{id}.mp4")
    assert found.notes == [
        "1 clip has the same file as another clip of annotations/vggmusic_train.txt or "
        "annotations/vggmusic_eval_ss.csv; data.index.clip_pattern may lack a field."
    ]
    text = message(tmp_path, clip_pattern="clips/{folder}/{start}.mp4")
    assert "gives all clips the same path; expected the field id" in text
    assert "data.index.clip_pattern" in text


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    marked = {"train": "\ufeff" + TRAIN.replace("\n", "\r\n"), "test": "\ufeff" + TEST.replace("\n", "\r\n")}
    found = vggsound_music(make(tmp_path, **marked), "test")
    assert found.classes == ["piano", "steel_guitar", "violin"]
    assert len(found.mixtures) == 3


@pytest.mark.parametrize(
    "line",
    [
        "ccccccccccc_000001",
        "ccccccccccc,piano",
        "_000001,piano",
        "ccccccccccc_00000x,piano",
        "ccccccccccc_٠٠٠٠٠١,piano",
        "ccccccccccc_000001,violin,_fiddle",
        "../cccccccc_000001,piano",
        "ccccccccccc_000001,../piano",
        "ccccccccccc_000001,",
        "ccccccccccc_000001,a/b",
    ],
)
def test_bad_train_line_is_named(tmp_path: Path, line: str) -> None:
    text = message(make(tmp_path, train=TRAIN + line + "\n"), "test")
    assert f"{tmp_path / 'annotations/vggmusic_train.txt'}, line 4" in text
    assert "fix the line" in text


@pytest.mark.parametrize(
    "line",
    [
        "ccccccccccc_000001,ddddddddddd_000001,piano,piano",
        "ccccccccccc_000001,ddddddddddd_000001,violin,_fiddle,piano,Easy",
        "ccccccccccc_000001,ccccccccccc_000001,piano,piano,Hard",
        "ccccccccccc_000001,../d_000001,piano,piano,Hard",
        "ccccccccccc_000001,ddddddddddd,piano,piano,Hard",
    ],
)
def test_bad_pair_is_named(tmp_path: Path, line: str) -> None:
    text = message(make(tmp_path, test=TEST + line + "\n"))
    assert f"{tmp_path / 'annotations/vggmusic_eval_ss.csv'}, line 5" in text
    assert "fix the line" in text


def test_header_of_the_pairs(tmp_path: Path) -> None:
    text = message(make(tmp_path, test=TEST.removeprefix(HEADER)))
    assert "vggmusic_eval_ss.csv, line 1" in text
    assert "expected the header `source_1,source_2,class_1,class_2,sep_type`" in text
    assert "data.index.test_list" in text
    assert "line 1" in message(make(tmp_path, test=""))


def test_missing_root_and_lists(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist" in message(tmp_path / "gone")
    text = message(tmp_path)
    assert f"{tmp_path / 'annotations/vggmusic_train.txt'} does not exist" in text
    assert "data.index.split_dir" in text
    (make(tmp_path) / "annotations/vggmusic_eval_ss.csv").unlink()
    assert "vggmusic_eval_ss.csv does not exist" in message(tmp_path)
    assert "There is no split of VGGSound-Music 'val'" in message(tmp_path, "val")
    for outside in ("../lists", "/lists", "a/../../lists"):
        assert "leaves the data folder" in message(tmp_path, split_dir=outside)


def test_nothing_on_disk(tmp_path: Path) -> None:
    text = message(make(tmp_path, TRAIN_FILES), "test")
    assert "None of the 4 clips of the test split is on disk" in text
    assert f"expected for example {tmp_path / 'clips' / TEST_FILES[0]}" in text
    assert "data.root or data.index.clip_pattern" in text
