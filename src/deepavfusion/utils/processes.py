"""Numbers of worker processes, and workers that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading

MAX_WORKERS = 16  # decoding for one training process


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def decoding_workers(processes: int = 1) -> int:
    """Decoding workers for each of the training processes on this machine."""
    return max(1, min(cores() // processes, MAX_WORKERS))


def die_with_parent() -> None:
    """End this worker when the main process is killed; otherwise it would wait for work forever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
