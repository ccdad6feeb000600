"""How long the videos of a folder are, found once and kept in a file beside them.

`.deepavfusion_durations.csv` has a line for each file that could be read, which counts as long as the file's size and
time are the same. Where the folder cannot be written to, it lies in the user's cache. It may come from anyone, as the
videos may: what is wrong in it is found anew, and a wrong duration does no more than a wrong header does.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from multiprocessing import current_process
from pathlib import Path
from typing import NamedTuple

from deepavfusion.data.lists.verified import STATUSES
from deepavfusion.data.lists.videos.find import Video, video_at
from deepavfusion.media.bounds import MAX_SECONDS
from deepavfusion.media.durations import playable
from deepavfusion.utils.console import progress_bar, say
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.files import write_csv
from deepavfusion.utils.launch.cores import cores
from deepavfusion.utils.pool import Lost, call_apart
from deepavfusion.utils.reading import own_rows

NAME = ".deepavfusion_durations.csv"
COLUMNS = ("path", "bytes", "modified", "seconds", "content", "status", "detail")
ENDS = 2**16  # bytes at either end of a file that tell it from others of its size
SECONDS = 30.0  # a file may take
MANY = 20  # files, from which on a line says how long it takes
NUMBER, CONTENT = re.compile(r"-?[0-9]{1,20}"), re.compile(r"[0-9a-f]{16}")
LONGEST = 300  # characters of a detail
MOST_OTHERS = 100_000  # lines of files that were not asked for, which are kept with the rest


class Known(NamedTuple):
    """What was found in a file.

    Args:
        seconds: up to where it has picture and sound, see `playable`; 0 where it cannot be used.
        content: a hash of its size and both ends, which copies of it and links to it share; empty: it cannot be read.
        status: "ok", or a status of the verify report.
        detail: a clause that explains it.
    """

    seconds: float
    content: str
    status: str
    detail: str = ""


MISSING = Known(0.0, "", "missing", "there is no such file")


def durations(root: Path, videos: Sequence[Video]) -> dict[str, Known]:
    """Path -> what was found in each file, by what is kept, or by opening it.

    Args:
        root: the folder that paths are relative to.
        videos: files below it.
    """
    places = (root / NAME, _in_cache(root))
    written, others = _read(places, videos)
    kept = {video: MISSING for video in videos if video.size < 0} | written
    kept |= {video: known for video in videos if (known := _unwritten.get(root, {}).get(video))}
    # Why a pipe cannot be read, or a file of somebody else, is said without opening it.
    unread = [video for video in videos if video not in kept and not _is_readable(root, video)]
    kept |= {video: look_into(video, os.fspath(root)) for video in unread}
    if todo := [video for video in videos if video not in kept]:
        try:
            for video, known in _open(root, todo):
                kept[video] = known
        finally:  # also of what was interrupted
            _keep(root, places, kept, others)
    return {video.path: kept[video] for video in videos}


def _open(root: Path, videos: Sequence[Video]) -> Iterator[tuple[Video, Known]]:
    """What is found in files by opening them, in processes that may crash, where there can be some."""
    with progress_bar() as bar:
        many = len(videos) >= MANY
        task = bar.add_task("durations of videos", total=len(videos)) if many else None
        look: Callable[[Video], Known] = partial(look_into, root=os.fspath(root))
        answers: Iterable[tuple[Video, Known | Lost]] = ((video, look(video)) for video in videos)
        if can_start_processes():
            answers = call_apart(look, videos, min(cores(), len(videos)), SECONDS)
        for video, found in answers:
            if isinstance(found, Lost):
                found = Known(0.0, "", "hung" if found.hung else "undecodable", found.detail[:LONGEST])
            yield video, found
            if task is not None:
                bar.advance(task)


def _is_readable(root: Path, video: Video) -> bool:
    """Whether it is a file, that this user may read; it may still be damaged."""
    place = root / video.path
    return os.path.isfile(place) and os.access(place, os.R_OK)


def can_start_processes() -> bool:
    """Whether there can be processes beside this one: not from a worker, nor where they would run the user's script
    again, which has no `if __name__ == "__main__":`."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if current_process().daemon:
        return False
    try:
        return script is None or "__main__" in Path(script).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def look_into(video: Video, root: str) -> Known:
    """What is found in a file, without decoding."""
    path = os.path.join(root, video.path)
    content = ""
    try:
        content = _content(path) if os.path.isfile(path) else ""  # a pipe would be waited for
        return Known(round(playable(path), 6), content, "ok")
    except DecodeError as error:
        return Known(0.0, content, error.reason, " ".join(error.detail.split())[:LONGEST])
    except OSError as error:
        return Known(0.0, content, "undecodable", f"it cannot be read ({error.strerror})")


def _content(path: str) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = sha256(f"{size}\n".encode() + file.read(ENDS))
        file.seek(max(0, size - ENDS))
        digest.update(file.read(ENDS))
    return digest.hexdigest()[:16]


# ---- what is kept


def _in_cache(root: Path) -> Path:
    """The file for a folder that cannot be written to."""
    name = sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return Path.home() / ".cache" / "deepavfusion" / "durations" / f"{name}.csv"


_unwritten: dict[Path, dict[Video, Known]] = {}  # folder -> what was found in this process and is in no file


def _read(places: Iterable[Path], videos: Sequence[Video]) -> tuple[dict[Video, Known], dict[Video, Known]]:
    """What is known of these files as they are now, and of others; nothing of a place that is damaged from there on."""
    wanted = {video.path: video for video in videos}
    found, others = dict[Video, Known](), dict[Video, Known]()
    for place in places:
        if not os.path.lexists(place):
            continue
        try:
            for _, cells in own_rows(place, COLUMNS, "it is made anew", end="\n"):
                line = _line(cells)
                if line is None:
                    raise UserError(f"{place} is damaged: what is in it of {cells[0]!a:.80} cannot be.")
                video, known = line
                if wanted.get(video.path) == video:
                    found.setdefault(video, known)
                elif video.path not in wanted and len(others) < MOST_OTHERS:
                    others.setdefault(video, known)
        except UserError as error:
            say(f"{str(error).partition(': it is made anew')[0].rstrip('.')}; it is made anew.", "yellow")
    return found, others


def _line(cells: Sequence[str]) -> tuple[Video, Known] | None:
    """The content of a line; None if it is not what `_keep` writes."""
    path, size, modified, length, content, status, detail = cells
    if not (NUMBER.fullmatch(size) and NUMBER.fullmatch(modified) and CONTENT.fullmatch(content)):
        return None
    try:
        seconds = float(length)
    except ValueError:
        return None
    right = 0 < seconds < MAX_SECONDS if status == "ok" else seconds == 0 and status in STATUSES
    if not right or len(detail) > LONGEST:
        return None
    return Video(path, int(size), int(modified)), Known(seconds, content, status, detail)


def _keep(root: Path, places: Sequence[Path], kept: dict[Video, Known], others: dict[Video, Known]) -> None:
    """Write what is known to the first place that can be written to.

    A file that cannot be read, or at which a process crashed or hung, is tried again at the next start.
    """
    lost = {video: known for video, known in kept.items() if not known.content}
    _unwritten[root] = {video: known for video, known in lost.items() if _is_readable(root, video)}
    there = {video: known for video, known in others.items() if video_at(video.path, root / video.path) == video}
    rows = [
        (video.path, video.size, video.modified, each.seconds, each.content, each.status, each.detail)
        for video, each in sorted({**kept, **there}.items(), key=lambda item: item[0].path)
        if each.content
    ]
    why = ""
    for place in places:
        # A name of its own: several processes may find the same at once, and the last one to be done counts.
        partial_file = place.with_name(f"{NAME}.{uuid.uuid4().hex[:12]}")
        try:
            if place is not places[0]:
                place.parent.mkdir(parents=True, exist_ok=True)
            write_csv(partial_file, [COLUMNS, *rows], end="\n")
            os.replace(partial_file, place)
            return
        except OSError as error:
            why = f"{place}: {error.strerror or error}"
            with suppress(OSError):
                partial_file.unlink()
    _unwritten[root] = kept
    say(f"how long the videos are cannot be kept ({why}), so that each start opens them all again.", "yellow")
