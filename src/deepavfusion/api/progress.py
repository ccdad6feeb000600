"""A progress bar for calls that take long."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from deepavfusion.utils.console import Bars, progress_bar

LATE = 2.0  # s after which a call shows that it is running

Report = Callable[[float, float], None]  # what is done, and the total


@contextmanager
def showing(title: str, show: bool | None = None) -> Iterator[Report]:
    """A bar on stderr, which is removed at the end; lines where none can be redrawn, such as in a notebook.

    Args:
        title: in front of the bar.
        show: whether there is one; None: once it takes longer than `LATE`, and not in a worker process.
    """
    began, lock = time.monotonic(), Lock()
    bars: list[Bars] = []  # the bar, once it is shown
    wanted = multiprocessing.parent_process() is None if show is None else show

    def report(done: float, total: float) -> None:
        with lock:  # files may be worked on in several threads
            if not wanted or (not bars and show is None and time.monotonic() - began < LATE):
                return
            if not bars:
                bars.append(progress_bar(transient=True))
                bars[0].start()
                bars[0].add_task(title)
            bars[0].update(bars[0].task_ids[0], completed=done, total=total)

    try:
        yield report
    finally:
        for each in bars:
            each.stop()
