"""AudioSet on disk: the published lists, and a folder of clips for each first two letters of an id.

annotations/class_labels_indices.csv    header `index,mid,display_name`; 527 classes
annotations/{unbalanced_train,balanced_train,eval}_segments.csv    comments `# …`, then lines
    `YTID, start_seconds, end_seconds, "mid,mid,…"`; seconds like 30.000
clips/<id[:2]>/<id>_<start:06d>_<end:06d>.mp4    whole seconds, fractions cut off
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path

from deepavfusion.data.lists.clip_list import ClipList, Folders
from deepavfusion.data.lists.on_disk import fill_in, list_clips, unique, unlisted_files
from deepavfusion.data.lists.text import check_choice, check_name, count, malformed, read_rows, read_table, suggestion
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

COLUMNS = 'YTID, start_seconds, end_seconds, "mid,mid,…"'
CLASS_COLUMNS = "index,mid,display_name"
LISTS_OF_SPLIT = {
    "unbalanced": ["unbalanced"],
    "balanced": ["balanced"],
    "full": ["balanced", "unbalanced"],
    "eval": ["evaluation"],
}


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's cycle collector from walking over millions of permanent clips again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collector()
def audioset(
    root: str | Path,
    split: str,
    clip_pattern: str = "clips/{prefix}/{id}_{start:06d}_{end:06d}.mp4",
    labels: str = "annotations/class_labels_indices.csv",
    unbalanced: str = "annotations/unbalanced_train_segments.csv",
    balanced: str = "annotations/balanced_train_segments.csv",
    evaluation: str = "annotations/eval_segments.csv",
) -> ClipList:
    """Read one split of AudioSet.

    Args:
        root: the data folder; the other paths are below it.
        split: "unbalanced", "balanced", "full" (these two together) or "eval".
        clip_pattern: `str.format` fields id, prefix (the id's first two letters), start and end.
        labels: the class list.
        unbalanced, balanced, evaluation: the lists of segments.

    Returns:
        The split, with several labels per clip; `Clip.label` is the first in its line. `classes` are the display names
        in the order of the class list. Unlisted files are counted for "unbalanced" and "full" only, which read the long
        list anyway, and only if all three lists exist.

    Raises:
        UserError: no root, no list, a malformed line, an unknown label, or none of the split's clips on disk.
    """
    check_choice("split of AudioSet", split, LISTS_OF_SPLIT)
    folders = Folders(root)
    base = folders.root
    files = {"unbalanced": unbalanced, "balanced": balanced, "evaluation": evaluation}
    position, classes = _classes(base, labels)
    notes: list[str] = []
    listed: list[Clip] = []
    for name in LISTS_OF_SPLIT[split]:
        clips, repeated = unique(
            _segments(base, files[name], name, clip_pattern, position), files[name], "labels", folders
        )
        notes += repeated
        known = {clip.id for clip in listed}  # of the short list, or none
        if twice := [clip.id for clip in clips if clip.id in known]:
            notes.append(
                f"{count(len(twice), 'clip is', 'clips are')} in {files[name]} and in {balanced}, e.g. {twice[0]}; "
                "the latter counts."
            )
        listed += (clip for clip in clips if clip.id not in known)
        del clips
    if "unbalanced" in LISTS_OF_SPLIT[split] and all(folders.has(file) for file in files.values()):
        others = [name for name in files if name not in LISTS_OF_SPLIT[split]]
        rest = (clip for name in others for _, clip in _segments(base, files[name], name, clip_pattern, position))
        begin = len(str(base)) + 1
        paths = (clip.path[begin:] for clip in chain(listed, rest))
        notes += unlisted_files(folders, paths, clip_pattern, "the lists of AudioSet")
    return list_clips(folders, split, listed, classes, notes, multi_label=True)


def _classes(root: Path, labels: str) -> tuple[dict[str, int], list[str]]:
    """Class index of each mid, and the display names."""
    position: dict[str, int] = {}
    names: list[str] = []
    for line, row in read_table(root, labels, CLASS_COLUMNS, "data.index.labels"):
        if row["index"] != str(len(names)) or not row["mid"] or row["mid"] in position:
            raise UserError(
                f"{root / labels}, line {line}, has index {row['index']!r} and mid {row['mid']!r}; expected index "
                f"{len(names)} and a mid of its own: fix the line."
            )
        position[row["mid"]] = len(names)
        names.append(row["display_name"])
    return position, names


def _segments(
    root: Path, annotations: str, name: str, pattern: str, position: dict[str, int]
) -> Iterator[tuple[int, Clip]]:
    """Line number and clip of each line; `name`: the reader's argument that gives the list."""
    # Two million lines have few different times and sets of labels: parse each once and share the result.
    labels_of: dict[str, tuple[int, tuple[int, ...]]] = {}  # the first in the line, and all of them sorted
    folder, file = str(root), str(root / annotations)
    for line, cells in read_rows(root, annotations, COLUMNS, f"data.index.{name}", comments=True):
        where = f"{file}, line {line}"
        seconds = _whole_seconds(cells[1], cells[2]) if len(cells) == 4 else None
        if not seconds:
            raise malformed(where, cells, f"`{COLUMNS}` with 0 ≤ start < end and double quotes around the labels")
        start, end = seconds
        video, mids = check_name(cells[0], "id", where), cells[3]
        if mids not in labels_of:
            found = [_label(mid.strip(), position, where) for mid in mids.split(",")]
            labels_of[mids] = found[0], tuple(sorted(set(found)))
        first, labels = labels_of[mids]
        path = fill_in(pattern, id=video, prefix=video[:2], start=start, end=end)
        yield line, Clip(f"{video}_{start:06d}", f"{folder}/{path}", first, video, labels)


@cache
def _whole_seconds(first: str, second: str) -> tuple[int, int] | None:
    """Start and end without fractions; None unless they are two times in order."""
    try:
        start, end = float(first), float(second)
        return (int(start), int(end)) if 0 <= start < end else None
    except (ValueError, OverflowError):
        return None


def _label(mid: str, position: dict[str, int], where: str) -> int:
    if mid not in position:
        raise UserError(
            f"{where}, names the label {mid!r}, which is not in the class list; expected one of its "
            f"{len(position)} mids: fix the line, or set data.index.labels to the class list that belongs to "
            f"it{suggestion(mid, position) or '.'}"
        )
    return position[mid]
