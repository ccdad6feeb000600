"""The videos below a folder."""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepavfusion.data.lists.text import count
from deepavfusion.media.files import VIDEO_ENDINGS
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import printable

MOST = 2_000_000  # files and folders that are looked at
DEEPEST = 64  # folders below each other
# Of file systems and sync programs: bins of deleted files, previews. Hidden in their own systems' way.
SYSTEM = {"lost+found", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "@eaDir", "#recycle"}


@dataclass(frozen=True, slots=True)
class Video:
    """A file: its path below the folder, bytes, and the time of its last change, ns; −1 where there is no such file."""

    path: str
    size: int
    modified: int


def find_videos(root: str) -> tuple[list[Video], list[str]]:
    """The videos below a folder, by their names' endings, and notes on what else there is.

    Links are followed; of a folder that is reached in several ways, its own place counts, else the first link. Hidden
    files and folders are not looked at, nor those of file systems.

    Args:
        root: an existing folder.

    Returns:
        The videos, sorted by path.

    Raises:
        UserError: a folder cannot be read, or there is no end to them.
    """
    found: list[Video] = []
    others: Counter[str] = Counter()
    again: list[str] = []
    for number, (path, entry) in enumerate(_entries(root, again), 1):
        if number > MOST:
            raise UserError(f"{root} has more than {MOST} files, expected videos of one set: set data.root deeper.")
        ending = os.path.splitext(path)[1].lower()
        if ending in VIDEO_ENDINGS:
            found.append(video_at(path, entry))
        elif "/" in path or ending != ".csv":  # lists and reports lie there
            others[ending or "no ending"] += 1
    notes = []
    if others:
        shown = ", ".join(f"{printable(ending)}: {number}" for ending, number in others.most_common(4))
        many = count(others.total(), "file is", "files are")
        notes.append(f"{many} not named like a video ({shown}), and not used.")
    if again:
        many = count(len(again), "folder is", "folders are")
        notes.append(f"{many} a link to another one below {root}, e.g. {again[0]}, and not read twice.")
    return sorted(found, key=lambda video: video.path), notes


def video_at(path: str, place: os.DirEntry[str] | Path) -> Video:
    """The video at a place; one that is not there, or that a link does not lead to, has no size."""
    try:
        status = place.stat()
    except (OSError, ValueError):
        return Video(path, -1, -1)
    return Video(path, status.st_size, status.st_mtime_ns)


def _entries(root: str, again: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Path and entry of whatever is no folder. Real folders come before links, and none twice; `again`: those that
    would."""
    seen: set[tuple[int, int]] = set()
    folders, links = deque([("", root, 0)]), deque[tuple[str, str, int]]()
    while folders or links:
        prefix, place, depth = (folders or links).popleft()
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                again.append(prefix.rstrip("/"))
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as scan:
                entries = sorted((entry for entry in scan if not _is_hidden(entry.name)), key=lambda e: e.name)
            if entries and not os.access(place, os.X_OK):  # it can be listed, and no file in it reached
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise UserError(
                f"the folder {place} cannot be read ({error.strerror}): make it readable, or move it away."
            ) from None
        for entry in entries:
            if not _is_folder(entry):
                yield prefix + entry.name, entry
            elif depth >= DEEPEST:
                raise UserError(f"{entry.path} lies {depth} folders deep, expected {DEEPEST} at most: move it up.")
            else:
                (links if entry.is_symlink() else folders).append((f"{prefix}{entry.name}/", entry.path, depth + 1))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
