"""Signals that ask a run to stop: noted at once, acted upon when the state is consistent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPPED = 75  # exit status of a run that was asked to stop and can be resumed: EX_TEMPFAIL, "try again"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PATIENCE = 25.0  # s from the signal to exiting unconditionally: schedulers kill after 30


class StopRequested(Exception):
    """The run was asked to stop; it has saved a checkpoint if there was anything to save."""


class StopSignals:
    """The first of `SIGNALS` that arrived.

    Args:
        leave: ends the process; called from a thread if it is still running after `PATIENCE` seconds, because it waits
            for data or another process.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self.received: signal.Signals | None = None
        self._leave = leave
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Install the handlers, again if others replaced them. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            found = signal.signal(number, self._receive)
            self._before.setdefault(number, found)

    def release(self) -> None:
        """Restore the previous handlers."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:  # Ctrl-C twice: immediately
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        hint = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
        os.write(2, f"{self.received.name}: stopping after this step{hint}\n".encode())
        timer = threading.Timer(PATIENCE, self._leave)
        timer.daemon = True
        timer.start()
