"""What a command prints.

Output does not end a run: closed or broken pipes, a lost terminal, an encoding without a character. And what libraries
print in every run, and nobody can act on, is silenced, each message by its own words.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import threading
import warnings
from typing import Any

LOST = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # nobody reads it any more; other errors, as a full disk, are raised
WARNINGS = (  # how they begin
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning of torch; every run
    r"The `srun` command is available on your system but is not used",
    r"The '\w+' does not have many workers which may be a bottleneck",  # data.num_workers follows the cores
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # a short trial
    r"Checkpoint directory .* exists and is not empty",  # a run that resumes
    r"Be aware that when using `ckpt_path`, callbacks",  # a run that resumes names them itself, config/continued.py
    r"pkg_resources is deprecated as an API",
)
NOTICES = (  # loggers that report, at level INFO, what a run's first lines say, and advertise
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning_utilities.core.rank_zero",
    "lightning.pytorch.accelerators.cuda",
)


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


def quiet() -> None:
    """Silence what both lists name, unless Python was told what to do with warnings (-W, PYTHONWARNINGS)."""
    if not sys.warnoptions:
        for message in WARNINGS:
            warnings.filterwarnings("ignore", message)
    for name in NOTICES:
        logging.getLogger(name).addFilter(_is_warning)
    threading.excepthook = _report_from_thread


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _report_from_thread(args: threading.ExceptHookArgs) -> None:
    """Not what a thread keeps for whoever uses it next, as TensorBoard's writer does on a full disk."""
    if getattr(args.thread, "exception", None) is not args.exc_value:
        threading.__excepthook__(args)
