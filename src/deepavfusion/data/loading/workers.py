"""What decoding processes do besides decoding: record what they read, seed, and leave signals alone."""

from __future__ import annotations

import math
import mmap
import os
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from deepavfusion.types import Problem
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.workers import die_with_parent
from deepavfusion.utils.processes import on_sign_of_life

_is_worker = False


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
        info = torch.utils.data.get_worker_info() if in_worker() else None
        row = self.rows.numpy()[info.id if info else 0]  # no tensor, since other threads may not write one of inference
        row[0], row[2] = os.getpid(), time.monotonic_ns()
        row[1] = item + 1

        def note() -> None:  # waiting for storage is not hanging
            row[2] = time.monotonic_ns()

        try:
            with on_sign_of_life(note):
                yield None
        except UserError:  # the process reads on until the run ends
            row[1] = 0
            raise
        row[1] = 0  # not after another error, which names the item

    def item(self, worker: int) -> int | None:
        """What a process was reading when it ended."""
        return int(self.rows[worker, 1]) - 1 if self.rows[worker, 1] else None


def _shared(*shape: int) -> torch.Tensor:
    """Zeros that forked processes share, int64; not a file in /dev/shm, which may be full."""
    return torch.frombuffer(mmap.mmap(-1, 8 * math.prod(shape)), dtype=torch.int64).view(shape)


def start_worker(_: int) -> None:
    """It ends with the training process, also while it hangs."""
    global _is_worker
    _is_worker = True
    die_with_parent()


def in_worker() -> bool:
    """Whether this is a decoding process of a `ResumableLoader`; a worker of someone else's loader is none."""
    return _is_worker


def own_random_state() -> AbstractContextManager[None]:
    """Keeps what the block does to the random generators from the training; nobody else uses those of a worker."""
    return nullcontext() if in_worker() else isolate_rng(include_cuda=False)  # takes 0.1 ms


def seed_item(seed: int) -> None:
    """Seed the generators of the CPU."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs, too
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # for transforms that draw from NumPy's global state
