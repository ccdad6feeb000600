"""Reads list files: CSV with line numbers, JSON, names that are safe in paths; and pieces of messages.

The readers take the data folder, the file's path below it, and, for messages, what it holds and the config key that
names it. Files are UTF-8; a byte-order mark is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deepavfusion.data.lists.spreadsheet import PUBLISHED, fault, looks_changed
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import no_file
from deepavfusion.utils.reading import MAX_SHOWN, RECORD, csv_rows, read_json

SPREADSHEET_LINES = 2**20  # the most that a spreadsheet program keeps
SPLIT_KEYS = "data.train_split, data.val_split or data.eval_split"


def check_choice(what: str, value: str, known: Iterable[str], key: str = SPLIT_KEYS) -> None:
    """Raise a `UserError` unless `value` is a known one; `key` is the config key that sets it."""
    if value not in known:
        raise UserError(f"There is no {what} {value!r}; expected one of {', '.join(known)}: set {key}.")


def read_rows(
    root: Path, annotations: str, columns: str, key: str = "data.index.annotations", comments: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Lines of a CSV file with their numbers from 1, without blank ones.

    Args:
        comments: whether lines `# …` at the top are comments; elsewhere a line that begins with "#" is an error.

    Raises:
        UserError: no such file, or not UTF-8; a line that is no CSV, or that a spreadsheet program changed.
    """
    path, top = root / annotations, comments
    for line, cells in read_csv(root, annotations, columns, key):
        if top and cells[0].startswith("# "):
            continue
        top = False
        if looks_changed(cells[0]) and (cells[0].startswith("#") or fault(cells)):
            raise malformed(f"{path}, line {line}", cells, f"`{columns}`")
        yield line, cells


def read_csv(
    root: Path, annotations: str, columns: str, key: str, header: Sequence[str] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Lines of a CSV file of any content, as `read_rows` gives them.

    Args:
        header: columns by which other separators than commas are recognised.
    """
    path = _list_file(root, annotations, f"a CSV file with lines `{columns}`", key)
    line = 0
    for line, cells in csv_rows(path, columns, header):
        yield line, cells
    if line == SPREADSHEET_LINES:
        raise UserError(
            f"{path} has exactly {SPREADSHEET_LINES} lines, the most that spreadsheet programs keep, so that the rest "
            f"is lost; expected all lines `{columns}`: {PUBLISHED}."
        )


def malformed(where: str, cells: Sequence[str], expected: str) -> UserError:
    """The error of a line: what it reads, why, where that can be seen, what was expected, and what to do."""
    line = ",".join(cells)
    line = line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}…"
    why = fault(cells)
    if not why and cells and cells[0].startswith("#"):
        why = "it begins with '#', as comments do, which are read at the top of AudioSet's lists only"
        return UserError(f"{where}, reads `{line}`: {why}; expected {expected}: fix the line, or remove it.")
    if why:
        return UserError(f"{where}, reads `{line}`: {why}; expected {expected}: {PUBLISHED}.")
    return UserError(f"{where}, reads `{line}`; expected {expected}: fix the line.")


def read_table(root: Path, annotations: str, columns: str, key: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV file with a header, as dicts by column; numbered as in `read_rows`. More `columns` are allowed."""
    rows = read_rows(root, annotations, columns, key)
    line, header = next(rows, (1, []))
    if not set(columns.split(",")) <= set(header):
        raise UserError(
            f"{root / annotations}, line {line}, reads `{','.join(header)}`; expected the header `{columns}`: put it "
            f"there, or set {key} to the file that has it."
        )
    for line, cells in rows:
        if len(cells) != len(header):
            expected = f"`{','.join(header)}` and, around cells with commas, double quotes"
            raise malformed(f"{root / annotations}, line {line}", cells, expected)
        yield line, dict(zip(header, cells, strict=True))


def read_object(root: Path, annotations: str, content: str, key: str) -> Any:
    """The content of a JSON file, in which no object may repeat a key."""
    path = _list_file(root, annotations, f"a JSON file with {content}", key)

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise UserError(f"{path} has the key {name!r} twice in one object; expected {content}: fix the file.")
            found[name.encode().decode()] = value  # half a surrogate pair raises a UnicodeEncodeError
        return found

    return read_json(path, RECORD, content, without_repeats)


def _list_file(root: Path, annotations: str, content: str, key: str) -> Path:
    if not isinstance(annotations, str) or leads_out(annotations):
        raise UserError(f"The path {annotations!r} leaves the data folder {root}; expected one below it: fix {key}.")
    path = root / annotations
    if wrong := no_file(path):
        raise UserError(
            f"The list {path} {wrong}; expected {content}: put it there, or set {key} to its place under {root}."
        )
    return path


def leads_out(path: str) -> bool:
    """Whether a path leaves the data folder."""
    return path.startswith("/") or "\0" in path or ".." in path.split("/")


def check_name(value: str, what: str, where: str) -> str:
    """The id or label, which goes into a path; raises a `UserError` if it could leave its folder."""
    if not value or "/" in value or "\\" in value or "\0" in value or ".." in value:
        raise UserError(
            f"{where}: the {what} {value!r} cannot be part of a file name; expected one without '/', '\\' and "
            "'..': fix the line."
        )
    return value


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or nothing when no known name is near."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def count(number: int, one: str, more: str = "") -> str:
    """ "1 clip", "2 clips"; or with a verb, count(2, "clip is", "clips are")."""
    return f"{number} {one if number == 1 else more or one + 's'}"
