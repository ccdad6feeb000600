"""What decoding processes do besides decoding: record what they read, and leave signals to the training process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from deepavfusion.types import Problem

LOOK_EVERY = 0.5  # s


class Board:
    """Which item each of so many decoding processes is reading, and since when; in memory that all of them share."""

    def __init__(self, workers: int) -> None:
        # process id · item + 1, or 0 between two · start, ns of the monotonic clock, which is the machine's
        self.rows = torch.zeros(workers, 3, dtype=torch.int64).share_memory_()
        self.excluded: dict[int, Problem] = {}  # items that are not read again

    @contextmanager
    def reading(self, item: int) -> Iterator[Problem | None]:
        """Note in a decoding process that an item is being read; gives its problem if it is excluded."""
        info = torch.utils.data.get_worker_info()
        if info is None or item in self.excluded:
            yield self.excluded.get(item)
            return
        row = self.rows[info.id]
        row[0], row[2] = os.getpid(), time.monotonic_ns()
        row[1] = item + 1
        yield None
        row[1] = 0  # not after an error, which ends the run

    def item(self, worker: int) -> int | None:
        """What a process was reading when it ended."""
        return int(self.rows[worker, 1]) - 1 if self.rows[worker, 1] else None


@contextmanager
def hang_watch(board: Board, seconds: float) -> Iterator[set[int]]:
    """Within it, a decoding process that reads an item for longer is ended, from a thread; gives those ended so far."""
    ended: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY):
            now = time.monotonic_ns()
            for worker, (pid, item, since) in enumerate(board.rows.tolist()):
                if item and now - since > seconds * 1e9 and worker not in ended:
                    ended.add(worker)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    if len(board.rows):
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield ended
    finally:
        over.set()


def start_worker(_: int) -> None:
    """Signals that ask the run to stop are not for its workers, which the run ends when it has saved."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
