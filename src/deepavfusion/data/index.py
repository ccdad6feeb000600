"""What every dataset's list reader shares: its result, the scan of the folders, and the words for people."""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from errno import ELOOP, ENAMETOOLONG
from pathlib import Path
from typing import Any

from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

DEMO = "python src/prepare.py command=demo"


@dataclass(frozen=True)
class ClipList:
    """One split of a dataset: what its list expects, and what of it is on disk.

    Args:
        split: the split's name, e.g. "test".
        clips: those listed and on disk, sorted by id. They need not decode.
        classes: label names; `Clip.label` is a position in them.
        missing: those listed but not on disk, sorted by id.
        notes: one sentence each for a person to read.
        multi_label: whether a clip may have several classes (`Clip.labels`).
        mixtures: where the protocol fixes which clips are mixed: their ids, missing ones too, in the list's order.
        lost_frames: annotated pictures that the clips on disk should have and have not.
        excluded: those on disk that an earlier `command=verify` found unusable, with its word for why.
    """

    split: str
    clips: list[Clip]
    classes: list[str]
    missing: list[Clip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    multi_label: bool = False
    mixtures: list[tuple[str, ...]] = field(default_factory=list)
    excluded: list[tuple[Clip, str]] = field(default_factory=list)
    lost_frames: int = 0

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def listed(self) -> int:
        """How many clips the list expects in this split."""
        return len(self.clips) + len(self.missing) + len(self.excluded)

    @property
    def coverage(self) -> str:
        """One sentence that stands next to every metric."""
        present = len(self.clips) + len(self.excluded)
        sentence = f"{present} of {self.listed} clips of the {self.split} split are on disk"
        return f"{sentence}, {len(self.excluded)} of them known to be unusable" if self.excluded else sentence

    def without(self, bad: Mapping[str, str]) -> ClipList:
        """The same list, with the clips that `bad` (id -> why) names moved to `excluded`."""
        excluded = self.excluded + [(clip, bad[clip.id]) for clip in self.clips if clip.id in bad]
        return replace(self, clips=[clip for clip in self.clips if clip.id not in bad], excluded=excluded)

    def held_out(self, share: float, seed: int) -> tuple[ClipList, ClipList]:
        """Split off a seeded share of the videos: (the rest, the hold-out).

        What is held out follows from seed and video id alone, not from what is on disk.
        """

        def chosen(video: str) -> bool:
            return zlib.crc32(f"{seed}/{video}".encode()) < share * 2**32

        def part(keep: Callable[[str], bool], split: str) -> ClipList:
            return replace(
                self,
                split=split,
                clips=[clip for clip in self.clips if keep(clip.source)],
                missing=[clip for clip in self.missing if keep(clip.source)],
                excluded=[(clip, why) for clip, why in self.excluded if keep(clip.source)],
            )

        return part(lambda video: not chosen(video), self.split), part(chosen, "holdout")


class Folders:
    """Which files exist, one `scandir` a folder and not one `stat` a clip."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._files: dict[str, frozenset[str]] = {}

    def files(self, folder: str) -> frozenset[str]:
        """Names of the files in `root/folder`; empty when there is no such folder."""
        if folder not in self._files:
            self._files[folder] = frozenset(entry.name for entry in _entries(self.root / folder) if entry.is_file())
        return self._files[folder]

    def folders(self, folder: str) -> list[str]:
        """Sorted names of the folders in `root/folder`, hidden ones left out."""
        entries = _entries(self.root / folder)
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def has(self, path: str) -> bool:
        """Whether the file `path`, relative to the root and with "/" between its parts, exists."""
        folder, _, name = path.rpartition("/")
        return name in self.files(folder)

    def nearest(self, path: str) -> str:
        """What stands in the place of the missing `path`: a clause such as "clips/ holds train, test"."""
        folder = path.rpartition("/")[0]
        while folder and not os.path.isdir(self.root / folder):
            folder = folder.rpartition("/")[0]
        names = sorted(entry.name for entry in _entries(self.root / folder) if not entry.name.startswith("."))
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{folder or self.root}/ holds {shown or 'nothing'}"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno in (ENAMETOOLONG, ELOOP):  # no such folder can be
            return []
        raise


def check_root(root: str | Path) -> Path:
    """The root as a Path; it must be a folder."""
    path = Path(root)
    if not os.path.isdir(path):
        state = "is a file" if os.path.exists(path) else "does not exist"
        raise UserError(
            f"The data folder {path} {state}; expected the folder that holds the clips and annotations: "
            f"set data.root to it, or make demo data with `{DEMO}`."
        )
    return path


def check_split(dataset: str, split: str, known: Iterable[str]) -> None:
    """Raise a `UserError` when the dataset has no such split."""
    check_choice(f"split of {dataset}", split, known, "data.train_split, data.val_split or data.eval_split")


def check_choice(what: str, value: str, known: Iterable[str], key: str) -> None:
    """Raise a `UserError` when `value` is none of the known ones; `key` is the config key that gives it."""
    if value not in known:
        raise UserError(f"There is no {what} {value!r}; expected one of {', '.join(known)}: set {key}.")


def read_rows(
    root: Path, annotations: str, columns: str, key: str = "data.index.annotations"
) -> Iterator[tuple[int, list[str]]]:
    """Lines of a CSV file, with their numbers from 1, blank ones left out. UTF-8, a byte-order mark allowed.

    Args:
        root, annotations: the data folder, and the file's path below it.
        columns: what a line holds, for the error message.
        key: the config key that names the file, for the error message.
    """
    path = _list_file(root, annotations, f"a CSV file with lines `{columns}`", key)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}, cannot be read as CSV ({error}); expected `{columns}`: mend the line."
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text ({error}); expected lines `{columns}`: save it as UTF-8."
            ) from None


def read_table(root: Path, annotations: str, columns: str, key: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV file with a header, by the names of its columns; their numbers as in `read_rows`.

    Args:
        root, annotations: the data folder, and the file's path below it.
        columns: names of columns that the header must have, joined by commas; others may be there as well.
        key: the config key that names the file, for the error message.
    """
    rows = read_rows(root, annotations, columns, key)
    line, header = next(rows, (1, []))
    if not set(columns.split(",")) <= set(header):
        raise UserError(
            f"{root / annotations}, line {line}, reads `{','.join(header)}`; expected the header `{columns}`: put it "
            f"there, or set {key} to the file that has it."
        )
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{root / annotations}, line {line}, reads `{','.join(cells)}`; expected `{','.join(header)}` and, "
                "around cells with commas, double quotes: mend the line."
            )
        yield line, dict(zip(header, cells, strict=True))


def read_json(root: Path, annotations: str, content: str, key: str) -> Any:
    """A JSON file; UTF-8, a byte-order mark allowed; no object may name a key twice.

    Args:
        root, annotations: the data folder, and the file's path below it.
        content: what the file holds, for the error message.
        key: the config key that names the file, for the error message.
    """
    path = _list_file(root, annotations, f"a JSON file with {content}", key)

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise UserError(f"{path} has the key {name!r} twice in one object; expected {content}: mend the file.")
            found[name.encode().decode()] = value  # half a surrogate pair is no text: a UnicodeEncodeError
        return found

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeError, numbers of thousands of digits
        raise UserError(f"{path} cannot be read as JSON ({error}); expected {content}: mend the file.") from None


def _list_file(root: Path, annotations: str, content: str, key: str) -> Path:
    if not isinstance(annotations, str) or leads_out(annotations):
        raise UserError(
            f"The path {annotations!r} leads out of the data folder {root}; expected one below it: mend {key}."
        )
    path = root / annotations
    if not os.path.isfile(path):
        raise UserError(
            f"The list {path} does not exist; expected {content}: put it there, or set {key} to its place under {root}."
        )
    return path


def leads_out(path: str) -> bool:
    """Whether a path that should lie below the data folder does not."""
    return path.startswith("/") or "\0" in path or ".." in path.split("/")


def check_name(value: str, what: str, where: str) -> str:
    """An id or label that goes into a path; it must not lead out of its folder."""
    if not value or "/" in value or "\\" in value or "\0" in value or ".." in value:
        raise UserError(
            f"{where}: the {what} {value!r} cannot be part of a file name; expected one without '/', '\\' and "
            "'..': mend the line."
        )
    return value


def nothing_on_disk(root: Path, split: str, listed: int, expected: str, folders: Folders) -> UserError:
    """The error for a split of which no clip exists. `expected`: the first path, relative to the root."""
    return UserError(
        f"None of the {listed} clips of the {split} split is on disk: expected for example {root / expected}, "
        f"but {folders.nearest(expected)}; set data.root or data.index.clip_pattern to where the clips are, or "
        f"make demo data with `{DEMO}`."
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or nothing when no known name is near."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def count(number: int, one: str, more: str = "") -> str:
    """ "1 clip", "2 clips"; or with a verb, count(2, "clip is", "clips are")."""
    return f"{number} {one if number == 1 else more or one + 's'}"
