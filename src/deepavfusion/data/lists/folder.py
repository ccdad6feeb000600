"""A folder of one's own videos, nested and named as they are; see docs/datasets.md.

<root>/…/<any name>.mp4, .webm, .mkv, .mov, …    labels by sub-folder, or none
<root>/videos.csv, if there is one               header with some of `path,start,end,label,split`; labels joined by ";"
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deepavfusion.data.lists.clip_list import ClipList, Folders
from deepavfusion.data.lists.on_disk import list_clips
from deepavfusion.data.lists.text import SPLIT_KEYS, check_choice, count
from deepavfusion.data.lists.videos.durations import Known, durations
from deepavfusion.data.lists.videos.find import find_videos
from deepavfusion.data.lists.videos.parts import ALL, LEAST, TABLE, Part, assign_splits, by_table, label_by_folders
from deepavfusion.data.lists.videos.windows import name_of, windows
from deepavfusion.media.files import VIDEO_ENDINGS
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import distinct, printable

CLASSES = ("auto", "folder", "none")
NAMED = 5  # files that cannot be used, in a note
SHORTEST = 1.0  # s, of the windows
ROUNDED = 1.0  # s that a part may end after its video, as a table gives ends


def folder(
    root: str | Path,
    split: str,
    annotations: str = "auto",
    classes: str = "auto",
    seconds: float = 10.0,
    test_share: float = 0.2,
    split_seed: int = 0,
    max_windows: int | None = None,
) -> ClipList:
    """Read one split of a folder of videos.

    Args:
        root: the folder; links in it are followed.
        split: "train" or "test", where a share of the videos is held out; those of the table's column, or of folders
            train, val, test; "all": all of them.
        annotations: CSV file below the root; "auto": `videos.csv` if there is one; "none": each video that is found.
        classes: "folder": the first sub-folder that not all videos share; "none"; "auto": the table's column if it has
            labels, else sub-folders where there are several, else none.
        seconds: length of the windows that longer videos are cut into.
        test_share: of the videos, where neither the table nor folders say which are for tests.
        split_seed: of that choice.
        max_windows: of a video, or of a part that the table names, evenly spread over it; None: all.

    Returns:
        The split. Clip: id `<path below the root>@<start>-<end>` in seconds, of the last window of a video `-end`;
        `video` a hash that copies of a file and links to it share. `classes` are the sorted labels of the whole folder.
        A file that cannot be read, or lacks picture or sound, is one clip in `excluded`. Whatever `split`, all videos
        are looked at.

    Raises:
        UserError: no root, no video, a table that is not right, labels or splits for some only, or one video in two
            splits.
    """
    check_choice("choice of classes", classes, CLASSES, "data.index.classes")
    if seconds < SHORTEST:
        raise UserError(f"data.index.seconds is {seconds:g}, expected {SHORTEST:g} or more, as of a window: change it.")
    folders = Folders(root)
    base = folders.root
    table = annotations if annotations not in ("auto", "none") else TABLE
    listed = annotations != "none" and (annotations != "auto" or os.path.lexists(base / TABLE))
    found, notes = find_videos(os.fspath(base))
    if listed:
        parts, videos, more = by_table(base, table, found)
        notes += more
    else:
        parts, videos = [Part(video.path, ()) for video in found], found
    if not parts:
        endings = ", ".join(VIDEO_ENDINGS)
        what = f"{base / table} lists no video" if listed else f"no file below {base} is named like one ({endings})"
        raise UserError(f"there is no video: {what}; set data.root to the folder that has some.")
    label_by_folders(base, parts, classes, table)
    known = durations(base, videos)
    keys = {path: each.content or path for path, each in known.items()}
    notes += [*_copies(keys), *_unusable(known)]
    names = assign_splits(base, parts, keys, known, test_share, split_seed)
    check_choice(f"split of {base}", split, [*sorted(names), ALL], SPLIT_KEYS)
    listing = _Listing(base, known, keys, parts, seconds, max_windows)
    for part in parts:
        if split in (part.split, ALL):
            listing.add(part)
    notes += [*_splits(parts, keys, names), *_alike(listing.classes), *_one_sided(parts, keys, names)]
    return listing.clips(folders, split, [*notes, *listing.notes()])


# ---- clips


class _Listing:
    """The clips of a split, windows of long videos.

    Args:
        root, seconds: see `folder`.
        known: path -> what was found in the file.
        keys: path -> what all names of a video share.
        parts: of all splits, with the labels that there are.
        most: windows of a part; None: all.
    """

    def __init__(
        self,
        root: Path,
        known: Mapping[str, Known],
        keys: Mapping[str, str],
        parts: Sequence[Part],
        seconds: float,
        most: int | None,
    ) -> None:
        self.root, self.known, self.keys, self.seconds, self.most = root, known, keys, seconds, most
        self.classes = sorted({label for part in parts for label in part.labels})
        self.several = any(len(part.labels) > 1 for part in parts)  # labels of a clip
        shown = [printable(unicodedata.normalize("NFC", path)) for path in sorted(known)]
        self.names = dict(zip(sorted(known), distinct(shown), strict=True))  # two may differ in what is not seen
        self.position = {name: n for n, name in enumerate(self.classes)}
        self.found: dict[str, Clip] = {}
        self.lost: dict[str, tuple[str, str]] = {}  # id -> status and detail
        self.late: list[str] = []  # paths of parts that begin after the end of the video, or end after it
        self.cut: list[str] = []

    def add(self, part: Part) -> None:
        """Add the windows of a part."""
        known = self.known[part.path]
        labels = tuple(self.position[label] for label in part.labels)
        status, detail = known.status, known.detail
        if status == "ok" and known.seconds - part.start < LEAST:
            status, detail = (
                "too_short",
                f"the video ends at {known.seconds:.2f} s, the part begins at {part.start:g} s",
            )
            self.late.append(part.path)
        parts = [(part.start, part.end)]
        if status == "ok":
            if part.end is not None and part.end > known.seconds + ROUNDED:
                self.cut.append(f"{part.path}, of {known.seconds:.1f} s, at {part.end:g} s")
            parts = windows(known.seconds, self.seconds, part.start, part.end, self.most)
        for start, end in parts:
            name = name_of(self.names[part.path], (start, end))
            several = tuple(sorted(labels)) if self.several else ()
            label = labels[0] if labels else -1
            place = f"{self.root}/{part.path}"
            self.found[name] = Clip(name, place, label, self.keys[part.path], several, (), start, end)
            if status != "ok":
                self.lost[name] = status, detail

    def clips(self, folders: Folders, split: str, notes: list[str]) -> ClipList:
        """The list of the split."""
        missing = {name for name, (status, _) in self.lost.items() if status == "missing"}
        excluded = [
            (self.found[name], status) for name, (status, _) in sorted(self.lost.items()) if name not in missing
        ]
        others = [clip for name, clip in self.found.items() if name not in self.lost or name in missing]
        return list_clips(
            folders,
            split,
            others,
            self.classes,
            notes,
            lambda clip: clip.id not in missing,
            "correct the paths in the CSV file, which are relative to data.root",
            multi_label=self.several,
            excluded=excluded,
            details={name: detail for name, (_, detail) in self.lost.items()},
        )

    def notes(self) -> list[str]:
        notes = []
        if self.late:
            what = count(len(self.late), "part begins", "parts begin")
            notes.append(f"{what} after the end of the video, e.g. of {self.late[0]}.")
        if self.cut:
            what = count(len(self.cut), "part ends", "parts end")
            notes.append(f"{what} after the video does, e.g. of {self.cut[0]}, and so with the video.")
        return notes


# ---- notes


def _copies(keys: Mapping[str, str]) -> list[str]:
    first: dict[str, str] = {}
    pairs = [(path, other) for path, key in sorted(keys.items()) if (other := first.setdefault(key, path)) != path]
    if not pairs:
        return []
    what = count(len(pairs), "video is a copy of another one, or a link to it", "videos are copies of others, or links")
    return [f"{what}, e.g. {pairs[0][0]} of {pairs[0][1]}; they are on one side of the split, and count each."]


def _unusable(known: Mapping[str, Known]) -> list[str]:
    lost = [(path, each) for path, each in sorted(known.items()) if each.status != "ok"]
    if not lost:
        return []
    shown = "; ".join(f"{path} ({each.status}: {each.detail})" for path, each in lost[:NAMED])
    more = f"; and {len(lost) - NAMED} more, see data_problems.csv" if len(lost) > NAMED else ""
    return [f"{count(len(lost), 'video')} of {len(known)} cannot be used: {shown}{more}."]


def _splits(parts: Iterable[Part], keys: Mapping[str, str], names: set[str]) -> list[str]:
    """Of splits by other names than train and test: a run reads those that its config names, and no other."""
    if names <= {"train", "test"}:
        return []
    videos: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        videos[part.split].add(keys[part.path])
    shown = ", ".join(f"{name} of {count(len(videos[name]), 'video')}" for name in sorted(names))
    return [f"there are the splits {shown}; data.train_split, data.val_split and data.eval_split say which are read."]


def _alike(classes: Iterable[str]) -> list[str]:
    """Classes that differ only in case: they may be meant to be one."""
    first: dict[str, str] = {}
    pairs = [(name, other) for name in classes if (other := first.setdefault(name.casefold(), name)) != name]
    if not pairs:
        return []
    what = count(len(pairs), "class differs", "classes differ")
    return [f"{what} from another one only in case, e.g. {pairs[0][0]!r} from {pairs[0][1]!r}; they are kept apart."]


def _one_sided(parts: Iterable[Part], keys: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Notes on classes that one of the splits train and test lacks."""
    of_class: dict[str, set[str]] = defaultdict(set)
    videos: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        for label in part.labels:
            of_class[label].add(part.split)
            videos[label].add(keys[part.path])
    notes = []
    for side in sorted({"train", "test"}.intersection(names)):
        if alone := sorted(label for label, splits in of_class.items() if side not in splits):
            number = len(videos[alone[0]])
            notes.append(
                f"{count(len(alone), 'class has', 'classes have')} no video in {side}, e.g. {alone[0]!r} with "
                f"{count(number, 'video')}; two or more are needed for both sides."
            )
    return notes
