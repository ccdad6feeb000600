"""The verify report as the clip lists read it: which clips are excluded."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from deepavfusion.data.lists.spreadsheet import ERROR
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.reading import damaged, own_rows

STATUSES = (
    *("ok", "missing", "hung", "no_video", "no_audio", "truncated", "undecodable", "bad_mask"),
    *("silent", "still", "too_short"),
)
"""If several apply, a clip's status is the one that comes first here, and `also` names the others."""

USABLE = frozenset({"ok", "silent", "still", "too_short"})  # for training; audio that is too short is mirrored


class ReportRow(NamedTuple):
    """One clip of one split, as text."""

    id: str
    split: str
    classes: str  # names, joined by "|"
    status: str
    also: str  # other statuses that apply, separated by spaces
    usable: str  # yes or no
    detail: str  # a clause that explains the status
    path: str  # relative to the report's folder if it lies below it, else absolute
    bytes: str  # size when it was verified; empty if missing
    modified: str  # time (UTC), likewise
    frames: str  # annotated seconds of a folder of images and masks, separated by spaces
    mask_values: str  # values other than 0 in their masks, separated by spaces

    @property
    def seconds(self) -> tuple[int, ...]:
        return tuple(map(int, self.frames.split()))

    @property
    def words(self) -> list[str]:
        """The status and the others that apply."""
        return [self.status, *self.also.split()]


COLUMNS = ",".join(ReportRow._fields)
INTEGERS = re.compile(r"( +-?[0-9]{1,9})* *")
SIGNATURE = re.compile(r"[0-9]{1,18} [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{9}Z| ")


def signature(path: str, seconds: Sequence[int] = ()) -> tuple[str, str] | None:
    """`ReportRow.bytes` and `.modified` of a clip's file, or of the files in a folder that a clip annotated at these
    seconds uses; None if there is no such file or folder."""
    files = [f"{path}/audio.wav"] if seconds else []
    for n in seconds:
        files += [f"{path}/frames/{n}.jpg", f"{path}/labels_semantic/{n}.png"]
    try:
        stats = [os.stat(file) for file in files if os.path.exists(file)] or [os.stat(path)]
        whole, rest = divmod(max(found.st_mtime_ns for found in stats), 10**9)
        modified = f"{datetime.fromtimestamp(whole, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
        return str(sum(found.st_size for found in stats)), modified
    except (OSError, ValueError):
        return None


def unchanged(row: ReportRow, found: tuple[str, str] | None) -> bool:
    """Whether a file is still the one that the row describes.

    Copying to another disk or through an archive may drop the fraction of a second.
    """
    if found is None or found[0] != row.bytes:
        return False
    whole = any(time.endswith(".000000000Z") for time in (found[1], row.modified))
    return found[1][:19] == row.modified[:19] if whole else found[1] == row.modified


def below(path: str, folder: str) -> str:
    """`ReportRow.path` of an absolute path, for a report in `folder`."""
    return path[len(folder) + 1 :] if path.startswith(f"{folder}/") else path


def is_row(cells: Sequence[object]) -> bool:
    """Whether these may be the cells of a `ReportRow`."""
    if len(cells) != len(ReportRow._fields) or not all(isinstance(cell, str) for cell in cells):
        return False
    row = ReportRow(*cells)  # type: ignore[arg-type]
    right = row.usable in ("yes", "no") and SIGNATURE.fullmatch(f"{row.bytes} {row.modified}")
    return bool(right and INTEGERS.fullmatch(f" {row.frames} {row.mask_values}") and {*row.words} <= {*STATUSES})


def read_report(report: Path) -> Iterator[ReportRow]:
    """The rows of a report. A last line that was cut off is skipped: older versions appended to the file.

    Raises:
        UserError: the file is not a report, or is damaged.
    """
    instead = (
        "fix the line, or remove the file and run `python src/prepare.py command=verify` again, or set "
        "data.verify_report to another file"
    )
    for line, cells in own_rows(report, ReportRow._fields, instead, end="\n"):
        if not is_row(cells) or ERROR.fullmatch(cells[0]):
            raise damaged(report, line, cells, ReportRow._fields, instead)
        # Few distinct values: interned, a report of two million clips stays small.
        yield ReportRow(cells[0], *map(sys.intern, cells[1:7]), *cells[7:])


def bad_clips(report: Path, exclude: Collection[str]) -> dict[str, str]:
    """Clips that a report excludes and whose files have not changed since: id -> status.

    A clip of several splits is excluded only if all its rows agree. `missing` needs no entry: list readers check that.

    Args:
        report: the file; there need not be one.
        exclude: the statuses for which a clip is excluded.

    Raises:
        UserError: an unknown status, or a damaged report.
    """
    check_statuses(exclude)
    if not report.exists():
        return {}
    folder = os.path.abspath(report.parent)

    def why(row: ReportRow) -> str | None:
        word = next((word for word in row.words if word in exclude), None)
        return word if word and unchanged(row, signature(os.path.join(folder, row.path), row.seconds)) else None

    bad = {row.id: word for row in read_report(report) if (word := why(row))}
    for row in read_report(report) if bad else ():
        if row.id in bad and row.status != "missing" and not why(row):
            del bad[row.id]
    return bad


def check_statuses(exclude: Collection[str]) -> None:
    """Raise a `UserError` unless these are statuses for which clips can be excluded."""
    words = [word for word in STATUSES if word not in ("ok", "missing")]
    if unknown := [word for word in exclude if word not in words]:
        raise UserError(f"data.exclude has the word {unknown[0]!r}; expected some of {', '.join(words)}.")
