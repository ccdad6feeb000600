"""Signals that ask a run to stop: noted at once, acted upon when the state is consistent."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from deepavfusion.utils.launch import signals
from deepavfusion.utils.launch.signals import SIGNALS

PATIENCE = 25.0  # s from the signal to exiting unconditionally: schedulers kill after 30
AGAIN = 0.5  # s after which Ctrl-C counts as a second one: a launcher passes the first one on


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
        self.since = 0.0
        self._leave = leave
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take the signals, again if others replaced the handlers. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            found = signal.signal(number, self._handle)
            self._before.setdefault(number, found)
        signals.take(self._note)

    def release(self) -> None:
        """Restore the previous handlers."""
        if threading.current_thread() is threading.main_thread():
            signals.take(None)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not signals.is_listening():  # the run is part of another program
            self._note(signal.Signals(number))

    def _note(self, number: signal.Signals) -> None:
        if self.received is not None:
            if number == self.received == signal.SIGINT and time.monotonic() - self.since > AGAIN:
                signals.leave(number)
            return
        self.received, self.since = number, time.monotonic()
        hint = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
        signals.tell(f"{number.name}: stopping after this step{hint}")
        timer = threading.Timer(PATIENCE, self._leave)
        timer.daemon = True
        timer.start()
