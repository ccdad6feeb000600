"""The AudioSet reader: published list formats, several labels a clip, and what it tells a person."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from deepavfusion.data.lists.audioset import audioset
from helpers.errors import refusal

CLASSES = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/t/dd00003,"Gurgling (water)"
3,/m/04rlf,"Music"
"""
COMMENTS = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
"""
UNBALANCED = COMMENTS + (
    '---1_cCGK4M, 30.000, 40.000, "/m/04rlf,/m/09x0r"\n'
    'zzzzzzzzzzz, 0.000, 8.000, "/t/dd00003"\n'
    'aaaaaaaaaaa, 120.000, 130.000, "/m/05zppz,/m/09x0r,/m/04rlf"\n'
)
BALANCED = COMMENTS + '--balanced_, 5.000, 15.000, "/m/09x0r"\n'
EVALUATION = COMMENTS + 'eval_______, 7.000, 17.000, "/m/04rlf"\n'

FIRST = "--/---1_cCGK4M_000030_000040.mp4"
SHORT = "zz/zzzzzzzzzzz_000000_000008.mp4"
THIRD = "aa/aaaaaaaaaaa_000120_000130.mp4"
IN_BALANCED = "--/--balanced__000005_000015.mp4"
IN_EVAL = "ev/eval________000007_000017.mp4"
ALL = (FIRST, SHORT, THIRD, IN_BALANCED, IN_EVAL)
UNBALANCED_FILE = "annotations/unbalanced_train_segments.csv"


def make(
    root: Path,
    on_disk: tuple[str, ...] = ALL,
    classes: str = CLASSES,
    unbalanced: str = UNBALANCED,
    balanced: str = BALANCED,
    evaluation: str = EVALUATION,
) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    lists = {
        "class_labels_indices": classes,
        "unbalanced_train_segments": unbalanced,
        "balanced_train_segments": balanced,
        "eval_segments": evaluation,
    }
    for name, text in lists.items():
        (root / "annotations" / f"{name}.csv").write_bytes(text.encode())
    for name in on_disk:
        path = root / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def message(root: Path, split: str = "unbalanced", **options: str) -> str:
    return refusal(audioset, root, split, **options)


def test_clips_and_labels(tmp_path: Path) -> None:
    found = audioset(make(tmp_path), "unbalanced")
    assert found.classes == ["Speech", "Male speech, man speaking", "Gurgling (water)", "Music"]
    assert [(clip.id, clip.video, clip.label, clip.labels) for clip in found.clips] == [
        ("---1_cCGK4M_000030", "---1_cCGK4M", 3, (0, 3)),
        ("aaaaaaaaaaa_000120", "aaaaaaaaaaa", 1, (0, 1, 3)),
        ("zzzzzzzzzzz_000000", "zzzzzzzzzzz", 2, (2,)),
    ]
    assert [clip.path for clip in found.clips] == [str(tmp_path / "clips" / name) for name in (FIRST, THIRD, SHORT)]
    assert (found.multi_label, found.missing, found.notes, found.split) == (True, [], [], "unbalanced")
    assert gc.isenabled()


def test_splits(tmp_path: Path) -> None:
    make(tmp_path)
    ids = {split: [clip.id for clip in audioset(tmp_path, split).clips] for split in ("balanced", "full", "eval")}
    assert ids == {
        "balanced": ["--balanced__000005"],
        "full": ["---1_cCGK4M_000030", "--balanced__000005", "aaaaaaaaaaa_000120", "zzzzzzzzzzz_000000"],
        "eval": ["eval________000007"],
    }
    assert audioset(tmp_path, "full").notes == []
    assert "There is no split of AudioSet 'train'; expected one of unbalanced, balanced, full, eval" in message(
        tmp_path, "train"
    )


def test_missing_clips_and_strangers(tmp_path: Path) -> None:
    strange = ("zz/zzzzzzzzzzz_000001_000011.mp4", "qq/unlisted.mp4", "zz/zzzzzzzzzzz_000000_000008.part")
    make(tmp_path, (FIRST, IN_EVAL, *strange))
    found = audioset(tmp_path, "unbalanced")
    assert [clip.id for clip in found.clips] == ["---1_cCGK4M_000030"]
    assert [(clip.id, clip.label, clip.labels) for clip in found.missing] == [
        ("aaaaaaaaaaa_000120", 1, (0, 1, 3)),
        ("zzzzzzzzzzz_000000", 2, (2,)),
    ]
    assert found.notes == ["2 clips on disk are not in the lists of AudioSet."]
    assert audioset(tmp_path, "eval").notes == []  # the short splits do not look
    (tmp_path / "annotations/eval_segments.csv").unlink()
    assert audioset(tmp_path, "unbalanced").notes == []  # what is not listed is unknown


def test_repeated_lines_and_lists_at_odds(tmp_path: Path) -> None:
    unbalanced = UNBALANCED + (
        'zzzzzzzzzzz, 0.000, 8.000, "/t/dd00003"\n'
        'aaaaaaaaaaa, 120.000, 130.000, "/m/09x0r"\n'
        '--balanced_, 5.000, 15.000, "/m/04rlf"\n'
    )
    found = audioset(make(tmp_path, unbalanced=unbalanced), "full")
    assert found.listed == 4
    labels = {clip.id: clip.labels for clip in found.clips}
    assert labels["aaaaaaaaaaa_000120"] == (0, 1, 3)
    assert labels["--balanced__000005"] == (0,)
    assert found.notes == [
        f"{UNBALANCED_FILE} lists 2 clips more than once, e.g. zzzzzzzzzzz_000000 in lines 5 and 7; the first line "
        "counts.",
        f"{UNBALANCED_FILE} gives 1 clip different labels, e.g. aaaaaaaaaaa_000120 in lines 6 and 8; the first line "
        "counts.",
        f"1 clip is in {UNBALANCED_FILE} and in annotations/balanced_train_segments.csv, e.g. --balanced__000005; the "
        "latter counts.",
    ]


def test_fractions_of_seconds_are_cut_off(tmp_path: Path) -> None:
    unbalanced = COMMENTS + 'zzzzzzzzzzz, 0.500, 8.999, "/t/dd00003,/t/dd00003"\n'
    found = audioset(make(tmp_path, unbalanced=unbalanced), "unbalanced")
    assert [(clip.id, clip.path, clip.labels) for clip in found.clips] == [
        ("zzzzzzzzzzz_000000", str(tmp_path / "clips" / SHORT), (2,))
    ]


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    lists = {"classes": CLASSES, "unbalanced": UNBALANCED + "\n", "balanced": BALANCED, "evaluation": EVALUATION}
    marked = {name: "\ufeff" + text.replace("\n", "\r\n") for name, text in lists.items()}
    found = audioset(make(tmp_path, **marked), "unbalanced")
    assert [clip.labels for clip in found.clips] == [(0, 3), (0, 1, 3), (2,)]


def test_other_layouts_of_the_clips(tmp_path: Path) -> None:
    make(tmp_path, ())
    (tmp_path / "all").mkdir()
    (tmp_path / "all/zzzzzzzzzzz.mkv").touch()
    found = audioset(tmp_path, "unbalanced", clip_pattern="all/{id}.mkv")
    assert [clip.path for clip in found.clips] == [str(tmp_path / "all/zzzzzzzzzzz.mkv")]
    assert found.notes == []


@pytest.mark.parametrize(
    "line",
    [
        "bbbbbbbbbbb, 1.000, 11.000",
        'bbbbbbbbbbb, 1.000, 11.000, ""',
        "bbbbbbbbbbb, 1.000, 11.000, /m/04rlf,/m/09x0r",
        'bbbbbbbbbbb, 11.000, 1.000, "/m/04rlf"',
        'bbbbbbbbbbb, -1.000, 11.000, "/m/04rlf"',
        'bbbbbbbbbbb, nan, 11.000, "/m/04rlf"',
        'bbbbbbbbbbb, 1.000, inf, "/m/04rlf"',
        'bbbbbbbbbbb, one, 11.000, "/m/04rlf"',
        '../bbbbbbbb, 1.000, 11.000, "/m/04rlf"',
        '.., 1.000, 11.000, "/m/04rlf"',
        ', 1.000, 11.000, "/m/04rlf"',
        'bbbbbbbbbbb, 1.000, 11.000, "/m/04rlf',
        "bbbbbbbbbbb",
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    text = message(make(tmp_path, unbalanced=UNBALANCED + line + "\n"))
    assert f"{tmp_path / UNBALANCED_FILE}, line 7" in text
    assert "fix the line" in text


def test_unknown_label_is_named(tmp_path: Path) -> None:
    text = message(make(tmp_path, balanced=BALANCED + 'bbbbbbbbbbb, 1.000, 11.000, "/m/09x0r,/m/04rlg"\n'), "balanced")
    assert f"{tmp_path / 'annotations/balanced_train_segments.csv'}, line 5, names the label '/m/04rlg'" in text
    assert "data.index.labels" in text
    assert "did you mean '/m/04rlf'?" in text


@pytest.mark.parametrize(
    "line", ["4,/m/04rlf,Music", "5,/m/0abc,Five", "4,/m/0abc", "4,,Name", "4,/m/0abc,Male speech, man speaking"]
)
def test_bad_class_is_named(tmp_path: Path, line: str) -> None:
    text = message(make(tmp_path, classes=CLASSES + line + "\n"))
    assert f"{tmp_path / 'annotations/class_labels_indices.csv'}, line 6" in text
    assert "fix the line" in text


def test_header_of_the_classes(tmp_path: Path) -> None:
    text = message(make(tmp_path, classes="0,/m/09x0r,Speech\n"))
    assert "class_labels_indices.csv, line 1" in text
    assert "data.index.labels" in text


def test_missing_root_and_lists(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist" in message(tmp_path / "gone")
    text = message(tmp_path)
    assert f"{tmp_path / 'annotations/class_labels_indices.csv'} does not exist" in text
    assert "data.index.labels" in text
    (make(tmp_path) / "annotations/eval_segments.csv").unlink()
    text = message(tmp_path, "eval")
    assert "eval_segments.csv does not exist" in text
    assert "data.index.evaluation" in text
    assert "leaves the data folder" in message(tmp_path, balanced="../list.csv", split="balanced")


def test_nothing_on_disk_and_bad_patterns(tmp_path: Path) -> None:
    make(tmp_path, (IN_EVAL,))
    text = message(tmp_path)
    assert "None of the 3 clips of the unbalanced split is on disk" in text
    assert f"expected for example {tmp_path / 'clips' / FIRST}" in text
    assert "clips/ holds ev" in text
    assert "expected the fields id, prefix, start and end" in message(tmp_path, clip_pattern="{folder}/{id}.mp4")
    assert "gives all clips the same path" in message(tmp_path, clip_pattern="{prefix}/{start}.mp4")
    assert "leaves the data folder" in message(tmp_path, clip_pattern="../{id}.mp4")
