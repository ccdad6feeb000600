"""Hands what is logged to a service without ever keeping the training waiting."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from deepavfusion.loggers.trouble import Trouble

MOST_CALLS, MOST_BYTES = 20_000, 2**28  # that wait for a service
LONGEST_PAUSE = 60.0  # s between two tries


class Courier:
    """Calls functions in a thread, in the order in which they were sent.

    One that fails because the service does not answer is called again, with growing pauses, while others wait; what
    would be too much to wait is dropped, the newest first. One that fails for another reason is dropped. Both are
    counted as lost.

    Args:
        trouble: told of each failure.
        is_temporary: whether a service may answer later, after this error.
    """

    def __init__(self, trouble: Trouble, is_temporary: Callable[[Exception], bool]) -> None:
        self.trouble, self.is_temporary = trouble, is_temporary
        self.waiting: deque[tuple[Callable[[], None], int]] = deque()
        self.bytes = 0
        self.failing = False  # the first of them has been tried, or waited for, in vain
        self.until: float | None = None  # the time at which it gives up; None: it works on
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"logger {trouble.title}")
        self.thread.start()

    def send(self, call: Callable[[], None], size: int = 0) -> None:
        """Have a function called soon; `size` is the memory that it holds until then, in bytes."""
        with self.changed:
            if self.until is not None:  # the run is over
                return
            if len(self.waiting) >= MOST_CALLS or (self.waiting and self.bytes + size > MOST_BYTES):
                self.trouble.lose()
                return
            self.waiting.append((call, size))
            self.bytes += size
            self.changed.notify_all()

    def flush(self, limit: float) -> bool:
        """Wait until all is delivered, at most so many seconds, and not at all for a service that does not answer.

        One that has not answered until then is not waited for again before it does.
        """
        deadline = time.monotonic() + limit
        with self.changed:
            while self.waiting and not self.failing and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(left)
            self.failing |= bool(self.waiting)
            return not self.waiting

    def close(self, limit: float) -> bool:
        """Deliver what waits, for at most so many seconds, and end; what is left then is lost."""
        with self.changed:
            self.until = time.monotonic() + limit
            self.changed.notify_all()
        self.thread.join(limit + 0.5)
        with self.changed:
            left = len(self.waiting)
            self.waiting.clear()
            if left:
                self.trouble.miss(left, "not delivered by the end of the run")
        return not self.thread.is_alive()

    def _work(self) -> None:
        pause = 0.5
        while True:
            with self.changed:
                while not self.waiting and self.until is None:
                    self.changed.wait()
                if not self.waiting or (self.until is not None and time.monotonic() > self.until):
                    return
                call, size = self.waiting[0]
            error = _outcome(call)
            with self.changed:
                if error is None or not self.is_temporary(error):
                    self.failing, pause = False, 0.5
                    if self.waiting:  # not given up meanwhile
                        self.waiting.popleft()
                        self.bytes -= size
                    if error is not None:
                        self.trouble.lose(error=error)
                    self.changed.notify_all()
                    continue
                self.failing = True
                self.trouble.tell(error)
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.until is not None, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                if self.until is not None and time.monotonic() + pause > self.until:
                    return


def _outcome(call: Callable[[], None]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None
