"""`ClipList`, which every list reader returns: one split with its clips; and a cached scan of the data folder."""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Collection, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path

from deepavfusion.types import Clip
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import distinct

DEMO = "python src/prepare.py command=demo"


@dataclass(frozen=True)
class ClipList:
    """One split of a dataset: what is listed, and which of it is on disk."""

    split: str  # its name
    clips: list[Clip]  # listed and on disk, sorted by id; whether they decode is unknown
    classes: list[str]  # label names, of which equal ones get a number; `Clip.label` is a position in them
    missing: list[Clip] = field(default_factory=list)  # listed but not on disk, sorted by id
    notes: list[str] = field(default_factory=list)  # sentences to print about the list and the files
    multi_label: bool = False  # whether a clip may have several classes (`Clip.labels`)
    # Ids of the clips to mix, if the protocol fixes them, in the order of the list; some may be missing.
    mixtures: list[tuple[str, ...]] = field(default_factory=list)
    # On disk but excluded, by the report of `command=verify` or by the reader, with the status.
    excluded: list[tuple[Clip, str]] = field(default_factory=list)
    lost_frames: int = 0  # annotated frames that the clips on disk lack
    details: dict[str, str] = field(default_factory=dict)  # id of an excluded clip -> why, where that is known

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", distinct(self.classes))

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def listed(self) -> int:
        """Number of clips listed in this split."""
        return len(self.clips) + len(self.missing) + len(self.excluded)

    @property
    def coverage(self) -> str:
        """A sentence that is reported with the metrics."""
        if not self.listed:
            return f"the {self.split} split lists no clip"
        present = len(self.clips) + len(self.excluded)
        sentence = f"{present} of {self.listed} clips of the {self.split} split are on disk"
        return f"{sentence}, {len(self.excluded)} of them known to be unusable" if self.excluded else sentence

    def without(self, bad: Mapping[str, str]) -> ClipList:
        """The same list with the clips in `bad` (id -> status) moved to `excluded`."""
        excluded = self.excluded + [(clip, bad[clip.id]) for clip in self.clips if clip.id in bad]
        return replace(self, clips=[clip for clip in self.clips if clip.id not in bad], excluded=excluded)

    def held_out(self, share: float, seed: int) -> tuple[ClipList, ClipList]:
        """Split off a random share of the videos: (the rest, the hold-out).

        The choice depends on the seed and the video id only, not on what is on disk. Of two videos or more, there is at
        least one in either part, where the share is neither 0 nor 1.
        """
        usable = {clip.video_id for clip in self.clips}
        every = usable.union(clip.video_id for clip in (*self.missing, *(clip for clip, _ in self.excluded)))
        drawn = held_out_videos(dict.fromkeys(every, ()), share, seed, usable)

        def part(split: str, chosen: bool) -> ClipList:
            def keep(clip: Clip) -> bool:
                return (clip.video_id in drawn) == chosen

            excluded = [(clip, why) for clip, why in self.excluded if keep(clip)]
            clips, missing = list(filter(keep, self.clips)), list(filter(keep, self.missing))
            return replace(self, split=split, clips=clips, missing=missing, excluded=excluded)

        return part(self.split, chosen=False), part("holdout", chosen=True)

    def thinned(self, share: float, seed: int) -> ClipList:
        """The same list with a random share of the clips of each class, at least one; those of a share are among those
        of every larger one. A clip of several classes counts for the first that it names."""
        if share >= 1:
            return self
        of_class: dict[int, list[Clip]] = {}
        for clip in self.clips:
            of_class.setdefault(clip.classes[0] if clip.classes else -1, []).append(clip)
        kept: set[str] = set()
        for clips in of_class.values():
            clips.sort(key=lambda clip: zlib.crc32(f"{seed}/share/{clip.id}".encode(errors="surrogateescape")))
            kept.update(clip.id for clip in clips[: max(1, round(share * len(clips)))])
        return replace(self, clips=[clip for clip in self.clips if clip.id in kept])


def held_out_videos(
    classes_of: Mapping[str, Sequence[Hashable]], share: float, draw: object, usable: Container[str]
) -> set[str]:
    """A share of the videos, such that each class with two or more has some on either side, where that can be.

    Each video is drawn by itself, by its key: others that come or go leave it where it is, but for a class of which
    all or none would be held out.

    Args:
        classes_of: key of a video -> its classes; those without any count as one.
        share: 0…1.
        draw: what the choice depends on beside the keys, such as a seed.
        usable: keys of the videos that count where a class needs some on either side.
    """
    draws = {key: zlib.crc32(f"{draw}/{key}".encode(errors="surrogateescape")) for key in classes_of}
    chosen = {key for key, number in draws.items() if number < share * 2**32}
    if not 0 < share < 1:
        return chosen
    members: dict[Hashable, list[str]] = defaultdict(list)
    for key in filter(usable.__contains__, classes_of):
        for each in classes_of[key] or (None,):
            members[each].append(key)
    for _, keys in sorted(members.items(), key=lambda item: (len(item[1]), str(item[0]))):
        ordered = sorted(keys, key=lambda key: (draws[key], key))
        if len(ordered) > 1 and not chosen.intersection(ordered):
            chosen.add(ordered[0])
        elif len(ordered) > 1 and chosen.issuperset(ordered):
            chosen.remove(ordered[-1])
    return chosen


def say_lists(lists: Collection[ClipList]) -> None:
    """Print what there is to know about the splits of a dataset and the files; what is so in all of them, once."""
    common = [note for note in next(iter(lists)).notes if all(note in clips.notes for clips in lists)] if lists else []
    for note in common:
        say(f"data: {note}", "yellow")
    for clips in lists:
        for note in clips.notes:
            if note not in common:
                say(f"{clips.split}: {note}", "yellow")
        say(f"{clips.split}: {clips.coverage}")


class Folders:
    """Which files a data folder has: one cached `scandir` per folder instead of one `stat` per clip.

    Raises:
        UserError: the root is no folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._files: dict[str, frozenset[str]] = {}
        if not os.path.isdir(self.root):
            state = "is a file" if os.path.exists(self.root) else "does not exist"
            raise UserError(
                f"The data folder {self.root} {state}; expected the folder that holds the clips and annotations: set "
                f"data.root to it, or make demo data with `{DEMO}`."
            )

    def files(self, folder: str) -> frozenset[str]:
        """Names of the files in `root/folder`; empty when there is no such folder."""
        if folder not in self._files:
            self._files[folder] = frozenset(entry.name for entry in _entries(self.root / folder) if entry.is_file())
        return self._files[folder]

    def beside(self, known: Collection[str]) -> list[str]:
        """Sorted paths of the other folders that lie beside the known ones, without hidden ones."""
        parents = {path.rpartition("/")[0] for path in known}
        found = {
            f"{parent}/{entry.name}".removeprefix("/")
            for parent in parents
            for entry in _entries(self.root / parent)
            if entry.is_dir() and not entry.name.startswith(".")
        }
        return sorted(found.difference(known))

    def has(self, path: str) -> bool:
        """Whether the file `path`, relative to the root and with "/" between its parts, exists."""
        folder, _, name = path.rpartition("/")
        return name in self.files(folder)

    def nearest(self, path: str) -> str:
        """What is there instead of the missing `path`: a clause such as "clips/ holds train, test"."""
        folder = path.rpartition("/")[0]
        while folder and not os.path.isdir(self.root / folder):
            folder = folder.rpartition("/")[0]
        names = sorted(entry.name for entry in _entries(self.root / folder) if not entry.name.startswith("."))
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{folder or self.root}/ holds {shown or 'nothing'}"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in (ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP):  # there is no such folder, or none can exist
            return []
        raise
