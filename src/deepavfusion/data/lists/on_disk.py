"""From the lines of a list to files: fill in clip patterns, drop repeated lines, find what is on disk or unlisted."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from deepavfusion.data.lists.clip_list import DEMO, ClipList, Folders
from deepavfusion.data.lists.spreadsheet import PUBLISHED, YOUTUBE, YOUTUBE_ID
from deepavfusion.data.lists.text import count, leads_out, suggestion
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import almost_there
from deepavfusion.utils.names import look, unseen

STRAYS_BY_NAME = 3  # up to this many folders without a label get a note each; more share one

EXAMINED = 1000  # missing clips whose files are looked for under other spellings
FEW = 0.2  # share of the ids that may be damaged; with more, the list has ids of its own


@dataclass(frozen=True, slots=True)
class ListedClip:
    """One line of a list: a clip, the name of its class, and the path of its file below the data folder."""

    id: str
    video: str
    label: str
    path: str
    split: str = ""


AnyListed = TypeVar("AnyListed", bound=Clip | ListedClip)


def fill_in(pattern: str, **fields: str | int) -> str:
    """The path of a clip below the data folder.

    Args:
        pattern: for `str.format`; a "*" in the file name is for `matches`.
        fields: those it may use; it must use the first, which distinguishes clips.

    Raises:
        UserError: the pattern uses other fields, leaves the data folder, gives all clips the same path, or has more
            than that "*".
    """
    try:
        path = pattern.format_map(fields)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, MemoryError, OverflowError) as error:
        *most, last = fields
        wrong = f"cannot be filled in ({type(error).__name__}: {error})"
        raise _bad_pattern(pattern, wrong, f"the fields {', '.join(most)} and {last}") from None
    if leads_out(path):
        raise _bad_pattern(pattern, "leaves the data folder", "a path below it")
    first = next(iter(fields))
    if f"{{{first}" not in pattern:
        raise _bad_pattern(pattern, "gives all clips the same path", f"the field {first} in it")
    if "*" in pattern.rpartition("/")[0] or pattern.count("*") > 1:
        raise _bad_pattern(pattern, "cannot be used", "at most one '*', in the file name")
    return path


def _bad_pattern(pattern: str, wrong: str, expected: str) -> UserError:
    return UserError(f"The pattern {pattern!r} {wrong}; expected {expected}: fix data.index.clip_pattern.")


def unique(
    listed: Iterable[tuple[int, AnyListed]], source: str, differing: str, folders: Folders, youtube: bool = True
) -> tuple[list[AnyListed], list[str]]:
    """The first item of each clip, in the order of the list, and notes about repeated ones.

    Args:
        listed: line number and item.
        source: name of the list.
        differing: what two items of one clip may disagree on, e.g. "labels".
        folders: of the data.
        youtube: whether the videos have ids of YouTube.

    Raises:
        UserError: an id, or a few of YouTube's, cannot be as they are, and one of these clips is not on disk.
    """
    first: dict[str, AnyListed] = {}
    lines = array("L")
    repeated: list[tuple[int, AnyListed]] = []
    for line, item in listed:
        if item.id in first:
            repeated.append((line, item))
        else:
            first[item.id] = item
            lines.append(line)

    def example(line: int, item: AnyListed) -> str:
        return f"e.g. {item.id} in lines {lines[list(first).index(item.id)]} and {line}; the first line counts."

    notes = _check_ids(list(first.values()), lines, folders, source, youtube)
    if repeated:
        notes.append(f"{source} lists {count(len(repeated), 'clip')} more than once, {example(*repeated[0])}")
    at_odds = [(line, item) for line, item in repeated if item != first[item.id]]
    if at_odds:
        notes.append(f"{source} gives {count(len(at_odds), 'clip')} different {differing}, {example(*at_odds[0])}")
    return list(first.values()), notes


def _check_ids(
    items: Sequence[AnyListed], lines: Sequence[int], folders: Folders, source: str, youtube: bool
) -> list[str]:
    """Notes on missing clips whose ids are none of YouTube's.

    Raises:
        UserError: there are few of them, so that it is no list of ids of one's own; or a path has a character that is
            not seen.
    """
    begin = f"{folders.root}/"
    strange = (n for n, item in enumerate(items) if not item.path.isprintable())  # there may be millions
    hidden = [n for n in strange if unseen(items[n].path.removeprefix(begin))]
    other = [n for n, item in enumerate(items) if not YOUTUBE_ID.fullmatch(item.video)] if youtube else []
    few = len(other) < FEW * len(items)
    for odd in (hidden, other):
        paths = {n: items[n].path.removeprefix(begin) for n in odd}
        if not (lost := [n for n, path in paths.items() if not (folders.has(path) or folders.files(path))]):
            continue
        where, video, ids = f"line {lines[lost[0]]}", items[lost[0]].video, count(len(lost), "id")
        if odd is hidden:
            words = (
                f"{paths[lost[0]]!r}, with a character that is not seen ({unseen(paths[lost[0]])}), and no such file "
                f"is on disk; expected names without: fix {count(len(lost), 'line')}."
            )
        elif not few:
            return [f"{source} has {ids} of missing clips that are none of YouTube's, e.g. {video!r} in {where}."]
        elif len(video) < YOUTUBE:
            words = (
                f"the id {video!r} of {len(video)} characters; expected {YOUTUBE}: {ids} lost a '-' or zeros at the "
                f"beginning, which a spreadsheet program may take away: {PUBLISHED}."
            )
        else:
            words = (
                f"the id {video!r} of {len(video)} characters, which is not on disk; expected {YOUTUBE} letters, "
                f"digits, '-' and '_', as YouTube's ids have: fix {ids}."
            )
        raise UserError(f"{folders.root / source}, {where}, has {words}")
    return []


def clips_of(rows: Iterable[ListedClip], root: Path, classes: Sequence[str]) -> Iterator[Clip]:
    """The clips of rows with one class each."""
    position = {name: n for n, name in enumerate(classes)}
    for row in rows:
        yield Clip(id=row.id, path=f"{root}/{row.path}", label=position[row.label], video=row.video)


def matches(folders: Folders, path: str) -> list[tuple[str, str]]:
    """The text that "*" stands for, and the path, of each matching file; sorted by path.

    Args:
        folders: the data folder.
        path: below it, with at most one "*", in the file name. "*" matches nothing, or any text that begins with "_",
            "." or "-", so that no longer id matches; at the beginning of a file name it matches any text.
    """
    folder, slash, name = path.rpartition("/")
    head, star, tail = name.partition("*")
    found = []
    for file in folders.files(folder):
        if file.startswith(head) and file.endswith(tail) and len(file) >= len(head) + len(tail):
            middle = file[len(head) : len(file) - len(tail)]
            if not middle or (star and (not head or middle[0] in "_.-")):
                found.append((middle, f"{folder}{slash}{file}"))
    return sorted(found, key=lambda match: match[1])


def list_clips(
    folders: Folders,
    split: str,
    clips: Iterable[Clip],
    classes: list[str],
    notes: list[str],
    is_there: Callable[[Clip], bool] | None = None,
    mend: str = f"set data.root or data.index.clip_pattern to where the clips are, or make demo data with `{DEMO}`",
    **more: Any,
) -> ClipList:
    """The list of a split, with its clips on disk apart from the missing ones.

    Args:
        is_there: whether a clip is on disk; None: if its file is.
        mend: what to do if none is.
        more: other fields of the list.

    Raises:
        UserError: there are clips, but none is on disk.
    """
    begin = len(str(folders.root)) + 1
    there: list[Clip] = []
    missing: list[Clip] = []
    for clip in sorted(clips, key=attrgetter("id")):
        (there if (is_there(clip) if is_there else folders.has(clip.path[begin:])) else missing).append(clip)
    looks: dict[str, dict[str, str]] = {}
    almost = [words for clip in missing[:EXAMINED] if (words := almost_there(clip.path, looks))]
    if missing and not there:
        expected = missing[0].path[begin:]
        raise UserError(
            f"None of the {len(missing)} clips of the {split} split is on disk: expected for example "
            f"{folders.root / expected}, but {folders.nearest(expected)}{almost[0] if almost else ''}; {mend}."
        )
    if almost:
        which = count(len(almost), "missing clip of", "missing clips of")
        notes = [*notes, f"{which} the {split} split may be on disk{almost[0]}; rename it if it is the clip's."]
    names = {look(name): name for name in classes}
    if other := next((name for name in classes if names[look(name)] != name), None):
        raise UserError(
            f"the classes {other!a} and {names[look(other)]!a} of the lists under {folders.root} differ only in the "
            "form of accents or in characters that are not seen: expected one spelling of a name; fix the list."
        )
    return ClipList(split, there, classes, missing=missing, notes=notes, **more)


def unlisted_files(
    folders: Folders, expected: Iterable[str], pattern: str, source: str, labels: Iterable[str] | None = None
) -> list[str]:
    """Notes on files that no list names, and on files that several clips share.

    Args:
        folders: the data folder.
        expected: paths below it of the listed clips of all splits.
        pattern: that of the clips; files with another suffix are ignored.
        source: name of the list.
        labels: the folder names of the classes; a folder beside theirs gets a note. None: folders are not classes.
    """
    suffix = Path(pattern).suffix

    def clips_in(folder: str) -> set[str]:
        return {file for file in folders.files(folder) if file.endswith(suffix)}

    left: dict[str, set[str]] = {}  # files that no clip has claimed yet
    shared = 0
    for path in expected:
        folder, _, name = path.rpartition("/")
        if folder not in left:
            left[folder] = clips_in(folder)
        if name in left[folder]:
            left[folder].remove(name)
        elif folders.has(path):
            shared += 1
    beside = folders.beside(left) if "{" in pattern.rpartition("/")[0] else []
    strays = {folder: len(clips) for folder in beside if (clips := clips_in(folder))}
    unlisted = sum(map(len, left.values()))
    notes = []
    if labels is None:
        unlisted += sum(strays.values())
    elif len(strays) > STRAYS_BY_NAME:
        notes.append(
            f"{len(strays)} folders match no label of {source}, e.g. {next(iter(strays))}; their "
            f"{count(sum(strays.values()), 'clip')} are not used."
        )
    else:
        known = list(labels)
        for folder, number in strays.items():
            not_used = f"{count(number, 'clip is', 'clips are')} not used{suggestion(Path(folder).name, known) or '.'}"
            notes.append(f"{folder} matches no label of {source}; its {not_used}")
    if unlisted:
        notes.append(f"{count(unlisted, 'clip on disk is', 'clips on disk are')} not in {source}.")
    if shared:
        notes.append(
            f"{count(shared, 'clip has', 'clips have')} the same file as another clip of {source}; "
            "data.index.clip_pattern may lack a field."
        )
    return notes
