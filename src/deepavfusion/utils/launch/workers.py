"""Worker processes: those of a DataLoader, of a pool, and what their pools start.

SLURM sends a signal to every process of a step, and a terminal to every process of its group. It is the main process
that has to act on it: workers are to go on meanwhile, and nothing that they do is to blame. They end when it asks, or
ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import (
    BaseContext,
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from typing import Literal

PR_SET_PDEATHSIG = 1  # prctl(2)
LOOK_EVERY = 1.0  # s
GROUP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


@contextmanager
def shielded() -> Iterator[None]:
    """Let processes that are started within, and theirs, not hear the signals that go to whole groups.

    Blocked from the first moment on, unlike signals that a worker ignores once it has begun to run. This process gets
    what came meanwhile afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Shielded:
    """A process that is started `shielded`, and therefore ended by SIGKILL where libraries send SIGTERM, and wait."""

    def start(self) -> None:
        with shielded():
            super().start()  # type: ignore[misc]
        popen = self._popen  # type: ignore[attr-defined]  # multiprocessing ends what is left at exit with this
        popen.terminate = popen.kill


class ForkWorker(_Shielded, ForkProcess):
    """See `_Shielded`."""


class SpawnWorker(_Shielded, SpawnProcess):
    """See `_Shielded`."""


class ForkServerWorker(_Shielded, ForkServerProcess):
    """See `_Shielded`."""


class _Fork(ForkContext):
    Process = ForkWorker


class _Spawn(SpawnContext):
    Process = SpawnWorker


class _ForkServer(ForkServerContext):
    Process = ForkServerWorker


def worker_context(method: Literal["fork", "spawn", "forkserver"]) -> BaseContext:
    """What `multiprocessing.get_context` gives, with processes that are `shielded`."""
    if method != "fork":
        with shielded():
            resource_tracker.ensure_running()
    contexts: dict[str, type[BaseContext]] = {"fork": _Fork, "spawn": _Spawn, "forkserver": _ForkServer}
    return contexts[method]()


def die_with_parent() -> None:
    """End this worker when the main process is killed; otherwise it would wait for work forever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with(parent: int) -> None:
    """Kill this process when its parent ends, however that does."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):  # on Linux
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGKILL)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
