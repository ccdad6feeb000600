"""VGGSound on disk: one CSV list, and a folder of clips for each label.

annotations/vggsound.csv    lines `id,start,label,train|test`; start in seconds
clips/<label>/<id>_<start:06d>_<start+10:06d>.mp4    in folder names each of space ( ) , becomes _
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from deepavfusion.data.lists.clip_list import ClipList, Folders
from deepavfusion.data.lists.on_disk import ListedClip, clips_of, fill_in, list_clips, unique, unlisted_files
from deepavfusion.data.lists.retrieval import named_clips
from deepavfusion.data.lists.text import check_choice, check_name, malformed, read_rows
from deepavfusion.utils.errors import UserError

COLUMNS = "id,start,label,train|test"
CLIP_SECONDS = 10
TO_UNDERSCORE = str.maketrans(" (),", "____")
SPLITS = ("train", "test")
SECONDS = re.compile(r"[0-9]{1,9}")


def vggsound(
    root: str | Path,
    split: str,
    clip_pattern: str = "clips/{folder}/{id}_{start:06d}_{end:06d}.mp4",
    annotations: str = "annotations/vggsound.csv",
    retrieval_list: str | None = None,
) -> ClipList:
    """Read one split of VGGSound.

    Args:
        root: the data folder; the other paths are below it.
        split: "train" or "test".
        clip_pattern: `str.format` fields id, start, end, label, and folder (the label as a folder name).
        retrieval_list: path of a file that names the clips of the test split that count; None: all of them.

    Returns:
        The split; `classes` are the sorted labels of the *whole* list, whatever is on disk. If the list has no
        test lines, that split is empty.

    Raises:
        UserError: no root, no list, a malformed line, no train line, none of the split's clips on disk, or a retrieval
            list that names others.
    """
    check_choice("split of VGGSound", split, SPLITS)
    folders = Folders(root)
    rows, notes = unique(_rows(folders.root, annotations, clip_pattern), annotations, "labels or splits", folders)
    classes = sorted({row.label for row in rows})
    chosen = [row for row in rows if row.split == split]
    if not chosen and split == "train":
        raise UserError(
            f"The list {folders.root / annotations} has no line of the train split; expected lines "
            "`id,start,label,train`: set data.index.annotations to the full list."
        )
    notes += unlisted_files(folders, [row.path for row in rows], clip_pattern, annotations, map(folder_name, classes))
    clips = list_clips(folders, split, clips_of(chosen, folders.root, classes), classes, notes)
    return named_clips(clips, retrieval_list)


def folder_name(label: str) -> str:
    """The folder of a label: "playing violin, fiddle" -> "playing_violin__fiddle"."""
    return label.translate(TO_UNDERSCORE)


def ten_seconds(pattern: str, video: str, start: int, label: str, folder: str, split: str = "") -> ListedClip:
    """The clip of a video from its start time on; `folder`: that of its class."""
    path = fill_in(pattern, id=video, start=start, end=start + CLIP_SECONDS, label=label, folder=folder)
    return ListedClip(f"{video}_{start:06d}", video, label, path, split)


def _rows(root: Path, annotations: str, pattern: str) -> Iterator[tuple[int, ListedClip]]:
    for line, cells in read_rows(root, annotations, COLUMNS):
        where = f"{root / annotations}, line {line}"
        if len(cells) != 4 or not SECONDS.fullmatch(cells[1]) or cells[3] not in SPLITS:
            expected = f"`{COLUMNS}` with whole seconds and, around labels with commas, double quotes"
            raise malformed(where, cells, expected)
        video, label = check_name(cells[0], "id", where), check_name(cells[2], "label", where)
        yield line, ten_seconds(pattern, video, int(cells[1]), label, folder_name(label), cells[3])
