"""Names of files, classes and clips are data from others: shown, written and kept apart so that they do nothing."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control characters, changes of direction, lone surrogates, …
SPACES = " \u3000"  # the other ones, such as that without a break, look the same and are not
LONGEST = 180  # bytes of a name, to which an output adds its ending; file systems take 255
SEPARATORS = re.compile(r"[/\\:*?\"<>|]")  # of paths, and what other systems forbid
FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")
NUMBER = re.compile(r"-?(\d+(\.\d+)?(e[+-]?\d+)?|inf)")


def printable(text: str) -> str:
    """A text for terminals, figures and TensorBoard: characters that are not seen, or act, become escapes like \\x1b.

    The bytes of a name that is not UTF-8 are shown as \\xff.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_seen(c) else _escaped(c) for c in text)


def unseen(text: str) -> str | None:
    """The first character that is not seen, as `printable` shows it with its name; None: there is none."""
    found = None if text.isprintable() else next((c for c in text if not _is_seen(c)), None)
    return found and f"{_escaped(found)}, {unicodedata.name(found, 'without a name')}"


def look(text: str) -> str:
    """What texts have in common that look alike: accents in one form, no characters that are not seen, equal blanks."""
    if text.isascii() and text.isprintable():
        return text
    seen = (" " if c.isspace() else c for c in unicodedata.normalize("NFC", text) if c.isspace() or _is_seen(c))
    return "".join(seen)


def _is_seen(character: str) -> bool:
    category = unicodedata.category(character)
    return category not in UNSEEN and (category != "Zs" or character in SPACES)


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python keeps a byte of a file name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def escaped(text: str) -> str:
    """A text inside a line of Markdown, where none of its signs acts: no link, emphasis, cell or HTML."""
    return re.sub(r"([!-$&-+./:-@\[-`{-~])", r"\\\1", printable(text))


def code(text: str) -> str:
    """A text as Markdown that a viewer shows as it is, inside a line."""
    text = printable(text).replace("|", "\\|")  # in a table, too
    fence = fence_of(text, 1)
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"{fence}{text}{fence}"


def fence_of(text: str, least: int = 3) -> str:
    """Backticks around a text that holds fewer in a row: what begins or ends code in Markdown."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def distinct(names: Iterable[str]) -> list[str]:
    """The names, of which equal ones get a number: dog, dog (2). Results are kept by name."""
    found: dict[str, None] = {}
    for name in names:
        unlike, n = name, 1
        while unlike in found:
            n += 1
            unlike = f"{name} ({n})"
        found[unlike] = None
    return list(found)


def file_names(names: Iterable[str]) -> list[str]:
    """A name of a file or folder for each name: without separators, and unlike the others on any disk."""
    found: dict[str, str] = {}  # as a disk that ignores case and the form of accents keeps it -> the file name
    for name in names:
        safe = SEPARATORS.sub("_", printable(name)).lstrip(".") or "_"
        safe = safe.encode()[:LONGEST].decode(errors="ignore")
        if look(safe).casefold() in found:
            safe += f"-{_hash(os.fsencode(name))}"
        found[look(safe).casefold()] = safe
    return list(found.values())


def stem_of(path: str | os.PathLike[str]) -> str:
    """A file's name without suffix, to name its outputs by; a long one is cut, and marked by a hash."""
    stem = Path(path).stem
    if not stem.strip("."):  # of "/" or "...mp4": as the name of a folder it would lead elsewhere
        stem = "_"
    whole = os.fsencode(stem)
    if len(whole) <= LONGEST:
        return stem
    return f"{whole[:LONGEST].decode(errors='ignore')}-{_hash(whole)}"


def _hash(name: bytes) -> str:
    return sha256(name).hexdigest()[:8]


def to_cell(value: object) -> object:
    """A value for a CSV file. A text that a spreadsheet program would compute gets a ' in front, an id like -a, too."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value) else value


def from_cell(cell: str) -> str:
    """The text that `to_cell` wrote."""
    return cell[1:] if cell[:1] == "'" and FORMULA.match(cell) else cell
