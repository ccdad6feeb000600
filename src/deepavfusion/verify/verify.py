"""Decodes every clip of a dataset once, records the results in a report, and prints a summary.

Training reads the report (`bad_clips`) and excludes clips that it cannot use.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich import get_console
from rich.table import Column, Table

from deepavfusion.data.lists.clip_list import ClipList, say_lists
from deepavfusion.data.lists.verified import STATUSES, USABLE, ReportRow, below, check_statuses, signature, unchanged
from deepavfusion.types import Clip
from deepavfusion.utils.console import cell, progress_bar, say
from deepavfusion.utils.files import almost_there, write_csv
from deepavfusion.utils.pool import Lost, call_apart
from deepavfusion.verify.clip import Verdict, check_clip
from deepavfusion.verify.report import OF_CLASSES, Journal

WORST = 20  # classes shown
OFFSETS = (0, -1, 1)  # of mask values, the most likely first

Check = Callable[[Clip], Verdict]
Entry = tuple[ClipList, Clip, tuple[str, str]]  # a clip of a list, and the signature of its file or folder


def verify(
    lists: Sequence[ClipList],
    root: str | os.PathLike[str],
    report: Path,
    exclude: Collection[str] = (),
    audio_seconds: float = 3.0,
    label_offset: int = 0,
    workers: int = 1,
    time_limit: float = 30.0,
    force: bool = False,
    check: Check | None = None,
    semantic: bool = True,
) -> Counter[str]:
    """Decode the clips that the report does not have yet, and print a summary of all.

    Args:
        lists: the splits, of the files as published.
        root, exclude: their folder, and the statuses for which runs exclude a clip, for the closing line.
        report: CSV file that is written or resumed; `<report>_classes.csv` is written beside it.
        audio_seconds: length of the window that training reads.
        label_offset: of the masks' values.
        time_limit: seconds a clip may take; a file of several, windows of it, so much for each.
        force: decode these clips again although the report has them.
        check: applied to each clip, picklable; None: `check_clip`.
        semantic: the masks' values must be classes; otherwise any value but 0 means a sounding pixel.

    Returns:
        status -> number of clips of the lists that have it.

    Raises:
        UserError: an unknown status, or the report cannot be written, is damaged, or is written by another process.
    """
    check_statuses(exclude)
    classes = len(lists[0].classes) if semantic else None
    check = check or partial(check_clip, audio_seconds=audio_seconds, classes=classes, label_offset=label_offset)
    with Journal(report, trust=not force) as journal:
        todo, known = _plan(lists, journal, force, classes, label_offset)
        say_lists(lists)
        if known:
            say(f"{known} clips are in {report} already and have not changed; force=true decodes them again")
        if todo:
            _decode(todo, journal, check, workers, time_limit)
    rows = [(clips, clip, journal.rows[clips.split, clip.id]) for clips in lists for clip in _all(clips)]
    total = _print_statuses([clips.split for clips in lists], rows)
    _print_classes(rows, journal.classes)
    _print_offset(rows, label_offset)
    excluded = sum(any(word in exclude for word in row.words) for _, _, row in rows)
    place = f"data.root={root}"
    if os.path.abspath(report) != os.path.abspath(os.path.join(root, "verify.csv")):
        place += f" data.verify_report={report}"
    say(f"{report} has a row for every clip; with {place}, runs exclude {excluded or 'none'} of them (data.exclude).")
    return total


def _plan(
    lists: Sequence[ClipList], journal: Journal, force: bool, classes: int | None, label_offset: int
) -> tuple[dict[str, list[Entry]], int]:
    """What is left to decode, by path, and how many clips are known already; records those that are missing."""
    by_path = {} if force else {row.path: row for row in journal.rows.values()}
    todo, known = defaultdict[str, list[Entry]](list), 0
    looks: dict[str, dict[str, str]] = {}
    for clips in lists:
        missing = {clip.id for clip in clips.missing}
        for clip in _all(clips):
            found = None if clip.id in missing else signature(clip.path, clip.frames)
            if found is None:
                folder = "the folder lacks audio, images or masks that are in use"
                nothing = f"there is no such file{almost_there(clip.path, looks)}"
                detail = folder if os.path.isdir(clip.path) else nothing
                _record(journal, clips, clip, Verdict("missing", detail))
                continue
            row = by_path.get(below(os.path.abspath(clip.path), journal.folder))
            asked = row and row.status != "missing" and row.seconds == clip.frames
            if row and asked and unchanged(row, found) and _same_classes(row, classes, label_offset):
                known += 1
                before = journal.rows.get((clips.split, clip.id))
                if before is None or (before.path, before.modified) != (row.path, row.modified):
                    journal.add(row._replace(id=clip.id, split=clips.split, classes="|".join(_classes_of(clips, clip))))
                continue
            todo[clip.path].append((clips, clip, found))
    return todo, known


def _same_classes(row: ReportRow, classes: int | None, label_offset: int) -> bool:
    """Whether the masks' values would be judged as they were: S4 allows any, AVSS in the same folder does not.

    A clip whose masks are bad for another reason is decoded again each time; there are few.
    """
    values = map(int, row.mask_values.split())
    no_class = classes is not None and any(not 0 <= value + label_offset < classes for value in values)
    return no_class == ("bad_mask" in row.words)


def _decode(todo: dict[str, list[Entry]], journal: Journal, check: Check, workers: int, time_limit: float) -> None:
    with progress_bar() as bar:
        task = bar.add_task("verifying", total=len(todo))
        once = (entries[0][1] for entries in todo.values())
        limit = partial(_limit, {path: time_limit * len(entries) for path, entries in todo.items()})  # a window each
        for decoded, result in call_apart(check, once, min(workers, len(todo)), limit):
            if isinstance(result, Lost):
                result = Verdict("hung" if result.hung else "undecodable", result.detail)
            for clips, clip, found in todo[decoded.path]:
                _record(journal, clips, clip, result, found)
            bar.advance(task)


def _limit(limits: dict[str, float], clip: Clip) -> float:
    return limits[clip.path]


def _record(journal: Journal, clips: ClipList, clip: Clip, verdict: Verdict, found: tuple[str, str] = ("", "")) -> None:
    """Add the row of a clip, if the journal lacks it; `found`: its signature."""
    row = ReportRow(
        id=clip.id,
        split=clips.split,
        classes="|".join(_classes_of(clips, clip)),
        status=verdict.status,
        also=" ".join(verdict.also),
        usable="yes" if verdict.status in USABLE else "no",
        detail=" ".join(verdict.detail.split()),
        path=below(os.path.abspath(clip.path), journal.folder),
        bytes=found[0],
        modified=found[1],
        frames=" ".join(map(str, clip.frames)),
        mask_values=" ".join(map(str, verdict.mask_values)),
    )
    if journal.rows.get((row.split, row.id)) != row:
        journal.add(row)


def _classes_of(clips: ClipList, clip: Clip) -> list[str]:
    return [clips.classes[label] for label in clip.classes]


def _all(clips: ClipList) -> Iterator[Clip]:
    yield from clips.clips
    yield from clips.missing
    yield from (clip for clip, _ in clips.excluded)


# ---- summary

Listed = Sequence[tuple[ClipList, Clip, ReportRow]]  # every clip of the lists


def _print_statuses(splits: Sequence[str], rows: Listed) -> Counter[str]:
    """Print how many clips of each split have each status; returns the sums over the splits."""
    columns = {split: Counter[str]() for split in splits}
    for clips, _, row in rows:
        columns[clips.split][row.status] += 1
    total = sum(columns.values(), Counter[str]())
    if len(columns) > 1:
        columns["all"] = total
    table = Table("clips", *(Column(name, justify="right") for name in columns), title="Status of the clips")

    def add(name: str, statuses: Collection[str], style: str | None = None) -> None:
        counts = (sum(count[word] for word in statuses) for count in columns.values())
        table.add_row(name, *(f"{count:,}".replace(",", " ") for count in counts), style=style)

    for word in STATUSES:
        if total[word]:
            add(word, [word], "green" if word == "ok" else "yellow" if word in USABLE else "red")
    table.add_section()
    add("listed", STATUSES)
    add("present", set(STATUSES) - {"missing"})
    add("usable", USABLE, "bold")
    get_console().print(table)
    return total


def _print_classes(rows: Listed, file: Path) -> None:
    """Write how many clips of each class are usable, and print the classes that lose most."""
    numbers = OF_CLASSES[2:]
    counts = defaultdict[tuple[str, str], Counter[str]](Counter)
    for clips, clip, row in rows:
        for name in _classes_of(clips, clip):
            counts[clips.split, name].update(listed=1, present=row.status != "missing", usable=row.usable == "yes")
    classes = [(*key, n["listed"], n["present"], n["usable"]) for key, n in sorted(counts.items())]
    write_csv(file, [OF_CLASSES, *classes], end="\n")
    losing = sorted((line for line in classes if line[4] < line[2]), key=lambda n: (n[4] / n[2], n[4] - n[2]))
    if not losing:
        return
    columns = (Column(name, justify="right") for name in numbers)
    table = Table("split", "class", *columns, title="Classes that lose clips")
    for line in losing[:WORST]:
        table.add_row(*(cell(str(each)) for each in line))
    get_console().print(table)
    shown = f"the worst {WORST} of {len(losing)}; " if len(losing) > WORST else ""
    say(f"{shown}all classes are in {file}")


def _print_offset(rows: Listed, label_offset: int) -> None:
    """Say which data.samples.label_offset fits the masks' values, if there are masks."""
    values = [(int(value), clip.classes) for _, clip, row in rows for value in row.mask_values.split()]
    if not values:
        return
    offsets = (label_offset, *OFFSETS)  # of equal ones the first is taken
    explained = {offset: sum(value + offset in classes for value, classes in values) for offset in offsets}
    best = max(explained, key=explained.__getitem__)
    share = f"{explained[best]} of {len(values)} values are annotated classes"
    fit = f"data.samples.label_offset={best} fits the masks: {share}"
    other = f"; with {label_offset}, its present value, {explained[label_offset]} are: change it"
    say(fit + (other if best != label_offset else ""))
