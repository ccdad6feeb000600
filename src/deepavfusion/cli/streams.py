"""Output that does not end a run: closed or broken pipes, a lost terminal, an encoding without a character."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

LOST = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # nobody reads it any more; other errors, as a full disk, are raised


class _Stream(io.FileIO):
    """A standard stream whose output goes nowhere once its reader has gone, as of `| head` or a closed terminal."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if error.errno not in LOST:
                raise OSError(error.errno, error.strerror, "the output of this command") from None
            return len(data)


def secure_streams() -> None:
    """Make standard output and error safe to write to. Does nothing where they were replaced, as in a notebook.

    A descriptor of a standard stream that is closed is opened, or the next file opened, perhaps a checkpoint, would get
    its number and what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and (stream is None or stream.fileno() == number):
            raw = _Stream(number, "w", closefd=False)
            buffer = io.BufferedWriter(raw)
            encoding = getattr(stream, "encoding", "utf-8")
            lines = number == 2 or raw.isatty()
            setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=lines))
