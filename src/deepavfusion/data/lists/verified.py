"""The verify report as the clip lists read it: which clips are unusable."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, NamedTuple

from deepavfusion.utils.errors import UserError

STATUSES = (
    "ok",
    "missing",
    "hung",
    "no_video",
    "no_audio",
    "truncated",
    "undecodable",
    "bad_mask",
    "silent",
    "still",
    "too_short",
)
"""Where several hold, the one that comes first here (after ok) is a clip's status, and `also` names the others."""


USABLE = frozenset({"ok", "silent", "still", "too_short"})  # training can use them; too short is extended by its mirror


class Row(NamedTuple):
    """One clip of one split, as text.

    Args:
        id, split: of the clip.
        classes: its class names, joined by "|".
        status: one of `STATUSES`; also: others that hold, too, separated by spaces.
        usable: yes or no.
        detail: a clause for a person.
        path: relative to the report's folder if it lies below, else absolute.
        bytes, modified: size and time of the last change when it was verified, UTC; empty if missing.
        frames: the annotated seconds of a folder of pictures and masks, separated by spaces.
        mask_values: what their masks hold besides 0, separated by spaces.
    """

    id: str
    split: str
    classes: str
    status: str
    also: str
    usable: str
    detail: str
    path: str
    bytes: str
    modified: str
    frames: str
    mask_values: str

    @property
    def seconds(self) -> tuple[int, ...]:
        return tuple(map(int, self.frames.split()))

    @property
    def words(self) -> list[str]:
        """The status and all else that holds."""
        return [self.status, *self.also.split()]


COLUMNS = ",".join(Row._fields)


def signature(path: str, seconds: Sequence[int] = ()) -> tuple[str, str] | None:
    """`Row.bytes` and `Row.modified` of a clip's file, or of those files of a folder that a clip with these annotated
    seconds uses; None if there is no such file or folder."""
    try:
        if not seconds:
            found = os.stat(path)
            return str(found.st_size), _utc(found.st_mtime_ns)
        names = [
            f"{part}/{n}.{kind}" for n in seconds for part, kind in (("frames", "jpg"), ("labels_semantic", "png"))
        ]
        files = [f"{path}/{name}" for name in ("audio.wav", *names)]
        stats = [os.stat(file) for file in files if os.path.exists(file)] or [os.stat(path)]
        return str(sum(found.st_size for found in stats)), _utc(max(found.st_mtime_ns for found in stats))
    except (OSError, ValueError):
        return None


def unchanged(row: Row, found: tuple[str, str] | None) -> bool:
    """Whether a file still is the one that the row tells of.

    Copies to another disk or through an archive may lose the fractions of a second.
    """
    if found is None or found[0] != row.bytes:
        return False
    whole = any(time.endswith(".000000000Z") for time in (found[1], row.modified))
    return found[1][:19] == row.modified[:19] if whole else found[1] == row.modified


def _utc(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def below(path: str, folder: str) -> str:
    """`Row.path` of an absolute path, for a report in `folder`."""
    return path[len(folder) + 1 :] if path.startswith(f"{folder}/") else path


def read_rows(report: Path) -> Iterator[Row]:
    """The lines of a report; a last line without its end, which a killed run leaves, is passed over.

    Raises:
        UserError: the file is no report, or damaged.
    """
    try:
        with open(report, "rb") as raw:
            whole = _whole(raw)
        with open(report, encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.reader(_until(file, whole), strict=True)
            for number, cells in enumerate(reader):
                if number == 0:
                    good = cells == list(Row._fields)
                else:
                    good = len(cells) == len(Row._fields) and cells[3] in STATUSES
                if not good:
                    raise _damaged(report, f"line {reader.line_num}, reads `{','.join(cells)[:80]}`")
                if number:
                    # Few different words: shared, a report of two million clips stays small.
                    yield Row(cells[0], *map(sys.intern, cells[1:7]), *cells[7:])
    except csv.Error as error:
        raise _damaged(report, f"line {reader.line_num}, cannot be read as CSV ({error})") from None
    except OSError as error:
        raise UserError(
            f"The verify report {report} cannot be read ({error.strerror}); expected the file that `python "
            "src/prepare.py command=verify` wrote: set data.verify_report to it, or to null."
        ) from None


def _damaged(report: Path, what: str) -> UserError:
    return UserError(
        f"The verify report {report} is damaged: {what}; expected `{COLUMNS}`: mend the line, or remove the file and "
        "run `python src/prepare.py command=verify` again, or set data.verify_report to another place."
    )


def _whole(file: IO[bytes]) -> int:
    """Bytes of an open file up to the end of its last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 65536)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _until(file: IO[str], size: int) -> Iterator[str]:
    """Lines that lie within the first `size` bytes."""
    done = 0
    for line in file:
        done += len(line.encode("utf-8", "surrogateescape"))
        if done > size:
            return
        yield line


def bad_clips(report: Path, exclude: Collection[str]) -> dict[str, str]:
    """Clips that a report names as unusable and whose files have not changed since: id -> status.

    A clip of several splits is bad only if all its lines say so. `missing` needs no entry: lists look themselves.

    Args:
        report: the file; there need not be one.
        exclude: the words for which a clip is left out.

    Raises:
        UserError: an unknown word, or a damaged report.
    """
    _check_words(exclude)
    if not report.exists():
        return {}
    folder = os.path.abspath(report.parent)

    def why(row: Row) -> str | None:
        word = next((word for word in row.words if word in exclude), None)
        return word if word and unchanged(row, signature(os.path.join(folder, row.path), row.seconds)) else None

    bad = {row.id: word for row in read_rows(report) if (word := why(row))}
    for row in read_rows(report) if bad else ():
        if row.id in bad and row.status != "missing" and not why(row):
            del bad[row.id]
    return bad


def _check_words(exclude: Collection[str]) -> None:
    words = [word for word in STATUSES if word not in ("ok", "missing")]
    unknown = [word for word in exclude if word not in words]
    if unknown:
        raise UserError(f"data.exclude has the word {unknown[0]!r}; expected some of {', '.join(words)}.")
