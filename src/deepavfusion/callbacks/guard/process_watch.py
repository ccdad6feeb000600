"""Ends all processes of a run when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from multiprocessing.connection import wait
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment

from deepavfusion.runs.signals import STOPPED

GRACE = 1.5  # s for a failing process to print why
FIRST = "DEEPAVFUSION_FIRST"  # environment variable: the process that starts the others on this machine
LOOK_EVERY = 0.2  # s, where the system has no pidfd to wait for


class ProcessWatch(Callback):
    """Ends the processes that Lightning started on this machine when one of them, or the first process, ends.

    Otherwise the others would wait half an hour for gradients that never come. If a process was killed, the run ends
    with exit status 75, and the same command resumes it; if one failed, the run ends with its status. Processes started
    by SLURM or torchrun are ended by these (srun --kill-on-bad-exit).
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.over = threading.Event()
        # Lightning starts the others before `setup`, and they wait for the first one, which may end meanwhile.
        self.met = threading.Event()
        if not int(os.environ.get("LOCAL_RANK") or 0):
            os.environ[FIRST] = str(os.getpid())
        elif FIRST in os.environ:
            first = int(os.environ[FIRST])
            threading.Thread(target=self._watch_first, args=(first, self.met), daemon=True).start()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        others: list[subprocess.Popen[Any]] = getattr(trainer.strategy.launcher, "procs", [])
        environment = getattr(trainer.strategy, "cluster_environment", None)
        self.met.set()
        self.over = threading.Event()
        if others:
            self.thread = threading.Thread(target=self._watch_others, args=(others, self.over), daemon=True)
        elif isinstance(environment, LightningEnvironment) and environment.local_rank():
            self.thread = threading.Thread(target=self._watch_first, args=(os.getppid(), self.over), daemon=True)
        else:
            return
        self.thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.over.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.thread is not None and isinstance(exception, RuntimeError):
            self.thread.join(GRACE)  # perhaps a broken connection: let the process that broke it report why

    def _watch_others(self, others: list[subprocess.Popen[Any]], over: threading.Event) -> None:
        codes = _await([other.pid for other in others], lambda: [other.poll() for other in others], over)
        failed = [(rank, code) for rank, code in enumerate(codes, 1) if code]
        if not failed:
            return
        rank, code = failed[0]
        if code < 0:
            self._leave(
                f"process {rank} of {len(others) + 1} was ended by {signal.Signals(-code).name}, so the others end; "
                "the same command (with resume=<run directory> if the run has no name) resumes from the last "
                "checkpoint.",
                STOPPED,
                others,
            )
        time.sleep(GRACE)
        if not over.is_set():
            self._leave(f"process {rank} of {len(others) + 1} ended with status {code}: see above.", code, others)

    def _watch_first(self, parent: int, over: threading.Event) -> None:
        if _await([parent], lambda: [1 if os.getppid() != parent else None], over) == [1]:
            os._exit(STOPPED)

    @staticmethod
    def _leave(text: str, status: int, others: list[subprocess.Popen[Any]]) -> None:
        os.write(2, f"{text}\n".encode())
        for other in others:
            other.kill()
        os._exit(status)


def _await(pids: list[int], codes: Any, over: threading.Event) -> list[int | None]:
    """Wait until one of the processes has failed, all have ended, or the watch is over; their exit codes."""
    try:
        handles = [os.pidfd_open(pid) for pid in pids]
    except (AttributeError, OSError):  # not Linux, or it has ended
        handles = []
    try:
        while not over.is_set():
            found: list[int | None] = codes()
            if any(found) or None not in found:
                return found
            if handles:
                wait([handle for handle, code in zip(handles, found, strict=True) if code is None], timeout=1.0)
            else:
                time.sleep(LOOK_EVERY)
        return []
    finally:
        for handle in handles:
            os.close(handle)
