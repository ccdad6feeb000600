"""Output to the terminal: lines of text, and one style for all progress bars."""

from __future__ import annotations

import os

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: not wrapped, and without markup."""
    get_console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def say_once(text: str, style: str | None = None) -> None:
    """Print a line on the first process only."""
    if rank_zero():
        say(text, style)


def rank_zero() -> bool:
    """Whether this is the first process of a run, or the only one."""
    return not any(int(os.environ.get(name) or 0) for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


class _Rate(ProgressColumn):
    """Clips a second."""

    def render(self, task) -> Text:  # type: ignore[no-untyped-def]
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """A bar with count, rate and remaining time, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), speed_estimate_period=60)
