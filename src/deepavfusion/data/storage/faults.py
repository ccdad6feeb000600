"""What can go wrong with a storage, and for how long it is asked again."""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from typing import Literal

from deepavfusion.utils.console import say
from deepavfusion.utils.errors import TemporaryError

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # s between attempts; the last one from then on
LINES_APART = 60.0  # s between lines about one storage, of all processes of a start


class Missing(Exception):
    """There is no such object: the storage answered so twice."""


class Differs(Exception):
    """The object has another size than expected."""


class Exists(Exception):
    """There is an object of this name already."""


class Unreachable(TemporaryError):
    """The storage did not answer within `patience_seconds`. The same command continues."""


@dataclass(frozen=True)
class Answer:
    """What a storage answered in place of the content.

    Args:
        kind: "missing": there is no such object; "denied": it may not be read, which some storages also answer for one
            that is missing; "refused": nothing below the root can be read, and waiting does not help unless it could be
            before; "fault": it may answer later.
        words: for messages, without secrets.
        remedy: a clause.
    """

    kind: Literal["missing", "denied", "refused", "fault"]
    words: str
    remedy: str = "check the network and the storage"


class Notices:
    """Prints when a storage stops answering, and when it does again; rarely, whatever the number of workers.

    The processes that are forked from the one that made it share the time of the last line.
    """

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)
        self.ours: float | None = None  # when this process said that the storage does not answer

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, _: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]

    def failing(self, root: str, words: str, patience: float) -> None:
        (last,) = struct.unpack("d", self.shared[:8])
        now = time.monotonic()
        if not last or now - last > LINES_APART:
            self.shared[:8] = struct.pack("d", now)
            self.ours = self.ours or now
            say(f"storage {root} does not answer ({words}); trying for {spoken(patience)}", "yellow")

    def healed(self, root: str) -> None:
        if self.ours is not None:
            say(f"storage {root} answers again after {spoken(time.monotonic() - self.ours)}", "yellow")
            self.ours = None
            self.shared[:8] = struct.pack("d", 0.0)


def spoken(seconds: float) -> str:
    """90 s, 10 minutes"""
    return f"{seconds / 60:g} minutes" if seconds >= 120 and seconds % 60 == 0 else f"{seconds:.3g} s"


class Patience:
    """The time that is left for one request, and the pause before it is made again.

    Args:
        seconds: since the last progress.
        since: when others began to wait for the same, who gave up.
    """

    def __init__(self, seconds: float, since: float | None = None) -> None:
        self.seconds = seconds
        self.began = since  # of the faults
        self.asked = 0

    def progress(self) -> None:
        self.began, self.asked = None, 0

    def pause(self) -> float | None:
        """Seconds until the next attempt; None: it has taken too long."""
        now = time.monotonic()
        self.began = now if self.began is None else self.began
        left = self.began + self.seconds - now
        if left <= 0:
            return None
        self.asked += 1
        return min(PAUSES[min(self.asked, len(PAUSES)) - 1], max(left, 0.05))
