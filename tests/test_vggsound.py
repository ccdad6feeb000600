"""The VGGSound list reader: which clips, which classes, and what it tells a person."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.inference.video import open_video
from deepavfusion.utils.errors import UserError
from helpers.errors import refusal

LIST = """\
-abc_Def1xy,30,"playing violin, fiddle",train
zzzzzzzzzzz,5,dog barking,train
aaaaaaaaaaa,120,people (crowd) cheering,train
bbbbbbbbbbb,0,dog barking,test
"""


def make(root: Path, lines: str = LIST, on_disk: tuple[str, ...] = ()) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "vggsound.csv").write_bytes(lines.encode())
    for name in on_disk:
        path = root / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


VIOLIN = "playing_violin__fiddle/-abc_Def1xy_000030_000040.mp4"
DOG = "dog_barking/zzzzzzzzzzz_000005_000015.mp4"
CROWD = "people__crowd__cheering/aaaaaaaaaaa_000120_000130.mp4"
TEST_DOG = "dog_barking/bbbbbbbbbbb_000000_000010.mp4"


def message(root: Path, split: str = "train", **options: str) -> str:
    return refusal(vggsound, root, split, **options)


def test_clips_classes_and_coverage(tmp_path: Path) -> None:
    found = vggsound(make(tmp_path, on_disk=(VIOLIN, DOG, TEST_DOG)), "train")
    assert [clip.id for clip in found.clips] == ["-abc_Def1xy_000030", "zzzzzzzzzzz_000005"]
    assert found.classes == ["dog barking", "people (crowd) cheering", "playing violin, fiddle"]
    assert [clip.label for clip in found.clips] == [2, 0]
    assert [clip.path for clip in found.clips] == [str(tmp_path / "clips" / name) for name in (VIOLIN, DOG)]
    assert found.listed == 3
    assert [(clip.id, clip.path) for clip in found.missing] == [
        ("aaaaaaaaaaa_000120", str(tmp_path / "clips" / CROWD))  # its class keeps its place
    ]
    assert found.notes == []
    assert found.coverage == "2 of 3 clips of the train split are on disk"
    test = vggsound(tmp_path, "test")
    assert [(clip.id, clip.label) for clip in test.clips] == [("bbbbbbbbbbb_000000", 0)]
    assert test.classes == found.classes


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    plain = vggsound(make(tmp_path / "a", on_disk=(DOG,)), "train")
    windows = vggsound(make(tmp_path / "b", "\ufeff" + LIST.replace("\n", "\r\n") + "\r\n", (DOG,)), "train")
    assert windows.classes == plain.classes
    assert [clip.id for clip in windows.missing] == [clip.id for clip in plain.missing]
    assert [clip.id for clip in plain.missing] == ["-abc_Def1xy_000030", "aaaaaaaaaaa_000120"]


def test_other_layouts_of_the_clips(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "zzzzzzzzzzz_5.mp4").touch()
    found = vggsound(tmp_path, "train", clip_pattern="flat/{id}_{start}.mp4")
    assert [clip.path for clip in found.clips] == [str(tmp_path / "flat" / "zzzzzzzzzzz_5.mp4")]
    assert found.notes == []


def test_repeated_lines(tmp_path: Path) -> None:
    lines = LIST + "zzzzzzzzzzz,5,dog barking,train\n-abc_Def1xy,30,dog barking,test\n"
    found = vggsound(make(tmp_path, lines, (VIOLIN, DOG)), "train")
    assert found.listed == 3
    assert [clip.label for clip in found.clips] == [2, 0]
    assert found.notes == [
        "annotations/vggsound.csv lists 2 clips more than once, e.g. zzzzzzzzzzz_000005 in lines 2 and 5; "
        "the first line counts.",
        "annotations/vggsound.csv gives 1 clip different labels or splits, e.g. -abc_Def1xy_000030 in lines 1 and 6; "
        "the first line counts.",
    ]


def test_strangers_on_disk(tmp_path: Path) -> None:
    strange = ("dog_barkin/a.mp4", "dog_barkin/b.mp4", "dog_barking/new_000000_000010.mp4", "dog_barking/notes.txt")
    found = vggsound(make(tmp_path, on_disk=(DOG, *strange)), "train")
    assert found.notes == [
        "clips/dog_barkin matches no label of annotations/vggsound.csv; its 2 clips are not used; did you mean "
        "'dog_barking'?",
        "1 clip on disk is not in annotations/vggsound.csv.",
    ]


def test_empty_splits(tmp_path: Path) -> None:
    only_train = "".join(line for line in LIST.splitlines(True) if line.endswith("train\n"))
    test = vggsound(make(tmp_path / "a", only_train, (DOG,)), "test")
    assert (test.clips, test.listed, len(test.classes)) == ([], 0, 3)
    text = message(make(tmp_path / "b", "bbbbbbbbbbb,0,dog barking,test\n", (TEST_DOG,)))
    assert "vggsound.csv has no line of the train split" in text
    assert "data.index.annotations" in text


def test_missing_root_and_list(tmp_path: Path) -> None:
    text = message(tmp_path / "gone")
    assert f"{tmp_path / 'gone'} does not exist" in text
    assert "data.root" in text
    assert "python src/prepare.py command=demo" in text
    (tmp_path / "file").touch()
    assert "is a file" in message(tmp_path / "file")
    text = message(tmp_path)
    assert f"{tmp_path / 'annotations' / 'vggsound.csv'} does not exist" in text
    assert "id,start,label,train|test" in text
    assert "data.index.annotations" in text
    assert "validation" in message(tmp_path, "validation")


@pytest.mark.parametrize(
    "line",
    [
        "id,start,label,split",
        "ccccccccccc,7,dog barking",
        "ccccccccccc,7,playing violin, fiddle,train",
        "ccccccccccc,7.5,dog barking,train",
        "ccccccccccc,-7,dog barking,train",
        "ccccccccccc,7,dog barking,valid",
        "../ccccccccc,7,dog barking,train",
        "ccccccccccc,7,dogs/barking,train",
        "ccccccccccc,7,..,train",
        ",7,dog barking,train",
        'ccccccccccc,7,"dog" barking,train',
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    text = message(make(tmp_path, LIST + line + "\n", (DOG,)))
    assert f"{tmp_path / 'annotations' / 'vggsound.csv'}, line 5" in text
    assert "fix the line" in text


def test_nothing_on_disk(tmp_path: Path) -> None:
    make(tmp_path, on_disk=("train/dog_barking/a.mp4", "valid/dog_barking/a.mp4"))
    text = message(tmp_path)
    assert "None of the 3 clips of the train split is on disk" in text
    assert f"expected for example {tmp_path / 'clips' / VIOLIN}" in text
    assert "clips/ holds train, valid" in text
    assert "data.index.clip_pattern" in text
    assert "python src/prepare.py command=demo" in text


def test_bad_patterns(tmp_path: Path) -> None:
    make(tmp_path, on_disk=(DOG,))
    for pattern in ("clips/{folder}/{name}.mp4", "clips/{}.mp4", "clips/{id:d}.mp4", "clips/{id", "{id.x}.mp4"):
        text = message(tmp_path, clip_pattern=pattern)
        assert f"'{pattern}' cannot be filled in" in text
        assert "data.index.clip_pattern" in text
    for pattern in ("../{id}.mp4", "/clips/{id}.mp4"):
        assert "leaves the data folder" in message(tmp_path, clip_pattern=pattern)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "zz\u200bzzzzzzzz,5,dog barking,train",
            r"'clips/dog_barking/zz\\u200bzzzzzzzz_000005_.* SPACE",
        ),
        ("\ufeffzzzzzzzzzzz,5,dog barking,train", r"line 2, has .*\\ufeffzzzz.*ZERO WIDTH NO-BREAK SPACE"),
        ("zzzzz\xadzzzzzz,5,dog barking,train", r"line 2, has .*z\\xadz.*SOFT HYPHEN"),
        ("zzzzzzzzzzz,5,dog\xa0barking,train", r"line 2, has 'clips/dog\\xa0barking/.*NO-BREAK SPACE"),
        (
            "zzzzzzzzzzzz,5,dog barking,train",
            "line 2, has the id 'zzzzzzzzzzzz' of 12 characters, which",
        ),
        ("zzzzz zzzzz,5,dog barking,train", "line 2, has the id 'zzzzz zzzzz' of 11 characters"),
        ("zzzzzzzzzz,5,dog barking,train", "line 2, has the id 'zzzzzzzzzz' of 10 characters; .*lost a '-'"),
    ],
)
def test_ids_that_cannot_be_are_named(tmp_path: Path, line: str, words: str) -> None:
    first, *rest = (f"aaaaaaaaa{n:02},120,people (crowd) cheering,train" for n in range(9))
    root = make(tmp_path, "\n".join([first, line, *rest]), (CROWD.replace("aaa_", "a00_"), DOG))
    with pytest.raises(UserError, match=words):
        vggsound(root, "train")
    named = line.replace("barking,", "barking/").split(",")[0]
    label = line.split(",")[2].replace(" ", "_")
    (root / "clips" / label).mkdir(exist_ok=True)
    (root / "clips" / label / f"{named}_000005_000015.mp4").touch()
    assert len(vggsound(root, "train").clips) == 2  # whatever its name


def test_missing_clips_with_ids_of_ones_own_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path, "one,1,a dog,train\ntwo,1,a dog,train\n", ("a_dog/one_000001_000011.mp4",))
    assert vggsound(root, "train").notes == [
        "annotations/vggsound.csv has 1 id of missing clips that are none of YouTube's, e.g. 'two' in line 2."
    ]


@pytest.mark.parametrize(
    ("there", "path"),
    [
        ("Dog_barking/zzzzzzzzzzz_000005_000015.mp4", "clips/Dog_barking"),
        ("dog_barking/zzzzzzzzzzz_000005_000015.MP4", "clips/dog_barking/zzzzzzzzzzz_000005_000015.MP4"),
        ("dog_barking/zzzz\u200bzzzzzzz_000005_000015.mp4", r"clips/dog_barking/zzzz\\u200bzzz"),
    ],
)
def test_files_that_are_almost_there_are_named(tmp_path: Path, there: str, path: str) -> None:
    text = message(make(tmp_path / "none", on_disk=(there,)))
    assert re.search(f"; '.*/{path}.* is there, which differs only in case, .*; set data.root", text)
    root = make(tmp_path / "some", on_disk=(there, VIOLIN))
    found = vggsound(root, "train")
    assert re.search(f"^1 missing clip of the train split may be on disk; '.*/{path}.*; rename it", found.notes[-1])
    clip = next(clip.path for clip in found.missing if "zzz" in clip.id)
    with (
        pytest.raises(UserError, match=f"separated, missing: there is no such file; '.*/{path}.* from '"),
        open_video(clip, "separated"),
    ):
        pass


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_of_labels_have_one_form(tmp_path: Path, form: str) -> None:
    label, other = (unicodedata.normalize(each, "déjà vu") for each in (form, "NFC" if form == "NFD" else "NFD"))
    file = "zzzzzzzzzzz_000005_000015.mp4"
    lines = f"-abc_Def1xy,30,{label},train\nzzzzzzzzzzz,5,{{}},train\n"
    folder = other.replace(" ", "_")
    root = make(tmp_path / "a", lines.format(label), (f"{folder}/{file}",))
    assert f"/clips/{ascii(folder)[1:]} is there, which differs only in case, in the form of accents" in message(root)
    both = make(tmp_path / "b", lines.format(other), (f"{folder}/{file}",))
    assert re.search(r"the classes '.*' and '.*' of the lists .* differ only in the form of accents", message(both))
