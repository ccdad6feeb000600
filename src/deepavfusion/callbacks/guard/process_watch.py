"""Ends all processes of a run when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import subprocess_script as launcher
from torch import distributed
from torch.distributed import distributed_c10d

from deepavfusion.callbacks.guard.checkpoints import Checkpoints
from deepavfusion.callbacks.guard.heartbeat import Heartbeat
from deepavfusion.utils.launch.launcher import FIRST, launch
from deepavfusion.utils.launch.signals import STOPPED, tell

GRACE = 1.5  # s for a failing process to print why
LOOK_EVERY = 0.2  # s
CONTINUES = (
    "the same command (with resume=<run directory> if the run has no name) continues from the last checkpoint, if "
    "there is one."
)


class ProcessWatch(Callback):
    """Ends all processes of a run when one of them ends, is stopped, or cannot be reached any more.

    Otherwise the others would wait half an hour for gradients that never come. If a process was killed, the run ends
    with exit status 75, and the same command resumes it; if one failed, the run ends with its status.

    The processes that Lightning starts on this machine are its children, whose end it sees at once, also while they
    start. All others, those on other machines among them, give each other signs of life, from when they have met.
    """

    latest: ClassVar[Heartbeat | None] = None  # of this process: in a sweep, several runs follow each other

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.heartbeat: Heartbeat | None = None  # once they have met
        self.trainer: Trainer | None = None
        self.over = threading.Event()  # between training and test, and at the end: nobody waits for others
        if not int(os.environ.get("LOCAL_RANK") or 0):
            os.environ[FIRST] = str(os.getpid())
            # Called with the processes once they are started: they load for seconds before `setup`, and no hook comes
            # sooner. Lightning's own observer looks every 5 s, and kills this process without a word.
            launcher._launch_process_observer = partial(self._start, self._watch_others)
        elif launch().by == "lightning":
            self._start(self._watch_first, int(os.environ[FIRST]))

    def _start(self, watch: Callable[[Any], None], whom: Any) -> None:
        self.thread = threading.Thread(target=watch, args=(whom,), daemon=True)
        self.thread.start()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer
        self.over.clear()
        if self.heartbeat is None and distributed.is_initialized() and trainer.world_size > 1:
            if ProcessWatch.latest is not None:
                ProcessWatch.latest.stop()
            store: Any = distributed_c10d._get_default_store()  # `clone` makes a connection of its own
            leave = partial(self._leave, quiet=trainer.global_rank > 1 and trainer.local_rank > 0)
            self.heartbeat = Heartbeat(store.clone, trainer.global_rank, trainer.world_size, leave, CONTINUES)
            ProcessWatch.latest = self.heartbeat
        if self.heartbeat is not None:
            self.heartbeat.over.clear()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.over.set()
        if self.heartbeat is not None:
            self.heartbeat.over.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Perhaps a broken connection: let the process that broke it report why.
        broken = isinstance(exception, RuntimeError)
        if broken and self.thread is not None:
            self.thread.join(2 * GRACE)
            if not self.thread.is_alive():  # as in a validation that a signal to them stopped
                self._leave(f"the other processes have stopped, so this one ends; {CONTINUES}", STOPPED)
        if self.heartbeat is not None:
            if broken and (dead := self.heartbeat.dead()):
                self.heartbeat.leave(*self.heartbeat.text(dead))
            self.heartbeat.ends(exception)

    def _watch_others(self, others: list[subprocess.Popen[Any]]) -> None:
        while not any(codes := [other.poll() for other in others]):
            if None not in codes:
                return
            time.sleep(LOOK_EVERY)
        rank, code = next((rank, code) for rank, code in enumerate(codes, 1) if code)
        text = f"process {rank} of {len(others) + 1}"
        if code > 0:
            time.sleep(GRACE)
            text += f" ended with status {code}: see above."
        else:
            text += f" was ended by {signal.Signals(-code).name}, so the others end; {CONTINUES}"
        self._leave(text, code if code > 0 else STOPPED, others)

    def _watch_first(self, first: int) -> None:
        while os.getppid() == first:
            time.sleep(LOOK_EVERY)
        self._leave("", STOPPED)

    def _leave(self, text: str, status: int, others: Sequence[subprocess.Popen[Any]] = (), quiet: bool = False) -> None:
        while self.over.is_set():
            time.sleep(LOOK_EVERY)
        for other in others:
            other.kill()
        callbacks: list[Callback] = self.trainer.callbacks if self.trainer else []  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Checkpoints):
                callback.settle()
        if text and not quiet:
            tell(text)
        os._exit(status)
