"""What decoding processes do besides decoding: record what they read, and leave signals to the training process."""

from __future__ import annotations

import math
import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deepavfusion.types import Problem


class Board:
    """Which item each of so many decoding processes is reading, and since when; in memory that all of them share.

    Without decoding processes, the training process reads, and has the only row.
    """

    def __init__(self, workers: int) -> None:
        # process id · item + 1, or 0 between two · start, ns of the monotonic clock, which is the machine's
        self.rows = _shared(max(1, workers), 3)
        self.piped = _shared(1, 1)  # see `transport.Sender`
        self.excluded: dict[int, Problem] = {}  # items that are not read again

    @contextmanager
    def reading(self, item: int) -> Iterator[Problem | None]:
        """Note that this process reads an item; gives its problem if it is excluded."""
        if item in self.excluded:
            yield self.excluded[item]
            return
        info = torch.utils.data.get_worker_info()
        row = self.rows[info.id if info else 0]
        row[0], row[2] = os.getpid(), time.monotonic_ns()
        row[1] = item + 1
        yield None
        row[1] = 0  # not after an error, which ends the run

    def item(self, worker: int) -> int | None:
        """What a process was reading when it ended."""
        return int(self.rows[worker, 1]) - 1 if self.rows[worker, 1] else None


def _shared(*shape: int) -> torch.Tensor:
    """Zeros that forked processes share, int64; not a file in /dev/shm, which may be full."""
    return torch.frombuffer(mmap.mmap(-1, 8 * math.prod(shape)), dtype=torch.int64).view(shape)


def start_worker(_: int) -> None:
    """Signals that ask the run to stop are not for its workers, which the run ends when it has saved."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
