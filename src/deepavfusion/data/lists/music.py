"""MUSIC on disk: the published JSON lists, and a folder of clips for each instrument.

MUSIC_solo_videos.json, MUSIC_duet_videos.json, MUSIC21_solo_videos.json    {"videos": {instrument: [ids]}}
clips/<instrument>/<id>*.mp4    a duet's instrument is "a b", its folder too; one video may have several clips
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepavfusion.data.lists.clip_list import ClipList, Folders
from deepavfusion.data.lists.on_disk import fill_in, list_clips, matches, unlisted_files
from deepavfusion.data.lists.spreadsheet import YOUTUBE_ID
from deepavfusion.data.lists.text import check_choice, check_name, count, read_object, suggestion
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

PUBLISHED = ("MUSIC_solo_videos", "MUSIC_duet_videos", "MUSIC21_solo_videos")
CONTENT = '{"videos": {instrument: [ids]}}'
TEST_VIDEOS = 130
SMALL_STEP = 10


@dataclass(frozen=True)
class Video:
    """An entry of a list: a video and its instrument, or the two of a duet."""

    id: str
    name: str
    path: str  # of its clips, with the pattern's "*"
    file: str = field(compare=False)


def music(
    root: str | Path,
    split: str,
    clip_pattern: str = "clips/{instrument}/{id}*.mp4",
    lists: Sequence[str] = ("MUSIC_solo_videos",),
) -> ClipList:
    """Read one split of MUSIC or MUSIC-21.

    The solo videos of the chosen lists determine the split, see `ids_of_test`. All other videos are train: duets have
    no ground-truth stems, and adding them leaves the test split unchanged. A duet with the id of a test video is test.

    Args:
        root: the data folder; the other paths are below it.
        split: "train", "test", or "duet": the videos of two players in the chosen lists.
        clip_pattern: `str.format` fields id and instrument; "*" as in `matches`.
        lists: names of the lists, without ".json".

    Returns:
        The split; `classes` are the sorted instruments of the chosen solo lists. A video without a clip on disk is
        one missing clip. A duet has both labels; `Clip.label` is the instrument named first. `multi_label` if the lists
        have duets; then the label of a solo is in `Clip.labels`, too.

    Raises:
        UserError: no root, no list, a malformed one, no solo list, or none of the split's videos on disk.
    """
    check_choice("split of MUSIC", split, ("train", "test", "duet"))
    folders = Folders(root)
    files = _files(lists)
    every = [video for file in files for video in _videos(folders.root, file, clip_pattern)]
    solos = [video for video in every if " " not in video.name]
    if not solos:
        raise UserError(
            f"The lists {', '.join(files) or '[]'} name no solo videos; expected at least one solo list, which gives "
            f"the classes and the split: set data.index.lists, e.g. [{PUBLISHED[0]}]."
        )
    classes = sorted({video.name for video in solos})
    labels = {video.name: _labels(video, classes, folders.root) for video in every}
    multi_label = any(len(of_name) > 1 for of_name in labels.values())
    tests = ids_of_test(video.id for video in solos)
    listed, notes = _unique(every)
    notes += _unlisted_files(folders, every, files, clip_pattern)
    clips: list[Clip] = []
    for video in listed:
        if " " in video.name if split == "duet" else (video.id in tests) == (split == "test"):
            clips += _clips(folders, video, labels[video.name], multi_label)
    return list_clips(folders, split, clips, classes, notes, multi_label=multi_label)


def _clips(folders: Folders, video: Video, labels: tuple[int, ...], multi_label: bool) -> Iterator[Clip]:
    """The clips of a video; a single missing one if there are none."""
    several = tuple(sorted(set(labels))) if multi_label else ()
    for part, path in matches(folders, video.path) or [("", video.path.replace("*", ""))]:
        name = f"{video.id}{part}" if part[:1] in ("", "_", ".", "-") else f"{video.id}_{part}"
        yield Clip(name, f"{folders.root}/{path}", labels[0], video.id, several)


def ids_of_test(solo_ids: Iterable[str]) -> set[str]:
    """The test ids: of the n sorted solo ids every ⌊n / 130⌋-th from the first, as published.

    For n < 260 that step would leave nothing to train on; there it is 10, which is our rule.
    """
    ids = sorted(set(solo_ids))
    step = len(ids) // TEST_VIDEOS
    return set(ids[:: step if step > 1 else SMALL_STEP])


def _files(lists: Sequence[str]) -> list[str]:
    if isinstance(lists, str) or not all(isinstance(name, str) for name in lists):
        raise UserError(f"data.index.lists is {lists!r}; expected names in brackets: set data.index.lists=[{lists}].")
    return [f"{name.removesuffix('.json')}.json" for name in lists]


def _videos(root: Path, file: str, pattern: str) -> list[Video]:
    """The videos of a list in its order, with repeated ones."""
    content = read_object(root, file, CONTENT, "data.index.lists")
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict) or not all(isinstance(ids, list) for ids in videos.values()):
        raise UserError(f"{root / file} is not a list of MUSIC; expected {CONTENT}: put the published file there.")
    found = []
    for name, ids in videos.items():
        check_name(name, "instrument", str(root / file))
        for video in ids:
            if not isinstance(video, str) or not YOUTUBE_ID.fullmatch(video):
                raise UserError(
                    f"{root / file} lists {video!r} under {name!r}; expected the 11 letters, digits, '-' and '_' of a "
                    "YouTube id: fix the list."
                )
            found.append(Video(video, name, fill_in(pattern, id=video, instrument=name), file))
    return found


def _labels(video: Video, classes: list[str], root: Path) -> tuple[int, ...]:
    """Class indices of an instrument or a duet, in the order of its name."""
    parts = video.name.split(" ")
    for part in parts:
        if part not in classes:
            raise UserError(
                f"{root / video.file} has the duet {video.name!r}, but no solo list has {part!r}; expected two "
                "instruments of the solo lists with a space between them: fix the list, or add the solo list to "
                f"data.index.lists{suggestion(part, classes) or '.'}"
            )
    return tuple(classes.index(part) for part in parts)


def _unique(every: list[Video]) -> tuple[list[Video], list[str]]:
    """The first entry of each id; notes on repeated ones and on those with several instruments."""
    first = {video.id: video for video in reversed(every)}
    times = Counter((video.file, video) for video in every)
    repeated = [video for (_, video), n in times.items() for _ in range(1, n)]
    at_odds = [video for _, video in times if video != first[video.id]]
    notes = []
    if repeated:
        what = count(len(repeated), "video is", "videos are")
        notes.append(f"{what} repeated in a list, e.g. {repeated[0].id} in {repeated[0].file}; each counts once.")
    if at_odds:
        one = at_odds[0]
        notes.append(
            f"The lists give {count(len(at_odds), 'video')} different instruments, e.g. {one.id} "
            f"'{first[one.id].name}' and '{one.name}'; the first counts."
        )
    return list(first.values()), notes


def _unlisted_files(folders: Folders, every: list[Video], files: list[str], pattern: str) -> list[str]:
    """Notes on files that neither the chosen lists nor other published ones name."""
    known = list(every)
    notes = []
    for file in _files(PUBLISHED):
        if file not in files and folders.has(file):
            try:
                known += _videos(folders.root, file, pattern)
            except UserError as error:
                notes.append(f"An unused list cannot be read: {error}")
    paths = [path for video in dict.fromkeys(known) for _, path in matches(folders, video.path)]
    listed = dict.fromkeys([*paths, *(video.path.replace("*", "") for video in known)])
    return notes + unlisted_files(folders, listed, pattern, "the lists of MUSIC", {video.name for video in known})
