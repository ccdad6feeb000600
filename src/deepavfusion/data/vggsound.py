"""VGGSound's layout on disk: one CSV list, and a folder of clips for each label.

annotations/vggsound.csv    lines `id,start,label,train|test`; start in seconds
clips/<label>/<id>_<start:06d>_<start+10:06d>.mp4    in folder names each of space ( ) , becomes _
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepavfusion.data.index import (
    ClipList,
    Folders,
    check_name,
    check_root,
    count,
    nothing_on_disk,
    read_rows,
    suggestion,
)
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

COLUMNS = "id,start,label,train|test"
CLIP_SECONDS = 10
TO_UNDERSCORE = str.maketrans(" (),", "____")


@dataclass(frozen=True)
class _Row:
    id: str
    start: int
    label: str
    split: str
    line: int

    @property
    def clip_id(self) -> str:
        return f"{self.id}_{self.start:06d}"


def vggsound(
    root: str | Path,
    split: str,
    clip_pattern: str = "clips/{folder}/{id}_{start:06d}_{end:06d}.mp4",
    annotations: str = "annotations/vggsound.csv",
) -> ClipList:
    """Read one split of VGGSound.

    Args:
        root: the folder that holds the list and the clips.
        split: "train" or "test".
        clip_pattern: path of a clip under the root; `str.format` fields id, start, end, label, and folder
            (the label as a folder name).
        annotations: path of the list under the root.

    Returns:
        The split; `classes` are the sorted labels of the *whole* list, whatever is on disk. A test split that
        the list leaves out is empty.

    Raises:
        UserError: no root, no list, a malformed line, no train line, or none of the split's clips on disk.
    """
    if split not in ("train", "test"):
        raise UserError(f"VGGSound has no split {split!r}; expected train or test: set data.index.split.")
    base = check_root(root)
    rows, notes = _unique(_rows(base, annotations), annotations)
    classes = sorted({row.label for row in rows})
    label_of = {name: position for position, name in enumerate(classes)}
    chosen = sorted((row for row in rows if row.split == split), key=lambda row: row.clip_id)
    if not chosen and split == "train":
        raise UserError(
            f"The list {base / annotations} has no line of the train split; expected lines "
            "`id,start,label,train`: set data.index.annotations to the full list."
        )
    folders = Folders(base)
    expected = {row.clip_id: _clip_path(row, clip_pattern) for row in rows}
    notes += _strangers(folders, expected, classes, annotations, clip_pattern)

    clips: list[Clip] = []
    missing: list[Clip] = []
    for row in chosen:
        path = expected[row.clip_id]
        clip = Clip(id=row.clip_id, path=str(base / path), label=label_of[row.label], video=row.id)
        (clips if folders.has(path) else missing).append(clip)
    if chosen and not clips:
        raise nothing_on_disk(base, split, len(chosen), expected[chosen[0].clip_id], folders)
    return ClipList(split, clips, classes, missing=missing, notes=notes)


def folder_name(label: str) -> str:
    """The folder of a label: "playing violin, fiddle" -> "playing_violin__fiddle"."""
    return label.translate(TO_UNDERSCORE)


def _rows(root: Path, annotations: str) -> list[_Row]:
    rows = []
    for line, cells in read_rows(root, annotations, COLUMNS):
        where = f"{root / annotations}, line {line}"
        if len(cells) != 4 or not (cells[1].isascii() and cells[1].isdigit()) or cells[3] not in ("train", "test"):
            raise UserError(
                f"{where}, reads `{','.join(cells)}`; expected `{COLUMNS}` with whole "
                "seconds and, around labels with commas, double quotes: mend the line."
            )
        identifier = check_name(cells[0], "id", where)
        label = check_name(cells[2], "label", where)
        rows.append(_Row(identifier, int(cells[1]), label, cells[3], line))
    return rows


def _unique(rows: list[_Row], annotations: str) -> tuple[list[_Row], list[str]]:
    """Rows with one line a clip, the first, and what to say about the others."""
    first: dict[str, _Row] = {}
    repeated: list[_Row] = []
    for row in rows:
        if first.setdefault(row.clip_id, row) is not row:
            repeated.append(row)
    notes = []
    if repeated:
        one = repeated[0]
        notes.append(
            f"{annotations} lists {count(len(repeated), 'clip')} more than once, e.g. {one.clip_id} in lines "
            f"{first[one.clip_id].line} and {one.line}; the first line counts."
        )
    at_odds = [
        row for row in repeated if (row.label, row.split) != (first[row.clip_id].label, first[row.clip_id].split)
    ]
    if at_odds:
        one = at_odds[0]
        notes.append(
            f"{annotations} gives {count(len(at_odds), 'clip')} different labels or splits, e.g. {one.clip_id} "
            f"in lines {first[one.clip_id].line} and {one.line}; the first line counts."
        )
    return list(first.values()), notes


def _clip_path(row: _Row, pattern: str) -> str:
    end = row.start + CLIP_SECONDS
    try:
        path = pattern.format(id=row.id, start=row.start, end=end, label=row.label, folder=folder_name(row.label))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"The pattern {pattern!r} cannot be filled in ({type(error).__name__}: {error}); expected the fields "
            "id, start, end, label and folder, e.g. {folder}/{id}_{start:06d}.mp4: mend data.index.clip_pattern."
        ) from None
    if path.startswith("/") or ".." in path.split("/"):
        raise UserError(
            f"The pattern {pattern!r} leads out of the data folder; expected a path below it: mend "
            "data.index.clip_pattern."
        )
    return path


def _strangers(
    folders: Folders, expected: dict[str, str], classes: list[str], annotations: str, pattern: str
) -> list[str]:
    """Notes on folders that match no label and on files the list does not name."""
    used = {path.rpartition("/")[0] for path in expected.values()}
    paths, unlisted, notes = set(expected.values()), 0, []
    suffix = Path(pattern).suffix
    for parent in sorted({folder.rpartition("/")[0] for folder in used}):
        for name in folders.folders(parent) if "{" in pattern.rpartition("/")[0] else []:
            folder = f"{parent}/{name}" if parent else name
            clips = [file for file in folders.files(folder) if file.endswith(suffix)]
            if folder not in used and clips:
                notes.append(
                    f"{folder} matches no label of {annotations}; its {count(len(clips), 'clip')} "
                    f"{'is' if len(clips) == 1 else 'are'} not used"
                    f"{suggestion(name, map(folder_name, classes)) or '.'}"
                )
    for folder in used:
        here = {f"{folder}/{name}" if folder else name for name in folders.files(folder) if name.endswith(suffix)}
        unlisted += len(here - paths)
    if unlisted:
        notes.append(f"{count(unlisted, 'clip')} on disk {'is' if unlisted == 1 else 'are'} not in {annotations}.")
    return notes
