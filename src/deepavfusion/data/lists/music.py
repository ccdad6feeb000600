"""MUSIC's layout on disk: the published JSON lists, and a folder of clips for each instrument.

MUSIC_solo_videos.json, MUSIC_duet_videos.json, MUSIC21_solo_videos.json    {"videos": {instrument: [ids]}}
clips/<instrument>/<id>*.mp4    a duet's instrument is "a b", its folder too; one video may have several clips
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepavfusion.data.lists.clip_list import ClipList, Folders, check_root
from deepavfusion.data.lists.on_disk import check_wildcard, fill_in, matches, parted, strangers
from deepavfusion.data.lists.text import check_name, check_split, count, read_json, suggestion
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

PUBLISHED = ("MUSIC_solo_videos", "MUSIC_duet_videos", "MUSIC21_solo_videos")
CONTENT = '{"videos": {instrument: [ids]}}'
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")  # all of one length, so that none is the beginning of another
TEST_VIDEOS = 130
SMALL_STEP = 10


@dataclass(frozen=True)
class Video:
    """An entry of a list: a video under the name of its instrument, or of a duet's two."""

    id: str
    name: str
    path: str  # of its clips, with the pattern's "*"
    file: str = field(compare=False)

    @property
    def expected(self) -> str:
        """The path of a clip when there is one."""
        return self.path.replace("*", "")


def music(
    root: str | Path,
    split: str,
    clip_pattern: str = "clips/{instrument}/{id}*.mp4",
    lists: Sequence[str] = ("MUSIC_solo_videos",),
) -> ClipList:
    """Read one split of MUSIC or MUSIC-21.

    The split follows from the solo videos of the chosen lists, see `ids_of_test`. A video whose id is none of theirs
    is train: so are the duets, whose parts have no ground truth, and the test split of a solo list stays the same
    when duets are added. A duet that has the id of a test video is test, too.

    Args:
        root: the folder that holds the lists and the clips.
        split: "train", "test", or "duet": the videos of two players in the chosen lists.
        clip_pattern: path of a video's clips under the root; `str.format` fields id and instrument. "*" in the file
            name is nothing, or any text that begins with "_", "." or "-".
        lists: names of the lists under the root, without ".json".

    Returns:
        The split; `classes` are the sorted instruments of the chosen solo lists. A video without a clip on disk is
        one missing clip. A duet has both labels, and `Clip.label` is that of the instrument named first;
        `multi_label` if there are duets in the lists, and then solos have their one label in `Clip.labels` as well.

    Raises:
        UserError: no root, no list, a malformed one, no solo list, or none of the split's videos on disk.
    """
    check_split("MUSIC", split, ("train", "test", "duet"))
    base = check_root(root)
    check_wildcard(clip_pattern)
    files = _files(lists)
    every = [video for file in files for video in _videos(base, file, clip_pattern)]
    solos = [video for video in every if " " not in video.name]
    if not solos:
        raise UserError(
            f"The lists {', '.join(files) or '[]'} name no solo videos; expected at least one solo list, which gives "
            f"the classes and the split: set data.index.lists, e.g. [{PUBLISHED[0]}]."
        )
    classes = sorted({video.name for video in solos})
    labels = {video.name: _labels(video, classes, base) for video in every}
    multi_label = any(len(of_name) > 1 for of_name in labels.values())
    tests = ids_of_test(video.id for video in solos)
    listed, notes = _unique(every)
    folders = Folders(base)
    notes += _strangers(base, folders, every, files, clip_pattern)

    def clips() -> Iterator[tuple[Clip, bool]]:
        for video in listed:
            of_split = " " in video.name if split == "duet" else (video.id in tests) == (split == "test")
            if not of_split:
                continue
            of_video = labels[video.name]
            found = matches(folders, video.path)
            for part, path in found or [("", video.expected)]:
                clip = Clip(
                    id=f"{video.id}{part}" if part[:1] in ("", "_", ".", "-") else f"{video.id}_{part}",
                    path=f"{base}/{path}",
                    label=of_video[0],
                    video=video.id,
                    labels=tuple(sorted(set(of_video))) if multi_label else (),
                )
                yield clip, bool(found)

    there, missing = parted(base, split, clips(), folders)
    return ClipList(split, there, classes, missing=missing, notes=notes, multi_label=multi_label)


def ids_of_test(solo_ids: Iterable[str]) -> set[str]:
    """The ids that are test: of the n sorted solo ids every ⌊n / 130⌋-th, beginning with the first, as published.

    Below n = 260 that step would be 0 or 1 and leave nothing to train on: there, our own rule, it is 10.
    """
    ids = sorted(set(solo_ids))
    step = len(ids) // TEST_VIDEOS
    return set(ids[:: step if step > 1 else SMALL_STEP])


def _files(lists: Sequence[str]) -> list[str]:
    if isinstance(lists, str) or not all(isinstance(name, str) for name in lists):
        raise UserError(f"data.index.lists is {lists!r}; expected names in brackets: set data.index.lists=[{lists}].")
    return [f"{name.removesuffix('.json')}.json" for name in lists]


def _videos(root: Path, file: str, pattern: str) -> list[Video]:
    """The videos of a list in its order, repeated ones too."""
    content = read_json(root, file, CONTENT, "data.index.lists")
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict) or not all(isinstance(ids, list) for ids in videos.values()):
        raise UserError(f"{root / file} is no list of MUSIC; expected {CONTENT}: put the published file there.")
    found = []
    for name, ids in videos.items():
        check_name(name, "instrument", str(root / file))
        for video in ids:
            if not isinstance(video, str) or not VIDEO_ID.fullmatch(video):
                raise UserError(
                    f"{root / file} lists {video!r} under {name!r}; expected the 11 letters, digits, '-' and '_' of a "
                    "YouTube id: mend the list."
                )
            found.append(Video(video, name, fill_in(pattern, {"id": video, "instrument": name}), file))
    return found


def _labels(video: Video, classes: list[str], root: Path) -> tuple[int, ...]:
    """Class indices of an instrument or a duet, in the order of its name."""
    parts = video.name.split(" ")
    for part in parts:
        if part not in classes:
            raise UserError(
                f"{root / video.file} has the duet {video.name!r}, but no solo list has {part!r}; expected two "
                "instruments of the solo lists with a space between them: mend the list, or add the solo list to "
                f"data.index.lists{suggestion(part, classes) or '.'}"
            )
    return tuple(classes.index(part) for part in parts)


def _unique(every: list[Video]) -> tuple[list[Video], list[str]]:
    """One entry for each id, the first; notes on those that a list repeats, or that have several instruments."""
    first: dict[str, Video] = {}
    seen: set[tuple[str, Video]] = set()
    repeated: list[Video] = []
    at_odds: list[Video] = []
    for video in every:
        if (video.file, video) in seen:
            repeated.append(video)
        elif first.setdefault(video.id, video) != video:
            at_odds.append(video)
        seen.add((video.file, video))
    notes = []
    if repeated:
        one = repeated[0]
        notes.append(
            f"{count(len(repeated), 'video is', 'videos are')} repeated in a list, e.g. {one.id} in {one.file}; "
            "each counts once."
        )
    if at_odds:
        one = at_odds[0]
        notes.append(
            f"The lists give {count(len(at_odds), 'video')} different instruments, e.g. {one.id} "
            f"'{first[one.id].name}' and '{one.name}'; the first counts."
        )
    return list(first.values()), notes


def _strangers(root: Path, folders: Folders, every: list[Video], files: list[str], pattern: str) -> list[str]:
    """Notes on what is on disk and in no list, be it a chosen or another published one."""
    known = list(every)
    notes = []
    for file in _files(PUBLISHED):
        if file not in files and folders.has(file):
            try:
                known += _videos(root, file, pattern)
            except UserError as error:
                notes.append(f"A list that is not used cannot be read: {error}")
    videos = dict.fromkeys(known)
    paths = [path for video in videos for _, path in matches(folders, video.path)]
    listed = dict.fromkeys([*paths, *(video.expected for video in videos)])
    return notes + strangers(folders, listed, pattern, "the lists of MUSIC", [video.name for video in videos])
