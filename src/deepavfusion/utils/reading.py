"""Reads records and lists that anyone may have written: text, lines, CSV, JSON, YAML.

What is read takes no more memory than its reader allows, and where it is not what it should be, one sentence says so.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import yaml

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import regular_file
from deepavfusion.utils.names import from_cell

LONGEST_LINE = 2**20  # characters
MOST_LINES, MOST_CHARACTERS = 2**22, 2**30  # of a list; two million clips take half of it
MAX_SHOWN = 200  # characters of a line in a message
RECORD = 2**27  # bytes in memory, of a record that is not about each clip
# Bytes in memory that each of these brings at most: half a text, a list, a dict of one key, another number or place.
MEMORY = {b'"': 32, b"[": 96, b"{": 232, b",": 40}
MULTIPLE = 16  # of its size, that a large JSON file of ours takes at most: that of many short names
SEPARATORS = ",;\t"  # of CSV files; spreadsheet programs write all of them
MOST_DIGITS = 40  # of a number in YAML; Python takes minutes for one of a million in base 60, and does not print it


def read_text(path: Path, most: int, expected: str) -> str:
    """The text of a record, of at most so many bytes.

    Args:
        path: of a regular file.
        most: bytes.
        expected: what it should hold, for messages.

    Raises:
        UserError: it cannot be read, is too large, or not UTF-8.
    """
    try:
        return _bytes(path, most, expected).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): expected {expected}.") from None


def read_json(path: Path, most: int, expected: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON file.

    Args:
        path: of a regular file, compressed if its name ends in .gz.
        most: bytes that it may take in memory, which follow from its size and punctuation before anything is made; nor
            may it take more than `RECORD` and `MULTIPLE` times its size.
        expected: what it should hold, for messages.
        pairs: makes an object of its names and values; None: a dict.

    Raises:
        UserError: it cannot be read, is too large, or not JSON.
    """
    return parse_json(_bytes(path, most, expected), str(path), most, expected, pairs)


def parse_json(
    data: bytes, path: str, most: int, expected: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """The value of a JSON text that was read from somewhere, see `read_json`."""
    most = min(most, RECORD + MULTIPLE * len(data))
    if (memory := json_memory(data)) > most:
        raise UserError(
            f"{path} would take {memory >> 20} MB of memory, expected {expected}, at most {most >> 20} MB: fetch or "
            "copy it again."
        )
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeError, numbers of thousands of digits
        raise UserError(
            f"{path} cannot be read as JSON ({error}): expected {expected}; fetch or copy it again."
        ) from None


def json_memory(data: bytes) -> int:
    """Bytes of memory that a JSON text and its value take at most."""
    return len(data) * (3 if data.isascii() else 6) + sum(size * data.count(sign) for sign, size in MEMORY.items())


def _bytes(path: Path, most: int, expected: str) -> bytes:
    try:
        if (size := regular_file(path).st_size) > most:
            raise UserError(f"{path} has {size} bytes, expected {expected}, at most {most}: fetch or copy it again.")
        with open(path, "rb") as file:
            return _unpacked(file, path, most, expected) if path.suffix == ".gz" else file.read(size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): expected {expected}.") from None


def _unpacked(file: BinaryIO, path: Path, most: int, expected: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            data = packed.read(most + 1)  # a few bytes may hold any number
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({error}): expected {expected}; fetch it again.") from None
    if len(data) > most:
        raise UserError(f"{path} holds more than {most} bytes, expected {expected}: fetch or copy it again.")
    return data


def lines_of(file: TextIO) -> Iterator[str]:
    """The lines of an open text file; one without end is not read into memory.

    Raises:
        UserError: a line has more than `LONGEST_LINE` characters, or the file too many.
    """
    number = total = 0
    while line := file.readline(LONGEST_LINE):
        number, total = number + 1, total + len(line)
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise UserError(
                f"{file.name}, line {number}, has more than {LONGEST_LINE} characters, expected a list in lines: fetch "
                "or copy it again."
            )
        if number > MOST_LINES or total > MOST_CHARACTERS:
            raise UserError(
                f"{file.name} has more than {MOST_LINES} lines or {MOST_CHARACTERS} characters, expected a list of "
                "fewer: fetch or copy it again."
            )
        yield line


def csv_rows(path: Path, columns: str, header: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Lines of a CSV file with their numbers from 1, without blank ones and without spaces around cells.

    Args:
        path: of a regular file.
        columns: what the lines should hold, for messages.
        header: columns by which other separators than commas are recognised.

    Raises:
        UserError: it is not CSV, or not UTF-8, or has no end.
    """
    reader = None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            separator = separator_of(file.readline(LONGEST_LINE), header) if header else ","
            file.seek(0)
            reader = csv.reader(lines_of(file), delimiter=separator, skipinitialspace=True, strict=True)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
    except csv.Error as error:
        line = reader.line_num if reader else 1
        raise UserError(
            f"{path}, line {line}, cannot be read as CSV ({error}); expected `{columns}`: fix the line."
        ) from None
    except UnicodeDecodeError:
        raise _not_utf8(path, columns) from None


def own_rows(path: Path, columns: Sequence[str], instead: str, end: str = "\r\n") -> Iterator[tuple[int, list[str]]]:
    """Lines of a file of `files.write_csv` with their numbers, but not the header, nor a last one that is cut off.

    A spreadsheet program may have saved it since, with a byte-order mark, other separators, quotes or line ends.

    Args:
        path: of the file.
        columns: its header.
        instead: what to do if it is damaged.
        end: of its lines as they were written. Only then may names be in it that are not UTF-8.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    head, number = ",".join(columns), 0
    try:
        regular_file(path)
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            first = file.readline(LONGEST_LINE)
        as_written = first in (head + end, head[: len(first)])
        with open(path, encoding="utf-8-sig", errors="surrogateescape" if as_written else "strict", newline="") as file:
            lines = (line for line in lines_of(file) if line.endswith(("\n", "\r")))
            reader = csv.reader(lines, delimiter=separator_of(first, columns), strict=True)
            for number, row in enumerate(reader, 1):
                cells = [from_cell(cell) for cell in row]
                if len(cells) != len(columns) or (number == 1 and cells != list(columns)):
                    raise damaged(path, reader.line_num, cells, columns, instead)
                if number > 1:
                    yield reader.line_num, cells
        if not number and not as_written:
            raise damaged(path, 1, [first], columns, instead)
    except csv.Error as error:
        raise UserError(
            f"{path} is damaged: line {reader.line_num}, cannot be read as CSV ({error}); expected `{head}`: {instead}."
        ) from None
    except UnicodeDecodeError:
        raise _not_utf8(path, head) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected lines `{head}`: {instead}.") from None


def separator_of(first: str, columns: Sequence[str]) -> str:
    """What separates the cells of a header that has these columns; a comma if it has not."""
    for separator in SEPARATORS:
        cells = next(csv.reader([first.lstrip("\ufeff")[:4096]], delimiter=separator), [])
        if set(columns) <= {cell.strip().lower() for cell in cells}:
            return separator
    return ","


def damaged(path: Path, line: int, cells: Sequence[str], columns: Sequence[str], instead: str) -> UserError:
    """The error of a line of a file of ours."""
    text = ",".join(cells)[:MAX_SHOWN]
    return UserError(f"{path} is damaged: line {line}, reads `{text}`; expected `{','.join(columns)}`: {instead}.")


def _not_utf8(path: Path, columns: str) -> UserError:
    with path.open("rb") as file:
        head = file.read(1000)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
            where, why = "", "is UTF-16 text, as spreadsheet programs write it"
        else:
            file.seek(0)
            lines = iter(lambda: file.readline(LONGEST_LINE), b"")
            line = next((n for n, each in enumerate(lines, 1) if not _is_utf8(each)), 0)
            where, why = f", line {line},", "is not UTF-8 text"
    return UserError(
        f"{path}{where} {why}; expected UTF-8 with lines `{columns}`: save it as UTF-8 (in a spreadsheet program, 'CSV "
        "UTF-8'), or put the published file there."
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Plain(yaml.SafeLoader):
    """Without aliases, which a short text may multiply, tags, and endless numbers."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise yaml.YAMLError("it has an alias or a tag")
        node: Any = super().compose_node(parent, index)
        number = isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))
        if number and len(node.value) > MOST_DIGITS:
            raise yaml.YAMLError(f"it has a number of {len(node.value)} digits")
        return node


def plain_yaml(text: str) -> Any:
    """The value of a YAML text: plain values only, whose size is that of the text.

    Raises:
        ValueError: it is not YAML, or has an alias, a tag, or a number of more than `MOST_DIGITS`.
    """
    try:
        return yaml.load(text, Loader=_Plain)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
