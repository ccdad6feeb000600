"""Decodes every clip of a dataset once, keeps what it finds in a report, and tells the sum of it.

Training reads the report (`bad_clips`) and leaves out what cannot be used.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich import get_console
from rich.table import Table

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.verified import STATUSES, USABLE, Row, _check_words, below, signature, unchanged
from deepavfusion.types import Clip
from deepavfusion.utils.console import progress_bar, say
from deepavfusion.verify.clip import NO_CLASS, Verdict, check_clip
from deepavfusion.verify.pool import Lost, call_apart
from deepavfusion.verify.report import Report, write_csv

WORST = 20  # classes shown
OFFSETS = (0, -1, 1)  # of mask values, the likelier first

Check = Callable[[Clip], Verdict]


@dataclass
class Job:
    """A file or folder to look at, and the clips of the lists that are in it."""

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
    """Look at the clips that the report does not know yet, and print the sum of all.

    Args:
        lists: the splits, of the files as published.
        root: the folder they are in, for the closing line.
        report: CSV file that is made, or gone on with; beside it `<report>_classes.csv` is written.
        exclude: the words for which runs leave a clip out, for the closing line.
        audio_seconds: length of the window that training takes.
        label_offset: of the masks' values.
        workers: processes.
        time_limit: seconds a clip may take.
        force: look at these clips anew.
        check: what is asked of a clip, picklable; None: `check_clip`.
        semantic: the masks' values must be classes; otherwise any value but 0 means a sounding pixel.

    Returns:
        status -> how many clips of the lists have it.

    Raises:
        UserError: an unknown word, or the report cannot be written, is damaged, or written by another process.
    """
    _check_words(exclude)
    classes = len(lists[0].classes) if semantic else None
    check = check or partial(check_clip, audio_seconds=audio_seconds, classes=classes, label_offset=label_offset)
    with Report(report, trust=not force) as book:
        jobs, known = _plan(lists, book, force, classes, label_offset)
        for clips in lists:
            say(f"{clips.split}: {clips.coverage}")
        if known:
            say(f"{known} clips are in {report} already and have not changed; force=true looks at them again")
        if jobs:
            with progress_bar() as bar:
                task = bar.add_task("verifying", total=len(jobs))
                for job, result in _results(jobs, check, workers, time_limit):
                    for clips, clip in job.entries:
                        book.add(_row(clips, clip, result, job.found, book.folder))
                    bar.advance(task)
        book.finish()
        total, left_out = _tell_counts(lists, book, exclude)
        sentence = _best_offset(lists, book, label_offset)
    if sentence:
        say(sentence)
    place = f"data.root={root}"
    if os.path.abspath(report) != os.path.abspath(os.path.join(root, "verify.csv")):
        place += f" data.verify_report={report}"
    what = f"leave out by themselves the {left_out} that data.exclude names" if left_out else "leave none out"
    say(f"{report} names every clip; runs with {place} {what}.")
    return total


def _plan(
    lists: Sequence[ClipList], book: Report, force: bool, classes: int | None, label_offset: int
) -> tuple[list[Job], int]:
    """What is left to look at, each file once, and how many clips need no look; writes down those that are missing."""
    by_path = {} if force else {row.path: row for row in book.rows.values()}
    jobs: dict[str, Job] = {}
    known = 0
    for clips in lists:
        for clip in clips.missing:
            _note_missing(book, clips, clip)
        for clip in (*clips.clips, *(clip for clip, _ in clips.excluded)):
            found = signature(clip.path, clip.frames)
            if found is None:
                _note_missing(book, clips, clip)
                continue
            row = by_path.get(below(os.path.abspath(clip.path), book.folder))
            asked = row and row.status != "missing" and row.seconds == clip.frames
            if row and asked and unchanged(row, found) and _same_classes(row, classes, label_offset):
                known += 1
                before = book.rows.get((clips.split, clip.id))
                if before is None or (before.path, before.modified) != (row.path, row.modified):
                    book.add(row._replace(id=clip.id, split=clips.split, classes="|".join(_classes_of(clips, clip))))
                continue
            jobs.setdefault(clip.path, Job(clip, found)).entries.append((clips, clip))
    return list(jobs.values()), known


def _same_classes(row: Row, classes: int | None, label_offset: int) -> bool:
    """Whether a row says of the masks' values what it would say now: S4 takes any, AVSS in the same folder does not."""
    values = map(int, row.mask_values.split())
    strange = classes is not None and any(not 0 <= value + label_offset < classes for value in values)
    return strange == (NO_CLASS in row.detail)


def _note_missing(book: Report, clips: ClipList, clip: Clip) -> None:
    there = os.path.isdir(clip.path)
    detail = "the folder lacks sound, pictures or masks that are in use" if there else "there is no such file"
    row = _row(clips, clip, Verdict("missing", detail), ("", ""), book.folder)
    if book.rows.get((clips.split, clip.id)) != row:
        book.add(row)


def _results(jobs: Sequence[Job], check: Check, workers: int, time_limit: float) -> Iterator[tuple[Job, Verdict]]:
    by_path = {job.clip.path: job for job in jobs}
    for clip, result in call_apart(check, (job.clip for job in jobs), min(workers, len(jobs)), time_limit):
        if isinstance(result, Lost):
            result = Verdict("hung" if result.hung else "undecodable", result.detail)
        yield by_path[clip.path], result


def _row(clips: ClipList, clip: Clip, verdict: Verdict, found: tuple[str, str], folder: str) -> Row:
    return Row(
        id=clip.id,
        split=clips.split,
        classes="|".join(_classes_of(clips, clip)),
        status=verdict.status,
        also=" ".join(verdict.also),
        usable="yes" if verdict.status in USABLE else "no",
        detail=" ".join(verdict.detail.split()),
        path=below(os.path.abspath(clip.path), folder),
        bytes=found[0],
        modified=found[1],
        frames=" ".join(map(str, clip.frames)),
        mask_values=" ".join(map(str, verdict.mask_values)),
    )


def _classes_of(clips: ClipList, clip: Clip) -> list[str]:
    return [clips.classes[label] for label in clip.classes]


# ---- what is told at the end


def _tell_counts(lists: Sequence[ClipList], book: Report, exclude: Collection[str]) -> tuple[Counter[str], int]:
    """Print the tables and write the one of the classes: the count of each status, and of those that are left out."""
    statuses: dict[str, Counter[str]] = {}
    by_class: dict[tuple[str, str], Counter[str]] = {}
    left_out = 0
    for clips in lists:
        statuses[clips.split] = Counter()
        for clip in _all(clips):
            row = book.rows[clips.split, clip.id]
            statuses[clips.split][row.status] += 1
            left_out += any(word in exclude for word in row.words)
            for name in _classes_of(clips, clip):
                count = by_class.setdefault((clips.split, name), Counter())
                count.update(["listed"] + ["present"] * (row.status != "missing") + ["usable"] * (row.usable == "yes"))
    total = sum(statuses.values(), Counter[str]())
    _print_statuses(statuses, total)
    classes = [(*key, n["listed"], n["present"], n["usable"]) for key, n in sorted(by_class.items())]
    of_classes = book.path.with_name(f"{book.path.stem}_classes.csv")
    write_csv(of_classes, ("split", "class", "listed", "present", "usable"), classes)
    _print_classes([row for row in classes if row[4] < row[2]], of_classes)
    return total, left_out


def _all(clips: ClipList) -> Iterator[Clip]:
    yield from clips.clips
    yield from clips.missing
    yield from (clip for clip, _ in clips.excluded)


def _print_statuses(statuses: dict[str, Counter[str]], total: Counter[str]) -> None:
    table = Table("clips", *statuses, *(["all"] if len(statuses) > 1 else []), title="What the clips are")
    columns = [*statuses.values(), *([total] if len(statuses) > 1 else [])]

    def add(name: str, counts: Sequence[int], style: str | None = None, last: bool = False) -> None:
        table.add_row(name, *(f"{count:,}".replace(",", " ") for count in counts), style=style, end_section=last)

    words = [word for word in STATUSES if total[word]]
    for word in words:
        style = "green" if word == "ok" else "yellow" if word in USABLE else "red"
        add(word, [count[word] for count in columns], style, word == words[-1])
    add("listed", [sum(count.values()) for count in columns])
    add("present", [sum(count.values()) - count["missing"] for count in columns])
    add("usable", [sum(count[word] for word in USABLE) for count in columns], "bold")
    for column in table.columns[1:]:
        column.justify = "right"
    get_console().print(table)


def _print_classes(losing: list[tuple[str, str, int, int, int]], file: Path) -> None:
    if not losing:
        return
    losing.sort(key=lambda row: (row[4] / row[2], row[4] - row[2]))
    table = Table("split", "class", title="Classes that lose clips")
    for name in ("listed", "present", "usable"):
        table.add_column(name, justify="right")
    for row in losing[:WORST]:
        table.add_row(*map(str, row))
    get_console().print(table)
    shown = f"the worst {WORST} of {len(losing)}; " if len(losing) > WORST else ""
    say(f"{shown}all classes are in {file}")


def _best_offset(lists: Sequence[ClipList], book: Report, label_offset: int) -> str | None:
    """What the masks' values say of data.samples.label_offset; None without masks."""
    explained: Counter[int] = Counter()
    values = 0
    for clips in lists:
        for clip in _all(clips):
            for value in map(int, book.rows[clips.split, clip.id].mask_values.split()):
                values += 1
                explained.update(offset for offset in OFFSETS if value + offset in clip.classes)
    if not values:
        return None
    best = max((label_offset, *OFFSETS), key=lambda offset: explained[offset])
    sentence = (
        f"mask values fit data.samples.label_offset={best}: {explained[best]} of {values} values are annotated classes"
    )
    if best != label_offset:
        sentence += f"; it is set to {label_offset}, with which {explained[label_offset]} are: set it"
    return sentence
