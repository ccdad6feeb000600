"""Lists that a spreadsheet program has saved: refused with line and cause, or read as they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deepavfusion.data.lists.audioset import audioset
from deepavfusion.data.lists.avsbench import avsbench
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.lists.vggsound_music import vggsound_music
from deepavfusion.inference.inputs import read_input
from deepavfusion.utils.errors import UserError

FIELD = Path(__file__).parent / "field"
HEAD = "# Segments csv created\n# num_ytids=2\n# YTID, start_seconds, end_seconds, positive_labels\n"
ID, OTHER = "abcdefghijk", "-bcdefghijk"
LINE = f'{ID}, 30.000, 40.000, "/m/01,/m/02"\n'


def read_audioset(root: Path, content: str | bytes) -> ClipList:
    """The balanced list of this content, whose clips exist."""
    folder = root / "annotations"
    folder.mkdir()
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/01,Dog\n1,/m/02,Cat\n")
    written = content.encode() if isinstance(content, str) else content
    (folder / "balanced_train_segments.csv").write_bytes(written)
    for name in (ID, OTHER):
        (root / "clips" / name[:2]).mkdir(parents=True)
        (root / "clips" / name[:2] / f"{name}_000030_000040.mp4").touch()
    return audioset(root, "balanced")


def read_vggsound(root: Path, content: str | bytes) -> ClipList:
    """A list of this content, one of whose clips exists."""
    (root / "annotations").mkdir()
    written = content.encode() if isinstance(content, str) else content
    (root / "annotations" / "vggsound.csv").write_bytes(written)
    (root / "clips" / "a_dog").mkdir(parents=True)
    (root / "clips" / "a_dog" / f"{ID}_000030_000040.mp4").touch()
    return vggsound(root, "train")


DAMAGED = {  # line of a list -> the cause that is named
    '#NAME?,30,40,"/m/01"': "formula and left #NAME?",
    '#REF!,30,40,"/m/01"': "formula and left #REF!",
    '#BEZUG!,30,40,"/m/01"': "formula and left #BEZUG!",
    '########,30,40,"/m/01"': "formula and left ####",
    '1.23457E+11,30,40,"/m/01"': "number and left 1.23457E+11",
    '1E+10,30,40,"/m/01"': "number and left 1E+10",
    '"1,23E+11",30,40,"/m/01"': "number and left 1,23E+11",
    'May-12,30,40,"/m/01"': "date and left May-12",
    '12. Dez,30,40,"/m/01"': "date and left 12. Dez",
    '2012-05-01,30,40,"/m/01"': "date and left 2012-05-01",
    f'{ID},30. Jan,40,"/m/01"': "date and left 30. Jan",
    f"{ID};30;40;/m/01": "separated by semicolons",
    f"{ID}\t30\t40\t/m/01": "separated by tabs",
    f'"{ID},30,40,""/m/01"""': "the whole line is in double quotes",
    f"{ID},30,40,“/m/01,/m/02”": "typographic",
    f'#{ID},30,40,"/m/01"': "it begins with '#'",
    f'# {ID},30,40,"/m/01"': "it begins with '#'",
}


@pytest.mark.parametrize(("line", "cause"), DAMAGED.items())
def test_damage_is_named_with_its_line_and_cause(tmp_path: Path, line: str, cause: str) -> None:
    with pytest.raises(UserError) as error:
        read_audioset(tmp_path, f"{HEAD}{LINE}{line}\n")
    text = str(error.value)
    assert "balanced_train_segments.csv, line 5, reads `" in text
    assert cause in text
    assert "expected" in text


def test_the_list_that_excel_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 4, reads `#NAME\?,30,40,.*begins with '-' is lost"):
        read_audioset(tmp_path, (FIELD / "excel_ids.csv").read_bytes())


@pytest.mark.parametrize("lost", ["bcdefghijk", "12345678"])
def test_ids_that_lost_their_beginning(tmp_path: Path, lost: str) -> None:
    kept = "".join(f"abcdefghi{n:02},30,40,/m/01\n" for n in range(9))
    with pytest.raises(UserError, match=rf"line 13, has the id '{lost}' of .* 1 id lost a '-' or zeros"):
        read_audioset(tmp_path, f"{HEAD}{kept}{lost},30,40,/m/01\n")


def test_a_list_with_ids_of_its_own_is_read(tmp_path: Path) -> None:
    (tmp_path / "clips" / "a_dog").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "vggsound.csv").write_text("one,1,a dog,train\ntwo,1,a dog,train\n")
    (tmp_path / "clips" / "a_dog" / "one_000001_000011.mp4").touch()
    assert [clip.id for clip in vggsound(tmp_path, "train").clips] == ["one_000001"]


HARMLESS = {
    "byte-order mark": lambda text: text.encode("utf-8-sig"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n,,,\n").encode(),
    "quoted comments": lambda text: text.replace("# num_ytids=2", '"# num_ytids=2",,').encode(),
    "a line twice": lambda text: (text + LINE).encode(),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_only_looks_different_is_read(tmp_path: Path, change: Callable[[str], bytes]) -> None:
    found = read_audioset(tmp_path, change(f"{HEAD}{LINE}{OTHER}, 30.000, 40.000, /m/01\n"))
    assert [clip.id for clip in found.clips] == [f"{OTHER}_000030", f"{ID}_000030"]
    assert found.clips[1].labels == (0, 1)


ENCODINGS = {
    "UTF-16": ("utf-16", "csv is UTF-16 text"),
    "UTF-16 without a mark": ("utf-16-le", "csv is UTF-16 text"),
    "Latin-1": ("latin-1", "csv, line 2, is not UTF-8 text"),
}


@pytest.mark.parametrize(("encoding", "what"), ENCODINGS.values(), ids=ENCODINGS.keys())
def test_other_encodings_are_named(tmp_path: Path, encoding: str, what: str) -> None:
    text = f"{ID},30,a dog,train\n{OTHER},30,déjà vu,train\n"
    with pytest.raises(UserError, match=rf"{what}.*CSV UTF-8"):
        read_vggsound(tmp_path, text.encode(encoding))


@pytest.mark.parametrize("line", ["#NAME?,30,a dog,train", f"{ID};30;a dog;train", "12-May,30,a dog,train"])
def test_vggsound_names_line_and_cause(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match=r"vggsound.csv, line 2, reads `.*: (a spreadsheet program|its columns)"):
        read_vggsound(tmp_path, f"{ID},30,a dog,train\n{line}\n")


@pytest.mark.parametrize("line", ["#NAME?,violin", "1.5E+12,violin"])
def test_vggsound_music_names_line_and_cause(tmp_path: Path, line: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "vggmusic_train.txt").write_text(f"{ID}_000030,violin\n{line}\n")
    with pytest.raises(UserError, match=r"vggmusic_train.txt, line 2, .*a spreadsheet program"):
        vggsound_music(tmp_path, "train")


def test_avsbench_names_line_and_cause(tmp_path: Path) -> None:
    (tmp_path / "label2idx.json").write_text('{"background": 0, "dog": 1}')
    (tmp_path / "metadata.csv").write_text("vid,uid,s_min,s_sec,a_obj,split,label\n#NAME?,#NAME?,0,0,dog,train,v1s\n")
    with pytest.raises(UserError, match=r"metadata.csv, line 2, .*a spreadsheet program"):
        avsbench(tmp_path, "train", "s4")


def test_a_named_pipe_in_the_place_of_a_list_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    os.mkfifo(tmp_path / "annotations" / "vggsound.csv")
    with pytest.raises(UserError, match=r"csv cannot be read .it is a named pipe, not a regular file"):
        vggsound(tmp_path, "train")


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_listed_video_may_begin_with_a_hash(tmp_path: Path, name: str) -> None:
    (tmp_path / "#1 song.mp4").touch()
    (tmp_path / name).write_text("# a comment\n#1 song.mp4\n#2 song.mp4\nb.mp4\n")
    assert list(read_input(tmp_path / name).files) == ["#1 song.mp4", "b.mp4"]


def test_a_short_id_whose_clip_is_on_disk_is_ones_own(tmp_path: Path) -> None:
    (tmp_path / "clips" / "ow").mkdir(parents=True)
    (tmp_path / "clips" / "ow" / "own_000030_000040.mp4").touch()
    kept = "".join(f"abcdefghi{n:02},30,40,/m/01\n" for n in range(9))
    assert "own_000030" in {clip.id for clip in read_audioset(tmp_path, f"{HEAD}{kept}own,30,40,/m/01\n").clips}
