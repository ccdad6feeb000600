"""The CSV file that a user may write about a folder of videos."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepavfusion.data.lists.text import leads_out, read_csv
from deepavfusion.media.bounds import MAX_SECONDS
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import from_cell, look
from deepavfusion.utils.reading import MAX_SHOWN

COLUMNS = ("path", "start", "end", "label", "split")
EXPECTED = "path,start,end,label,split"
KEY = "data.index.annotations"
MOST_LABELS = 1000  # of a line


@dataclass(frozen=True, slots=True)
class Row:
    """A line: a path below the folder, the part of the video (s; None: to its end), labels, and the split, if given."""

    line: int
    path: str
    start: float
    end: float | None
    labels: tuple[str, ...]
    split: str


def read_table(root: Path, annotations: str) -> Iterator[Row]:
    """The lines of a CSV file with a header, of whose columns only `path` is needed, in any order.

    Args:
        root: the folder of the videos.
        annotations: path of the file below it.

    Raises:
        UserError: no such file, no header, or a line that is not right.
    """
    places: dict[str, int] | None = None
    looks: dict[str, dict[str, str]] = {}
    for line, cells in read_csv(root, annotations, EXPECTED, KEY, header=("path",)):
        where = f"{root / annotations}, line {line}"
        if places is None:
            places = _header(cells, where)
            continue
        if len(cells) != len(places):
            raise _wrong(where, cells, f"{len(places)} cells, with double quotes around those that have commas")
        of = {name: cells[n] for name, n in places.items()}
        yield Row(
            line,
            _path(root, of["path"], where, looks),
            _seconds(of.get("start", ""), "start", where) or 0.0,
            _seconds(of.get("end", ""), "end", where),
            _labels(of.get("label", ""), where),
            of.get("split", ""),
        )
    if places is None:
        raise UserError(f"{root / annotations} is empty; expected the header `{EXPECTED}`: write it, or fix {KEY}.")


def _header(cells: list[str], where: str) -> dict[str, int]:
    names = [cell.lower() for cell in cells]
    unknown = [name for name in names if name not in COLUMNS]
    if "path" not in names or unknown or len(set(names)) < len(names):
        raise _wrong(where, cells, f"a header with some of `{EXPECTED}`, path among them, each once")
    return {name: n for n, name in enumerate(names)}


def _wrong(where: str, cells: list[str], expected: str) -> UserError:
    line = ",".join(cells)[:MAX_SHOWN]
    return UserError(f"{where}, reads `{line}`; expected {expected}: fix the line.")


def _path(root: Path, cell: str, where: str, looks: dict[str, dict[str, str]]) -> str:
    """The path below the root, as the disk spells it."""
    given = cell.removeprefix(f"{root}/").removeprefix(f"{os.path.abspath(root)}/")
    if not given or leads_out(given):
        raise UserError(
            f"{where}, names the video {cell!r:.{MAX_SHOWN}}; expected a path below {root}: fix the line, or make a "
            "link to the video there."
        )
    path = os.path.normpath(given)
    for name in (path, from_cell(path)):  # the second as our own CSV files write it
        if os.path.lexists(root / name):
            return name
    folder, name = os.path.split(path)
    if folder not in looks:
        try:
            looks[folder] = {look(other): other for other in os.listdir(root / folder)}
        except OSError:
            looks[folder] = {}
    return os.path.join(folder, looks[folder].get(look(name), name))  # with accents in another form


def _seconds(cell: str, name: str, where: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_SECONDS:
        raise UserError(
            f"{where}, has the {name} {cell!r:.{MAX_SHOWN}}; expected seconds such as 12.5, with a point, at most "
            f"{MAX_SECONDS:.0f}, or nothing: fix the line."
        )
    return value


def _labels(cell: str, where: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(filter(None, (each.strip() for each in cell.split(";")))))
    if len(found) > MOST_LABELS or any(len(each) > MAX_SHOWN for each in found):
        raise UserError(
            f"{where}, has {len(found)} labels, or one of more than {MAX_SHOWN} characters; expected some names with ; "
            "between them: fix the line."
        )
    return found
