"""Which files `input=` and `index=` name: a folder of videos and audio files, a list, or one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deepavfusion.data.lists.text import count, read_csv
from deepavfusion.media import Recording, Source
from deepavfusion.media.files import AUDIO_ENDINGS, VIDEO_ENDINGS
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import no_file
from deepavfusion.utils.names import distinct, from_cell
from deepavfusion.utils.reading import lines_of

MEDIA = (*VIDEO_ENDINGS, *AUDIO_ENDINGS)
LISTS = (".csv", ".txt")
COLUMN = "path"  # of a CSV list


@dataclass
class Inputs:
    """Files (name as given -> path), not all of which need exist, and notes on them for the user.

    `recordings` has those of the paths that stand for arrays in memory.
    """

    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recordings: dict[str, Recording] = field(default_factory=dict)


def read_input(path: str | Path, key: str = "input") -> Inputs:
    """The files that a path names.

    Args:
        path: a folder, searched with all its subfolders for files with an ending of `MEDIA`, sorted by name; or a list
            of paths, absolute or relative to the list's folder: .txt with a path per line, or .csv with a column
            `path`, else the first one, where empty lines and those with # first are skipped,
            unless there is such a file; or one file of any name.
        key: what it was given as, for messages.

    Raises:
        UserError: nothing there, no such file in the folder, an empty or unreadable list.
    """
    given, path = path, Path(path)
    if os.path.isdir(path):
        return _read_folder(path, key)
    if what := no_file(path):
        raise UserError(
            f"{key} {given} {what}: expected a folder of videos, a list of them (.txt or .csv, a path per line), or "
            "one video."
        )
    if path.suffix.lower() not in LISTS:
        return Inputs({str(given): str(given)})
    names = list(_read_csv(path, key) if path.suffix.lower() == ".csv" else _read_text(path, key))
    if not names:
        raise UserError(f"{key} {given} lists no video: expected a path per line, relative to {path.parent}/.")
    return read_names(names, path.parent)


def read_names(names: Iterable[Source], folder: Path = Path()) -> Inputs:
    """Paths given one by one, relative to a folder; repeated ones count once, with a note.

    Recordings come under names that no file of the list has; equal ones are numbered.
    """
    found, places, repeated = Inputs(), set(), []
    given = [each if isinstance(each, Recording) else os.fspath(each) for each in names]
    files = {name for each in given if isinstance(each, str) for name in (each, str(folder / each))}
    unlike = iter(distinct([*files, *(each.path for each in given if isinstance(each, Recording))])[len(files) :])
    for each in given:
        if isinstance(each, Recording):
            name = next(unlike)
            found.files[name], found.recordings[name] = name, each
            continue
        name = each
        place = os.path.abspath(folder / name)
        if place in places:
            repeated.append(name)
        else:
            places.add(place)
            found.files[name] = str(folder / name)
    if repeated:
        found.notes.append(
            f"{count(len(repeated), 'path is', 'paths are')} listed more than once and counted once, e.g. {repeated[0]}"
        )
    return found


def _read_folder(folder: Path, key: str) -> Inputs:
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    files = {str(path): str(path) for path in sorted(found) if path.suffix.lower() in MEDIA}
    others = Counter(path.suffix.lower() or "no suffix" for path in found if path.suffix.lower() not in MEDIA)
    if not files:
        raise UserError(
            f"{key} {folder} holds no video or audio file: none of its {count(others.total(), 'file')} ends in "
            f"{', '.join(MEDIA)}; give another folder, or a list of files."
        )
    shown = ", ".join(f"{kind}: {number}" for kind, number in others.most_common(4))
    notes = (
        [f"{count(others.total(), 'file')} skipped, not named like a video or audio file ({shown})"] if others else []
    )
    return Inputs(files, notes)


def _unreadable(error: OSError) -> None:
    raise UserError(f"folder {error.filename} cannot be read, {error.strerror}: make it readable, or list the files.")


def _read_text(path: Path, key: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in map(str.strip, lines_of(file)):
                if line and not _is_comment(line, path.parent):
                    yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{key} {path} is not UTF-8 text ({error}): expected a path per line; save it as UTF-8."
        ) from None


def _is_comment(line: str, folder: Path) -> bool:
    """Whether a line is none of a video: it begins with "#", and there is no such file."""
    return line.startswith("#") and not os.path.exists(folder / line)


def _read_csv(path: Path, key: str) -> Iterator[str]:
    column = None
    for _, cells in read_csv(path.parent, path.name, "path,…", key, header=(COLUMN,)):
        if _is_comment(cells[0], path.parent):
            continue
        if column is None:  # the header, if there is one
            names = [cell.lower() for cell in cells]
            column = names.index(COLUMN) if COLUMN in names else 0
            if COLUMN in names:
                continue
        if len(cells) > column and (name := cells[column]):
            yield name if os.path.exists(path.parent / name) else from_cell(name)
