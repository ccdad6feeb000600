"""Decodes every clip of a dataset once, records the results in a report, and prints a summary.

Training reads the report (`bad_clips`) and excludes clips that it cannot use.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich import get_console
from rich.table import Column, Table

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.verified import STATUSES, USABLE, ReportRow, below, signature, unchanged
from deepavfusion.types import Clip
from deepavfusion.utils.console import progress_bar, say
from deepavfusion.utils.files import write_csv
from deepavfusion.verify.clip import Verdict, check_clip
from deepavfusion.verify.pool import Lost, call_apart
from deepavfusion.verify.report import Journal

WORST = 20  # classes shown
OFFSETS = (0, -1, 1)  # of mask values, the most likely first

Check = Callable[[Clip], Verdict]


@dataclass
class Unchecked:
    """A file or folder to decode, and the clips of the lists that are in it."""

    clip: Clip
    found: tuple[str, str]  # its signature
    entries: list[tuple[ClipList, Clip]] = field(default_factory=list)


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
        time_limit: seconds a clip may take.
        force: decode these clips again although the report has them.
        check: applied to each clip, picklable; None: `check_clip`.
        semantic: the masks' values must be classes; otherwise any value but 0 means a sounding pixel.

    Returns:
        status -> number of clips of the lists that have it.

    Raises:
        UserError: the report cannot be written, is damaged, or is written by another process.
    """
    classes = len(lists[0].classes) if semantic else None
    check = check or partial(check_clip, audio_seconds=audio_seconds, classes=classes, label_offset=label_offset)
    with Journal(report, trust=not force) as journal:
        todo, known = _plan(lists, journal, force, classes, label_offset)
        for clips in lists:
            say(f"{clips.split}: {clips.coverage}")
        if known:
            say(f"{known} clips are in {report} already and have not changed; force=true decodes them again")
        if todo:
            _decode(todo, journal, check, workers, time_limit)
    total, excluded = _print_counts(lists, journal, exclude)
    _print_offset(lists, journal, label_offset)
    place = f"data.root={root}"
    if os.path.abspath(report) != os.path.abspath(os.path.join(root, "verify.csv")):
        place += f" data.verify_report={report}"
    say(f"{report} has a row for every clip; with {place}, runs exclude {excluded or 'none'} of them (data.exclude).")
    return total


def _plan(
    lists: Sequence[ClipList], journal: Journal, force: bool, classes: int | None, label_offset: int
) -> tuple[list[Unchecked], int]:
    """What is left to decode, each file once, and how many clips are known already; records those that are missing."""
    by_path = {} if force else {row.path: row for row in journal.rows.values()}
    todo: dict[str, Unchecked] = {}
    known = 0
    for clips in lists:
        missing = {clip.id for clip in clips.missing}
        for clip in _all(clips):
            found = None if clip.id in missing else signature(clip.path, clip.frames)
            if found is None:
                folder = "the folder lacks audio, images or masks that are in use"
                detail = folder if os.path.isdir(clip.path) else "there is no such file"
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
            todo.setdefault(clip.path, Unchecked(clip, found)).entries.append((clips, clip))
    return list(todo.values()), known


def _same_classes(row: ReportRow, classes: int | None, label_offset: int) -> bool:
    """Whether the masks' values would be judged as they were: S4 allows any, AVSS in the same folder does not.

    A clip whose masks are bad for another reason is decoded again each time; there are few.
    """
    values = map(int, row.mask_values.split())
    no_class = classes is not None and any(not 0 <= value + label_offset < classes for value in values)
    return no_class == ("bad_mask" in row.words)


def _decode(todo: Sequence[Unchecked], journal: Journal, check: Check, workers: int, time_limit: float) -> None:
    by_path = {each.clip.path: each for each in todo}
    with progress_bar() as bar:
        task = bar.add_task("verifying", total=len(todo))
        clips = (each.clip for each in todo)
        for clip, result in call_apart(check, clips, min(workers, len(todo)), time_limit):
            if isinstance(result, Lost):
                result = Verdict("hung" if result.hung else "undecodable", result.detail)
            each = by_path[clip.path]
            for clips_of_split, entry in each.entries:
                _record(journal, clips_of_split, entry, result, each.found)
            bar.advance(task)


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


def _print_counts(lists: Sequence[ClipList], journal: Journal, exclude: Collection[str]) -> tuple[Counter[str], int]:
    """Print the tables and write that of the classes; the number of clips with each status, and of excluded ones."""
    statuses: dict[str, Counter[str]] = {}
    by_class: dict[tuple[str, str], Counter[str]] = {}
    excluded = 0
    for clips in lists:
        statuses[clips.split] = Counter()
        for clip in _all(clips):
            row = journal.rows[clips.split, clip.id]
            statuses[clips.split][row.status] += 1
            excluded += any(word in exclude for word in row.words)
            for name in _classes_of(clips, clip):
                count = by_class.setdefault((clips.split, name), Counter())
                count.update(["listed"] + ["present"] * (row.status != "missing") + ["usable"] * (row.usable == "yes"))
    _print_statuses(statuses)
    classes = [(*key, n["listed"], n["present"], n["usable"]) for key, n in sorted(by_class.items())]
    of_classes = journal.path.with_name(f"{journal.path.stem}_classes.csv")
    write_csv(of_classes, [("split", "class", "listed", "present", "usable"), *classes], end="\n")
    _print_classes([row for row in classes if row[4] < row[2]], of_classes)
    return sum(statuses.values(), Counter[str]()), excluded


def _print_statuses(statuses: dict[str, Counter[str]]) -> None:
    columns = dict(statuses)
    if len(statuses) > 1:
        columns["all"] = sum(statuses.values(), Counter[str]())
    table = Table("clips", *(Column(name, justify="right") for name in columns), title="Status of the clips")

    def add(name: str, counts: Sequence[int], style: str | None = None) -> None:
        table.add_row(name, *(f"{count:,}".replace(",", " ") for count in counts), style=style)

    for word in STATUSES:
        if any(count[word] for count in columns.values()):
            style = "green" if word == "ok" else "yellow" if word in USABLE else "red"
            add(word, [count[word] for count in columns.values()], style)
    table.add_section()
    add("listed", [sum(count.values()) for count in columns.values()])
    add("present", [sum(count.values()) - count["missing"] for count in columns.values()])
    add("usable", [sum(count[word] for word in USABLE) for count in columns.values()], "bold")
    get_console().print(table)


def _print_classes(losing: list[tuple[str, str, int, int, int]], file: Path) -> None:
    if not losing:
        return
    losing.sort(key=lambda row: (row[4] / row[2], row[4] - row[2]))
    numbers = (Column(name, justify="right") for name in ("listed", "present", "usable"))
    table = Table("split", "class", *numbers, title="Classes that lose clips")
    for row in losing[:WORST]:
        table.add_row(*map(str, row))
    get_console().print(table)
    shown = f"the worst {WORST} of {len(losing)}; " if len(losing) > WORST else ""
    say(f"{shown}all classes are in {file}")


def _print_offset(lists: Sequence[ClipList], journal: Journal, label_offset: int) -> None:
    """Say which data.samples.label_offset fits the masks' values, if there are masks."""
    explained: Counter[int] = Counter()
    values = 0
    for clips in lists:
        for clip in _all(clips):
            for value in map(int, journal.rows[clips.split, clip.id].mask_values.split()):
                values += 1
                explained.update(offset for offset in OFFSETS if value + offset in clip.classes)
    if not values:
        return
    best = max((label_offset, *OFFSETS), key=lambda offset: explained[offset])
    fit = f"data.samples.label_offset={best} fits the masks: {explained[best]} of {values} values are annotated classes"
    other = f"; with {label_offset}, its present value, {explained[label_offset]} are: change it"
    say(fit + (other if best != label_offset else ""))
