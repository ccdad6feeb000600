"""A download on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from deepavfusion.data.storage.faults import Differs


class OwnError(Exception):
    """Of the file that is written to, in its cause; none of the storage."""


class Transfer:
    """Takes the content of an object block by block, and keeps how far it got, so that a broken one is continued.

    Args:
        file: written from its present position.
        size: of the object, bytes; or the most that it may have.
        exact: whether it has to have this size.
        progress: called with the bytes that are there.
    """

    def __init__(self, file: BinaryIO, size: int, exact: bool, progress: Callable[[int], None]) -> None:
        self.file, self.size, self.exact, self.progress = file, size, exact, progress
        self.begin, self.done = file.tell(), 0
        self.most = 0  # that was ever there
        self.version: str = ""  # of the object, so that no two of them are put together

    def take(self, block: bytes) -> None:
        if self.done + len(block) > self.size:
            raise Differs(f"it has more than {self.size} bytes")
        try:
            self.file.write(block)
        except OSError as error:
            raise OwnError from error
        self.done += len(block)
        self.progress(self.done)

    def gained(self) -> bool:
        """Whether more is there than ever before: one that breaks in the same place again and again gains nothing."""
        more, self.most = self.done > self.most, max(self.done, self.most)
        return more

    def restart(self, version: str = "") -> None:
        """Begin anew, as with another version of the object."""
        self.version = version
        if self.done:
            self.file.seek(self.begin)
            self.file.truncate()
            self.done = 0

    def finish(self) -> None:
        if self.exact and self.done != self.size:
            raise Differs(f"it has {self.done} bytes, expected {self.size}")
