"""What there is to list of a folder of videos: which parts, with which labels, in which split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepavfusion.data.lists.clip_list import held_out_videos
from deepavfusion.data.lists.text import count
from deepavfusion.data.lists.videos.durations import Known
from deepavfusion.data.lists.videos.find import Video, video_at
from deepavfusion.data.lists.videos.table import Row, read_table
from deepavfusion.utils.errors import UserError

TABLE = "videos.csv"
ALL = "all"
RESERVED = (ALL, "holdout")
IN_FOLDERS = ("train", "val", "test")  # names of folders that are splits, where there are no others
LEAST = 0.1  # s, of a part


@dataclass
class Part:
    """A video, or the part of it that a line of the table names."""

    path: str
    labels: tuple[str, ...]
    split: str = ""
    start: float = 0.0
    end: float | None = None


def by_table(root: Path, table: str, found: Sequence[Video]) -> tuple[list[Part], list[Video], list[str]]:
    """The parts that a table names, their videos, and notes."""
    rows = list(read_table(root, table))
    on_disk = {video.path: video for video in found}
    named = {row.path: on_disk.get(row.path) or video_at(row.path, root / row.path) for row in rows}
    parts: dict[tuple[str, float, float | None], Part] = {}
    merged, repeated = list[Row](), list[Row]()
    for row in rows:
        if row.end is not None and row.end - row.start < LEAST:
            raise UserError(
                f"{root / table}, line {row.line}, has a part from {row.start:g} to {row.end:g} s; expected an end "
                "after its start: fix the line."
            )
        key = (row.path, row.start, row.end)
        if key not in parts:
            parts[key] = Part(row.path, row.labels, row.split, row.start, row.end)
            continue
        before = parts[key]
        if before.split != row.split:
            raise UserError(
                f"{root / table}, line {row.line}, puts {row.path!a:.200} into the split {row.split!r}, another line "
                f"into {before.split!r}; expected one: fix the line."
            )
        (repeated if {*row.labels} <= {*before.labels} else merged).append(row)
        before.labels = tuple(dict.fromkeys((*before.labels, *row.labels)))
    notes = []
    if merged:
        lines = count(len(merged), f"line of {table} gives", f"lines of {table} give")
        notes.append(f"{lines} a clip further labels, e.g. line {merged[0].line}; it has all of them.")
    if repeated:
        lines = count(len(repeated), f"line of {table} repeats another one", f"lines of {table} repeat others")
        notes.append(f"{lines}, e.g. line {repeated[0].line}.")
    if left := sorted(on_disk.keys() - named.keys()):
        what = count(len(left), "video on disk is", "videos on disk are")
        notes.append(f"{what} not in {table}, and not used, e.g. {left[0]}.")
    return list(parts.values()), list(named.values()), notes


def label_by_folders(root: Path, parts: Sequence[Part], classes: str, table: str) -> None:
    """Set the labels and splits that follow from folders.

    Raises:
        UserError: only some of the videos have a label, or a split.
    """
    given = any(part.split for part in parts)
    if given and (lacking := next((part for part in parts if not part.split), None)):
        raise UserError(
            f"{root / table}: {lacking.path!a:.200} has no split, others have one: fill in the column split of each "
            "line, or leave it out."
        )
    if reserved := next((part.split for part in parts if part.split in RESERVED), None):
        raise UserError(f"the split {reserved!r} is a name that has another meaning: call it train, val or test.")
    spelt: dict[str, str] = {}
    for name in (part.split for part in parts):
        if (other := spelt.setdefault(name.casefold(), name)) != name:
            raise UserError(
                f"{root / table} has the splits {other!r} and {name!r}, which differ only in case: expected one "
                "spelling of a name, or one of them would not be read; fix the column split."
            )
    below = _without_common([part.path.split("/")[:-1] for part in parts])
    tops = {folders[0] if folders else "" for folders in below}
    if not given and len(tops) > 1 and "train" in tops and tops <= {*IN_FOLDERS}:
        for part, folders in zip(parts, below, strict=True):
            part.split = folders[0]
        below = _without_common([folders[1:] for folders in below])
    with_label = sum(bool(part.labels) for part in parts)
    if classes == "none":
        for part in parts:
            part.labels = ()
    elif classes == "auto" and with_label:
        if with_label < len(parts):
            lacking = next(part for part in parts if not part.labels)
            raise UserError(
                f"{root / table}: {lacking.path!a:.200} has no label, {count(with_label, 'other has', 'others have')} "
                "one: fill in the column label of each line, or train without, by data.index.classes=none."
            )
    elif any(below):
        if direct := [part for part, folders in zip(parts, below, strict=True) if not folders]:
            raise UserError(
                f"{count(len(direct), 'video lies', 'videos lie')} beside the sub-folders of {root} that name the "
                f"classes, e.g. {direct[0].path!a:.200}: move it into one of them, or train without classes, by "
                "data.index.classes=none."
            )
        for part, folders in zip(parts, below, strict=True):
            part.labels = (folders[0],)
    elif classes == "folder":
        raise UserError(
            f"all videos of {root} lie in one folder: expected a sub-folder for each class, or "
            f"{TABLE} with the columns path and label; or train without classes, by data.index.classes=none."
        )


def _without_common(folders: list[list[str]]) -> list[list[str]]:
    """Folders without those at their beginning that all share."""
    first, last = min(folders), max(folders)
    common = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return [each[min(map(len, (first, last))) if common is None else common :] for each in folders]


def assign_splits(
    root: Path, parts: Sequence[Part], keys: Mapping[str, str], known: Mapping[str, Known], test_share: float, seed: int
) -> set[str]:
    """The names of the splits; videos that have none are held out, or not.

    Raises:
        UserError: one video is in two splits.
    """
    if not any(part.split for part in parts):
        classes: dict[str, dict[str, None]] = defaultdict(dict)
        for part in parts:
            classes[keys[part.path]] |= dict.fromkeys(part.labels)
        usable = {keys[path] for path, each in known.items() if each.status == "ok"}
        tests = held_out_videos({key: [*each] for key, each in classes.items()}, test_share, f"test/{seed}", usable)
        for part in parts:
            part.split = "test" if keys[part.path] in tests else "train"
        return {"train", "test"}
    first: dict[str, Part] = {}
    for part in parts:
        other = first.setdefault(keys[part.path], part)
        if other.split != part.split:
            same = "the same video" if other.path == part.path else f"a copy of {other.path!a:.200} or a link to it"
            raise UserError(
                f"{part.path!a:.200} is in the split {part.split!r}, and {same} in {other.split!r}, below {root}: "
                "expected each video in one split, or tests would be on what was learned; change the split, or remove "
                "one."
            )
    return {part.split for part in parts}
