"""Watches the decoding processes: ends one that hangs, and the run when no batch arrives for any other reason."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from deepavfusion.data.loading.transport import MIN_FILES
from deepavfusion.data.loading.workers import Board
from deepavfusion.utils.launch.signals import tell
from deepavfusion.utils.processes import MAX_FOLDER

LOOK_EVERY = 0.5  # s
PATIENCE = 15.0  # s, for a hung process to end and be replaced, and for the training process to stop the run
LOW_SHM = 64 * 2**20  # bytes; what Docker gives by default


class HangWatch:
    """A thread that watches while the training process waits for a batch.

    A decoding process that reads one item for longer than `seconds` is ended. If nothing moves for `seconds` and
    `PATIENCE` more, `stalled` says why and all decoding processes are ended, which the training process notices; if it
    is stuck itself, the thread prints the reason and ends the run with exit status 2.

    Args:
        board: what the processes are reading.
        seconds: of the same item, or without a sign of life.
        workers: the decoding processes.
        describe: item -> clip and path.
    """

    def __init__(
        self, board: Board, seconds: float, workers: Sequence[BaseProcess], describe: Callable[[int], str]
    ) -> None:
        self.board, self.seconds, self.workers, self.describe = board, seconds, workers, describe
        self.ended: set[int] = set()  # decoding processes that hung
        self.stalled = ""
        self._waiting_since: float | None = None
        self._over = threading.Event()

    def __enter__(self) -> HangWatch:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the training process waits for a batch."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _watch(self) -> None:
        rows, moved = self.board.rows.tolist(), time.monotonic()
        while not self._over.wait(LOOK_EVERY):
            now, former, rows = time.monotonic(), rows, self.board.rows.tolist()
            self._end_hung(rows)
            if rows != former or self._waiting_since is None:
                moved = now
                continue
            still = now - max(moved, self._waiting_since or now)
            if still > self.seconds + PATIENCE and not self.stalled:
                self.stalled = self.reason()
                for worker in self.workers:
                    worker.kill()
            if still > self.seconds + 2 * PATIENCE:
                tell(self.stalled)
                os._exit(2)

    def _end_hung(self, rows: list[list[int]]) -> None:
        for worker, (pid, item, since) in enumerate(rows):
            hung = item and time.monotonic_ns() - since > self.seconds * 1e9
            if hung and pid != os.getpid() and worker not in self.ended:
                self.ended.add(worker)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def reason(self) -> str:
        """Why no batch arrives, as far as this can be checked, in a sentence."""
        found = [*self._readers(), *_shortages()] or [
            "shared memory, TMPDIR and open files suffice: data.num_workers=0 shows where reading stops"
        ]
        return f"no batch came for {self.seconds:g} s (data.hang_seconds): {'; '.join(found)}."

    def _readers(self) -> Iterator[str]:
        for pid, item, since in self.board.rows.tolist():
            if item:
                seconds = (time.monotonic_ns() - since) / 1e9
                text = f"process {pid} has been reading {self.describe(item - 1)} for {seconds:.0f} s"
                yield text + (", waiting for the disk: is it mounted?" if _state(pid) == "D" else "")


def _state(pid: int) -> str:
    """Of a process, as the system has it: R, S, D (in a system call that cannot be interrupted), Z …; empty if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _shortages() -> Iterator[str]:
    """What the machine lacks to bring a batch from one process to another."""
    with suppress(OSError):
        if (free := shutil.disk_usage("/dev/shm").free) < LOW_SHM:
            yield f"/dev/shm has {free / 1e6:.0f} MB free (docker run --shm-size=8g, or data.num_workers lower)"
    if len(os.fsencode(tempfile.gettempdir())) > MAX_FOLDER:
        yield f"the name of {tempfile.gettempdir()} is too long for sockets (TMPDIR=/tmp)"
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < max(MIN_FILES, len(os.listdir("/dev/fd")) + 64):
        yield f"{files} files may be open at a time (ulimit -n 4096)"
