"""Output to the terminal: lines of text, and one style for all progress bars."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from deepavfusion.utils.launch.launcher import launch
from deepavfusion.utils.names import printable
from deepavfusion.utils.program import spoken

T = TypeVar("T")


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: not wrapped, and without markup. Paths below the current folder are made relative."""
    get_console().print(printable(spoken(from_here(text))), style=style, markup=False, highlight=False, soft_wrap=True)


def cell(name: str) -> Text:
    """A name in a table: without markup, see `printable`."""
    return Text(printable(name))


def say_once(text: str, style: str | None = None) -> None:
    """Print a line on the first process only."""
    if rank_zero():
        say(text, style)


def rank_zero() -> bool:
    """Whether this is the first process of a run, or the only one."""
    return launch().rank == 0


def from_here(text: str) -> str:
    """Text in which the paths below the current folder are relative to it: shorter, and still right for copying."""
    with suppress(OSError):  # the current folder may have been removed
        here = os.getcwd()
        if here != "/":
            return re.sub(rf"(?<![^\s'\"=(\[]){re.escape(here)}/(?=\S)", "", text)
    return text


def is_live(console: Console) -> bool:
    """Whether a bar can be redrawn in place: on a terminal, but not in a file, pipe or notebook, nor with NO_COLOR."""
    redrawn = console.is_terminal and console.file.isatty()
    return redrawn and not (console.is_dumb_terminal or console.is_jupyter or console.no_color)


def duration(seconds: float) -> str:
    """0:07, 12:05, 3:12:05, 2 days 3:12:05"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days} day{'s' if days > 1 else ''} {text}" if days else text


def rate(per_second: float) -> str:
    """Three digits: 1.23, 46.1, 1234"""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


class Pace:
    """When the next line of a long job is due: every 10 s at first, later after 5 % of its time, at most 10 min."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.last < min(max(10.0, 0.05 * (now - self.began)), 600.0):
            return False
        self.last = now
        return True


class _Rate(ProgressColumn):
    """Items a second, and the time left."""

    def render(self, task: Task) -> Text:
        return Text(_speed(task), style="progress.data.speed")


class Bars(Progress):
    """Bars with count, rate and remaining time; a line every so often where none can be redrawn.

    Where the field `left` of a task has seconds, they are shown in place of both.

    Args:
        console: to draw on.
        transient: remove the bars at the end.
    """

    def __init__(self, console: Console, transient: bool = False) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
        plain = not is_live(console)
        super().__init__(*columns, console=console, transient=transient, disable=plain, speed_estimate_period=60)
        self.pace = Pace()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._line(task_id)

    def _line(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        if self.disable and (task.finished or self.pace.due()) and task.total and not task.fields.get("ended"):
            task.fields["ended"] = task.finished  # the last line once
            text = f"{task.description.strip()} · {task.completed:g}/{task.total:g} · {_speed(task)}"
            self.console.print(text.removesuffix(" · "), markup=False, highlight=False, soft_wrap=True)


def _speed(task: Task) -> str:
    if (given := task.fields.get("left")) is not None:  # items that are long, and differ
        return f"about {duration(given)} left" if given else ""
    if not task.speed:
        return ""
    left = task.time_remaining
    return f"{rate(task.speed)}/s" + (f" · {duration(left)} left" if left else "")


def progress_bar(transient: bool = False) -> Bars:
    """A bar with count, rate and remaining time, on stderr; `transient`: removed at the end."""
    return Bars(Console(stderr=True), transient)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items, with a bar on stderr."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)
